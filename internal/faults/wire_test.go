//go:build unix

package faults

import (
	"context"
	"encoding/binary"
	"net"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// wire is the network of a client: it can lose the replies to requests of a key, after the broker has had the time to
// do what was asked.
type wire struct {
	key  atomic.Int64 // of the requests whose replies are lost; -1: none
	left atomic.Int64 // how many
	lost atomic.Int64
}

func newWire() *wire {
	w := &wire{}
	w.key.Store(-1)
	return w
}

// lose makes the replies to the next n requests of a key get lost, together with their connections.
func (w *wire) lose(key kmsg.Key, n int) {
	w.lost.Store(0)
	w.left.Store(int64(n))
	w.key.Store(int64(key))
}

// dialer is the client option.
func (w *wire) dialer() kgo.Opt {
	return kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, host)
		if err != nil {
			return nil, err
		}
		return &wireConn{Conn: conn, w: w}, nil
	})
}

type wireConn struct {
	net.Conn
	w    *wire
	deaf atomic.Bool
}

// brokerTime is how long a broker gets for what was asked of it before its reply is lost.
const brokerTime = 100 * time.Millisecond

// Write sends a request: the client writes each with one call.
func (c *wireConn) Write(p []byte) (int, error) {
	hit := len(p) >= 6 && int64(binary.BigEndian.Uint16(p[4:])) == c.w.key.Load() && c.w.left.Add(-1) >= 0
	if hit {
		c.deaf.Store(true)
	}
	n, err := c.Conn.Write(p)
	if hit {
		c.w.lost.Add(1)
		time.AfterFunc(brokerTime, func() { _ = c.Conn.Close() })
	}
	return n, err
}

// Read hands out nothing any more once a reply is to be lost.
func (c *wireConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.deaf.Load() {
			return n, err
		}
	}
}

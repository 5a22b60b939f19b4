//go:build unix

package faults

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// network is what lies between a client and its brokers. Unlike a closed connection, a cut is silent: what is under way
// waits until it is healed, as TCP lets it, or until somebody's patience is over.
type network struct {
	mu      sync.Mutex
	changed chan struct{} // closed, and made anew, at each change
	// out and in tell whether bytes to, or from, an address wait.
	out, in func(addr string) bool
	latency time.Duration // of what comes in
}

func nowhere(string) bool    { return false }
func everywhere(string) bool { return true }

func newNetwork() *network {
	return &network{changed: make(chan struct{}), out: nowhere, in: nowhere}
}

// cut makes bytes wait.
func (n *network) cut(out, in func(addr string) bool) { n.change(func() { n.out, n.in = out, in }) }

// heal undoes a cut.
func (n *network) heal() { n.cut(nowhere, nowhere) }

// slow delays all that comes in.
func (n *network) slow(by time.Duration) { n.change(func() { n.latency = by }) }

func (n *network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// holds tells whether bytes of a direction wait, until when they wait at least for latency, and what tells of a change.
func (n *network) holds(addr string, inward bool) (cut bool, latency time.Duration, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if inward {
		return n.in(addr), n.latency, n.changed
	}
	return n.out(addr), 0, n.changed
}

// dialer is the client option.
func (n *network) dialer() kgo.Opt {
	return kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
		// A connection is made when both directions work.
		for _, inward := range []bool{false, true} {
			for {
				cut, _, changed := n.holds(host, inward)
				if !cut {
					break
				}
				select {
				case <-changed:
				case <-time.After(2 * time.Second): // instead of a kernel's minutes
					return nil, &net.OpError{Op: "dial", Net: network, Err: os.ErrDeadlineExceeded}
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, host)
		if err != nil {
			return nil, err
		}
		c := &networkConn{
			Conn: conn, n: n, addr: host, closed: make(chan struct{}), arrived: make(chan arrival, 64),
			read: newDeadline(), write: newDeadline(),
		}
		go c.receive()
		return c, nil
	})
}

// arrival is a piece of what came in.
type arrival struct {
	data []byte
	at   time.Time
	err  error
}

type networkConn struct {
	net.Conn
	n       *network
	addr    string
	once    sync.Once
	closed  chan struct{}
	arrived chan arrival
	now     arrival // being read; its reader's
	read    *deadline
	write   *deadline
}

// receive takes what comes off the wire, and notes when.
func (c *networkConn) receive() {
	for {
		b := make([]byte, 64<<10)
		n, err := c.Conn.Read(b)
		select {
		case c.arrived <- arrival{data: b[:n], at: time.Now(), err: err}:
		case <-c.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

func (c *networkConn) Read(p []byte) (int, error) {
	if len(c.now.data) == 0 {
		if c.now.err != nil {
			return 0, c.now.err
		}
		for {
			passed, moved := c.read.wait()
			select {
			case c.now = <-c.arrived:
			case <-c.closed:
				return 0, net.ErrClosed
			case <-moved:
				continue
			case <-passed:
				return 0, os.ErrDeadlineExceeded
			}
			break
		}
	}
	for {
		cut, latency, changed := c.n.holds(c.addr, true)
		late := time.Until(c.now.at.Add(latency))
		if !cut && late <= 0 {
			break
		}
		if err := c.hold(c.read, cut, late, changed); err != nil {
			return 0, err
		}
	}
	k := copy(p, c.now.data)
	if c.now.data = c.now.data[k:]; k == 0 && c.now.err != nil {
		return 0, c.now.err
	}
	return k, nil
}

func (c *networkConn) Write(p []byte) (int, error) {
	for {
		cut, _, changed := c.n.holds(c.addr, false)
		if !cut {
			return c.Conn.Write(p)
		}
		if err := c.hold(c.write, true, 0, changed); err != nil {
			return 0, err
		}
	}
}

// hold waits for a change of the network, or for the end of the latency where nothing is cut.
func (c *networkConn) hold(d *deadline, cut bool, late time.Duration, changed <-chan struct{}) error {
	var over <-chan time.Time
	if !cut {
		over = time.After(late)
	}
	passed, moved := d.wait()
	select {
	case <-changed:
	case <-over:
	case <-moved:
	case <-passed:
		return os.ErrDeadlineExceeded
	case <-c.closed:
		return net.ErrClosed
	}
	return nil
}

func (c *networkConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		close(c.closed)
		err = c.Conn.Close()
	})
	return err
}

func (c *networkConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *networkConn) SetReadDeadline(t time.Time) error {
	c.read.set(t)
	return nil
}

func (c *networkConn) SetWriteDeadline(t time.Time) error {
	c.write.set(t)
	return c.Conn.SetWriteDeadline(t)
}

// deadline is a time that can be moved while somebody waits for it.
type deadline struct {
	mu    sync.Mutex
	at    time.Time
	moved chan struct{}
}

func newDeadline() *deadline { return &deadline{moved: make(chan struct{})} }

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	close(d.moved)
	d.moved = make(chan struct{})
}

// wait returns what tells that the deadline has passed, nil if there is none, and that it was moved.
func (d *deadline) wait() (passed <-chan time.Time, moved <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.at.IsZero() {
		passed = time.After(time.Until(d.at))
	}
	return passed, d.moved
}

var _ io.ReadWriteCloser = (*networkConn)(nil)

package processor

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Limits of Serve.
const (
	serveTimeout     = 5 * time.Second // for reading a request, and for those under way at the end
	serveWrite       = 30 * time.Second
	serveIdle        = time.Minute
	serveHeaderBytes = 16 << 10
	serveBodyBytes   = 1 << 20
	serveConns       = 256
	minToken         = 16
)

// ServeOptions is where and to whom Serve shows a handler. The zero value is a free port on the loopback interface.
type ServeOptions struct {
	// Addr is host:port. Without a host it is the loopback interface: what is to be reached from elsewhere has to be said,
	// as in "0.0.0.0:8085".
	Addr string
	// Token, of at least 16 bytes, is what requests have to carry as "Authorization: Bearer <token>". It is never logged.
	Token string
	// TLS serves HTTPS. With ClientAuth set to tls.RequireAndVerifyClientCert it takes the place of a Token.
	TLS *tls.Config
	// Listening is called with the address, once it is known.
	Listening func(addr net.Addr)
	// Log receives what goes wrong. Default: nothing.
	Log *zap.Logger
}

// ErrOpenAddress is returned by Serve for an address that others can reach, when neither a token nor client certificates
// are asked for.
var ErrOpenAddress = errors.New("processor: the address can be reached from other machines: set a Token, ask for client " +
	"certificates, or use a loopback address")

// Serve serves a handler, such as that of App.Handler, until ctx is cancelled, and then returns nil. On an address that
// other machines can reach it asks for a token or a client certificate, and refuses to start without. On the loopback
// interface without a token it answers to names of this machine only, so that no web page can reach in by
// pointing its own name here. Requests are bounded in time and size; at most 256 connections are open.
func Serve(ctx context.Context, h http.Handler, o ServeOptions) error {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	addr, err := o.check()
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("processor: listen for HTTP: %w", err)
	}
	if o.Listening != nil {
		o.Listening(l.Addr())
	}
	if o.Token != "" {
		h = withToken(h, o.Token)
	} else if !o.verifiesClients() {
		h = loopbackOnly(h)
	}
	srv := &http.Server{
		Handler: http.MaxBytesHandler(h, serveBodyBytes), TLSConfig: o.TLS.Clone(), MaxHeaderBytes: serveHeaderBytes,
		ReadHeaderTimeout: serveTimeout, ReadTimeout: serveTimeout, WriteTimeout: serveWrite, IdleTimeout: serveIdle,
		ErrorLog: zap.NewStdLog(o.Log),
	}
	ended := make(chan error, 1)
	l = &boundedListener{Listener: l, free: make(chan struct{}, serveConns), closed: make(chan struct{})}
	go func() {
		if o.TLS != nil {
			ended <- srv.ServeTLS(l, "", "")
			return
		}
		ended <- srv.Serve(l)
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("processor: serve HTTP: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveTimeout)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		_ = srv.Close() // what still runs has had its time
	}
	<-ended //nolint:errcheck // it says that the server was shut down
	return nil
}

// check returns the address to listen at, or why not.
func (o *ServeOptions) check() (string, error) {
	addr := o.Addr
	if addr == "" {
		addr = ":0"
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("processor: ServeOptions.Addr %q is not host:port: %w", o.Addr, err)
	}
	if o.Token != "" && len(o.Token) < minToken {
		return "", fmt.Errorf("processor: ServeOptions.Token has %d bytes, and needs %d", len(o.Token), minToken)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	if !isLoopback(host) && o.Token == "" && !o.verifiesClients() {
		return "", fmt.Errorf("%w (%s)", ErrOpenAddress, addr)
	}
	return net.JoinHostPort(host, port), nil
}

func (o *ServeOptions) verifiesClients() bool {
	return o.TLS != nil && o.TLS.ClientAuth == tls.RequireAndVerifyClientCert
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func withToken(next http.Handler, token string) http.Handler {
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(given)) // of equal length, so that the comparison tells nothing
		if !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "a token is needed", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func loopbackOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if !isLoopback(strings.Trim(host, "[]")) {
			http.Error(w, "this server answers to localhost only", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// boundedListener accepts no further connection while as many as it may have are open.
type boundedListener struct {
	net.Listener
	free   chan struct{}
	closed chan struct{}
	once   sync.Once
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &boundedConn{Conn: c, l: l}, nil
}

// Close implements net.Listener.
func (l *boundedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type boundedConn struct {
	net.Conn
	l    *boundedListener
	once sync.Once
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.once.Do(func() { <-c.l.free })
	return c.Conn.Close()
}

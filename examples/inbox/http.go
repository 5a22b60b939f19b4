package main

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
)

//go:embed page
var pageFiles embed.FS

// Limits of the HTTP side.
const (
	maxBody       = 16 << 10
	appendTimeout = 10 * time.Second
	// maxAhead is how far the clock of who gives a time of their own may be ahead.
	maxAhead = time.Minute
	maxLive  = 64 // open event streams
)

// server is the HTTP side. Writing goes to the log and nowhere else; reading comes from the view and nowhere else.
type server struct {
	log  *zap.Logger
	view *view
	mail appender
	now  func() time.Time
	live chan struct{} // one token for each open event stream
	stop <-chan struct{}
}

// appender is the log as the server needs it.
type appender interface {
	append(ctx context.Context, e Event) (partition int32, offset int64, err error)
}

func newServer(v *view, mail appender, stop <-chan struct{}, log *zap.Logger) *server {
	return &server{log: log, view: v, mail: mail, now: time.Now, live: make(chan struct{}, maxLive), stop: stop}
}

// handler returns the routes. loopback tells that only names of this machine may be asked for, so that a web page from
// elsewhere cannot reach in by pointing its own name here; only then is there what the application shows of itself.
func (s *server) handler(loopback bool, app http.Handler) (http.Handler, error) {
	page, err := fs.Sub(pageFiles, "page")
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /events", s.postEvent)
	mux.HandleFunc("GET /inbox/{user}", s.getInbox)
	mux.HandleFunc("GET /unread/{user}", s.getUnread)
	mux.HandleFunc("GET /events/{user}", s.liveUser)
	mux.HandleFunc("GET /live", s.liveAll)
	if loopback {
		mux.Handle("GET /tailrace/", http.StripPrefix("/tailrace", app))
	}
	mux.Handle("GET /", http.FileServerFS(page))
	h := http.NewCrossOriginProtection().Handler(mux)
	if loopback {
		h = loopbackOnly(h)
	}
	return headers(h), nil
}

func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; "+
			"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
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

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// postEvent appends an event to the log. It answers 202 and not 200: the event is in the log, and every view will
// have it soon, but the answer does not wait for any of them.
//
// Who gives an id also gives the time, so that a repetition is the same event; who gives neither gets both.
func (s *server) postEvent(w http.ResponseWriter, r *http.Request) {
	if ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(ct) != "application/json" {
		s.fail(w, http.StatusUnsupportedMediaType, errors.New("send Content-Type: application/json"))
		return
	}
	var e Event
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(&e)
	if err == nil && dec.Decode(&struct{}{}) != io.EOF {
		err = errors.New("one JSON object is expected")
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		s.fail(w, http.StatusRequestEntityTooLarge, fmt.Errorf("the body is larger than %d bytes", maxBody))
		return
	}
	if err == nil {
		err = s.complete(&e)
	}
	if err != nil {
		s.fail(w, http.StatusBadRequest, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), appendTimeout)
	defer cancel()
	partition, offset, err := s.mail.append(ctx, e)
	if err != nil {
		s.log.Warn("append failed", zap.Error(err))
		s.fail(w, http.StatusServiceUnavailable,
			fmt.Errorf("the log did not take the event in time; send it again with id %q and at %d", e.ID, e.At))
		return
	}
	s.reply(w, http.StatusAccepted, struct {
		ID        string `json:"id"`
		At        int64  `json:"at"`
		Message   string `json:"message"`
		Topic     string `json:"topic"`
		Partition int32  `json:"partition"`
		Offset    int64  `json:"offset"`
	}{e.ID, e.At, e.Message, Events.Name(), partition, offset})
}

// complete fills in what the client left out, and checks the event.
func (s *server) complete(e *Event) error {
	now := s.now()
	switch {
	case e.ID == "" && e.At == 0:
		id, err := uuid.NewV7() // ordered by time, as the ids of one millisecond should be
		if err != nil {
			return fmt.Errorf("make an id: %w", err)
		}
		e.ID, e.At = "e"+id.String(), now.UnixMilli()
	case e.ID == "" || e.At == 0:
		return errors.New("give both id and at, or neither: a repetition must be the same event")
	case e.time().After(now.Add(maxAhead)):
		return fmt.Errorf("at is more than %v in the future", maxAhead)
	case e.time().Before(now.Add(-maxLate)):
		return fmt.Errorf("at is more than %v ago: mailboxes may leave it out", maxLate)
	}
	if e.Kind == Sent && e.Message == "" {
		e.Message = "m" + e.ID[min(1, len(e.ID)):]
	}
	return e.check()
}

// getInbox answers with the messages of a user, newest first.
func (s *server) getInbox(w http.ResponseWriter, r *http.Request) {
	if row, ok := s.user(w, r); ok {
		s.reply(w, http.StatusOK, inboxJSON(row))
	}
}

// getUnread answers with the counter of a user.
func (s *server) getUnread(w http.ResponseWriter, r *http.Request) {
	if row, ok := s.user(w, r); ok {
		s.reply(w, http.StatusOK, struct {
			User   string `json:"user"`
			Unread int64  `json:"unread"`
		}{row.user, row.unread})
	}
}

// user returns the row of the user whom the path names. Nobody is unknown: who has got no mail has an empty box.
func (s *server) user(w http.ResponseWriter, r *http.Request) (*row, bool) {
	user := r.PathValue("user")
	if !userRule.MatchString(user) {
		s.fail(w, http.StatusBadRequest,
			fmt.Errorf("user %.40q: give 1 to 32 small letters, digits, '.', '_' or '-'", user))
		return nil, false
	}
	return s.view.row(user), true
}

// userInbox is a user's inbox and counter as JSON. Each comes from its own topic.
type userInbox struct {
	User     string `json:"user"`
	Unread   int64  `json:"unread"`
	Messages []Item `json:"messages"`
}

func inboxJSON(r *row) userInbox {
	u := userInbox{User: r.user, Unread: r.unread, Messages: r.inbox.Messages}
	if u.Messages == nil {
		u.Messages = []Item{}
	}
	return u
}

func (s *server) fail(w http.ResponseWriter, status int, err error) {
	s.reply(w, status, struct {
		Error string `json:"error"`
	}{err.Error()})
}

func (s *server) reply(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		s.log.Error("encoding an answer failed", zap.Error(err))
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client is gone if this fails
}

// listen opens the address, or a free port of the same host when the port is the default one and taken.
func listen(addr string, orFree bool) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("http: address %q: %w", addr, err)
	}
	if host == "" {
		addr = "127.0.0.1" + addr // never all interfaces by omission
		host = "127.0.0.1"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil && orFree {
		l, err = net.Listen("tcp", net.JoinHostPort(host, "0"))
	}
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	return l, nil
}

// serve answers until ctx is cancelled, and then finishes what it is at, for up to two seconds.
func serve(ctx context.Context, l net.Listener, h http.Handler, log *zap.Logger) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 32 << 10, ErrorLog: zap.NewStdLog(log),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("http: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		return errors.Join(srv.Close())
	}
	return nil
}

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
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

//go:embed page
var pageFiles embed.FS

// Limits of the HTTP side.
const (
	maxBody       = 256 << 10
	appendTimeout = 10 * time.Second
	maxLive       = 64 // open event streams
	livePause     = 250 * time.Millisecond
	liveKeepAlive = 15 * time.Second
	liveWrite     = 10 * time.Second // a client that takes longer is dropped, and comes back by itself
)

// server is the HTTP side. Writing goes to the monolog and nowhere else; reading comes from the view and nowhere else.
type server struct {
	log  *zap.Logger
	view *view
	news appender
	live chan struct{} // one token for each open event stream
	stop <-chan struct{}
}

// appender is the monolog as the server needs it.
type appender interface {
	append(ctx context.Context, c change) (offset int64, err error)
}

func newServer(v *view, news appender, stop <-chan struct{}, log *zap.Logger) *server {
	return &server{log: log, view: v, news: news, live: make(chan struct{}, maxLive), stop: stop}
}

// handler returns the routes. loopback tells that only names of this machine may be asked for, so that a web page from
// elsewhere cannot reach in by pointing its own name here; only then is there what the application shows of itself.
func (s *server) handler(loopback bool, app http.Handler) (http.Handler, error) {
	page, err := fs.Sub(pageFiles, "page")
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /articles", s.getArticles)
	mux.HandleFunc("GET /articles/{name}", s.getArticle)
	mux.HandleFunc("GET /live", s.stream)
	mux.HandleFunc("POST /assets", s.postAsset)
	mux.HandleFunc("DELETE /assets/{kind}/{name}", s.deleteAsset)
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
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "+
			"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
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

func (s *server) getArticles(w http.ResponseWriter, _ *http.Request) {
	s.reply(w, http.StatusOK, s.view.all())
}

// getArticle answers with the article's record in the denormalised topic as it is: there is nothing left to look up.
func (s *server) getArticle(w http.ResponseWriter, r *http.Request) {
	id := KindArticle + "/" + r.PathValue("name")
	a, ok := s.view.article(id)
	if !ok {
		s.fail(w, http.StatusNotFound, fmt.Errorf("%.150q is not published, or not yet", id))
		return
	}
	w.Header().Set("ETag", a.etag)
	if r.Header.Get("If-None-Match") == a.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(a.json) // the client is gone if this fails
}

// postAsset appends an asset. It answers 202 and not 200: the asset is in the monolog, and every view will have it
// soon, but the answer does not wait for any of them.
func (s *server) postAsset(w http.ResponseWriter, r *http.Request) {
	if ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(ct) != "application/json" {
		s.fail(w, http.StatusUnsupportedMediaType, errors.New("send Content-Type: application/json"))
		return
	}
	var a Asset
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(&a)
	if err == nil && dec.Decode(&struct{}{}) != io.EOF {
		err = errors.New("one JSON object is expected")
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		s.fail(w, http.StatusRequestEntityTooLarge, fmt.Errorf("the body is larger than %d bytes", maxBody))
		return
	}
	if err == nil {
		err = a.Check(a.ID)
	}
	if err != nil {
		s.fail(w, http.StatusBadRequest, err)
		return
	}
	s.append(w, r, change{asset: a})
}

// deleteAsset appends a tombstone. The query's version is that of the deletion, one above what is deleted.
func (s *server) deleteAsset(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("kind") + "/" + r.PathValue("name")
	version, err := strconv.ParseInt(r.URL.Query().Get("version"), 10, 64)
	if err != nil || version < 1 {
		err = errors.New("give ?version=, one above that of what is deleted")
	} else {
		err = checkID(id)
	}
	if err != nil {
		s.fail(w, http.StatusBadRequest, err)
		return
	}
	s.append(w, r, change{asset: Asset{ID: id, Version: version}, delete: true})
}

func (s *server) append(w http.ResponseWriter, r *http.Request, c change) {
	ctx, cancel := context.WithTimeout(r.Context(), appendTimeout)
	defer cancel()
	offset, err := s.news.append(ctx, c)
	if err != nil {
		s.log.Warn("append failed", zap.Error(err))
		s.fail(w, http.StatusServiceUnavailable, errors.New("the log did not take the asset in time; send it again as it is"))
		return
	}
	s.reply(w, http.StatusAccepted, struct {
		ID      string `json:"id"`
		Version int64  `json:"version"`
		Topic   string `json:"topic"`
		Offset  int64  `json:"offset"`
	}{c.asset.ID, c.asset.Version, Monolog.Name(), offset})
}

// stream sends server-sent events until the client or the server goes: first all published articles, then what happens
// to them. The id of each event is a list of offsets in the denormalised topic, so that a client that comes back gets
// what it missed, from this process or from another; if that is more than the feed holds, it gets everything again.
func (s *server) stream(w http.ResponseWriter, r *http.Request) {
	select {
	case s.live <- struct{}{}:
		defer func() { <-s.live }()
	default:
		w.Header().Set("Retry-After", "5")
		s.fail(w, http.StatusServiceUnavailable, fmt.Errorf("%d event streams are open already", maxLive))
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	alive := time.NewTicker(liveKeepAlive)
	defer alive.Stop()
	u := s.view.resume(r.Header.Get("Last-Event-ID"))
	for first := true; ; first = false {
		if first || len(u.items) > 0 || u.all != nil {
			if s.send(w, out, u) != nil {
				return
			}
			if !s.wait(r, time.After(livePause)) {
				return
			}
		}
		select {
		case <-r.Context().Done():
			return
		case <-s.stop:
			return
		case <-u.wake:
		case <-alive.C:
			if s.write(w, out, []byte(": still here\n\n")) != nil {
				return
			}
		}
		u = s.view.since(u.next)
	}
}

// wait waits for the pause to be over; false means that the client or the server is gone.
func (s *server) wait(r *http.Request, over <-chan time.Time) bool {
	select {
	case <-r.Context().Done():
		return false
	case <-s.stop:
		return false
	case <-over:
		return true
	}
}

func (s *server) send(w http.ResponseWriter, out *http.ResponseController, u update) error {
	body, err := json.Marshal(struct {
		All   []published `json:"all"`
		Items []feedItem  `json:"items"`
	}{u.all, u.items}) // on one line, as the format wants it
	if err != nil {
		return fmt.Errorf("live: %w", err)
	}
	return s.write(w, out, fmt.Appendf(nil, "id: %s\ndata: %s\n\n", u.id, body))
}

func (s *server) write(w http.ResponseWriter, out *http.ResponseController, b []byte) error {
	if err := out.SetWriteDeadline(time.Now().Add(liveWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	return out.Flush()
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

// listen opens the address, or a free port on its host if that may be.
func listen(addr string, orFree bool) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("http: address %q: %w", addr, err)
	}
	if host == "" {
		addr, host = "127.0.0.1"+addr, "127.0.0.1" // never all interfaces by omission
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
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		return errors.Join(fmt.Errorf("http: stop: %w", err), srv.Close())
	}
	return nil
}

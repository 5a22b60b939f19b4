package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Pace of the event streams.
const (
	livePause     = 250 * time.Millisecond // at most four events a second, each with all that changed
	liveKeepAlive = 15 * time.Second
	liveWrite     = 10 * time.Second // a client that takes longer is dropped, and comes back by itself
)

// rowJSON is what the overview shows of a user.
type rowJSON struct {
	User   string `json:"user"`
	Unread int64  `json:"unread"`
	Total  int    `json:"total"`
	Newest *Item  `json:"newest,omitempty"`
}

// liveAll streams the rows of all users: first those that the client has not seen, then those that change. Each event
// holds the newest state of its rows, so a slow client misses steps but never the last one.
func (s *server) liveAll(w http.ResponseWriter, r *http.Request) {
	s.stream(w, r, "", func(rows []*row) any {
		out := make([]rowJSON, len(rows))
		for i, r := range rows {
			out[i] = rowJSON{User: r.user, Unread: r.unread, Total: len(r.inbox.Messages)}
			if len(r.inbox.Messages) > 0 {
				out[i].Newest = &r.inbox.Messages[0]
			}
		}
		return out
	})
}

// liveUser streams the inbox and the counter of one user.
func (s *server) liveUser(w http.ResponseWriter, r *http.Request) {
	first, ok := s.user(w, r)
	if !ok {
		return
	}
	s.stream(w, r, first.user, func(rows []*row) any {
		if len(rows) == 0 {
			return inboxJSON(first)
		}
		return inboxJSON(rows[0])
	})
}

// stream sends server-sent events until the client or the server goes. The id of each is a cursor of offsets in the
// derived topics, so that a client which comes back gets what changed since, from this process or from another.
func (s *server) stream(w http.ResponseWriter, r *http.Request, only string, render func([]*row) any) {
	select {
	case s.live <- struct{}{}:
		defer func() { <-s.live }()
	default:
		w.Header().Set("Retry-After", "5")
		s.fail(w, http.StatusServiceUnavailable, fmt.Errorf("%d event streams are open already", maxLive))
		return
	}
	out := http.NewResponseController(w)
	watcher, now := s.view.watch(only)
	defer s.view.unwatch(watcher)
	from := parseCursor(r.Header.Get("Last-Event-ID"), s.view.epoch, now)
	w.Header().Set("Content-Type", "text/event-stream")
	// What lies between now and the first turn of the loop is sent twice, which does no harm: it is the same state.
	if s.send(w, out, now, render(s.view.since(from, only))) != nil {
		return
	}
	alive := time.NewTicker(liveKeepAlive)
	defer alive.Stop()
	for {
		var err error
		select {
		case <-r.Context().Done():
			return
		case <-s.stop:
			return
		case <-alive.C:
			err = s.write(w, out, []byte(": still here\n\n"))
		case <-watcher.wake:
			rows, at := s.view.changed(watcher)
			if len(rows) > 0 {
				err = s.send(w, out, at, render(rows))
			}
		}
		if err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-s.stop:
			return
		case <-time.After(livePause):
		}
	}
}

func (s *server) send(w http.ResponseWriter, out *http.ResponseController, at cursor, v any) error {
	body, err := json.Marshal(v) // on one line, as the format wants it
	if err != nil {
		return fmt.Errorf("live: %w", err)
	}
	return s.write(w, out, fmt.Appendf(nil, "id: %s\ndata: %s\n\n", at.id(s.view.epoch), body))
}

func (s *server) write(w http.ResponseWriter, out *http.ResponseController, b []byte) error {
	err := out.SetWriteDeadline(time.Now().Add(liveWrite))
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	return out.Flush()
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"tailrace.dev/serde"
)

// fakeLog is a log that only remembers.
type fakeLog struct {
	mu     sync.Mutex
	events []Event
	err    error
}

func (l *fakeLog) append(_ context.Context, e Event) (partition int32, offset int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, 0, l.err
	}
	l.events = append(l.events, e)
	return 2, int64(len(l.events) - 1), nil
}

// bareView is a view without a broker; feed gives it records.
func bareView() *view {
	return &view{
		log: zap.NewNop(), epoch: "cafe0001", rows: make(map[string]*row), watchers: make(map[*watcher]struct{}),
		at: cursor{make([]int64, partitions), make([]int64, partitions)},
	}
}

// feed gives the view a user's inbox and counter, as one poll would.
func feed(t *testing.T, v *view, offset int64, user string, unread int64, items ...Item) {
	t.Helper()
	in, err := serde.Encode(Inboxes.Value(), Inbox{Messages: items})
	if err != nil {
		t.Fatal(err)
	}
	n, err := serde.Encode(UnreadCounts.Value(), unread)
	if err != nil {
		t.Fatal(err)
	}
	topic := func(name string, value []byte) kgo.FetchTopic {
		r := &kgo.Record{Topic: name, Partition: 1, Offset: offset, Key: []byte(user), Value: value}
		return kgo.FetchTopic{Topic: name, Partitions: []kgo.FetchPartition{{Partition: 1, Records: []*kgo.Record{r}}}}
	}
	v.take(kgo.Fetches{{Topics: []kgo.FetchTopic{topic(Inboxes.Name(), in), topic(UnreadCounts.Name(), n)}}})
}

func testServer(t *testing.T) (*httptest.Server, *view, *fakeLog) {
	t.Helper()
	v, mail := bareView(), new(fakeLog)
	stop := make(chan struct{})
	h, err := newServer(v, mail, stop, zap.NewNop()).handler(true, http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(stop) }) // first, so that no stream is open when the server closes
	return srv, v, mail
}

func post(t *testing.T, srv *httptest.Server, body string, change func(*http.Request)) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/events", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if change != nil {
		change(req)
	}
	return do(t, srv, req)
}

func do(t *testing.T, srv *httptest.Server, req *http.Request) (int, map[string]any) {
	t.Helper()
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer := make(map[string]any)
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode, answer
}

func TestPostEvent(t *testing.T) {
	srv, _, mail := testServer(t)
	status, answer := post(t, srv, `{"kind":"sent","actor":"ann","to":["bob"],"subject":"hi"}`, nil)
	if status != http.StatusAccepted || answer["topic"] != "mail-events" || answer["partition"] != 2.0 ||
		answer["offset"] != 0.0 {
		t.Fatalf("%d %v", status, answer)
	}
	e := mail.events[0]
	if err := e.check(); err != nil || e.ID != answer["id"] || e.Message != answer["message"] {
		t.Fatalf("%+v: %v", e, err)
	}
	again, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if status, answer = post(t, srv, string(again), nil); status != http.StatusAccepted || mail.events[1].ID != e.ID {
		t.Fatalf("a repetition: %d %v", status, answer)
	}
	mail.err = errors.New("broker down")
	status, answer = post(t, srv, string(again), nil)
	if status != http.StatusServiceUnavailable || !strings.Contains(answer["error"].(string), e.ID) {
		t.Fatalf("%d %v", status, answer)
	}
}

func TestPostRefused(t *testing.T) {
	srv, _, mail := testServer(t)
	header := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	good := `{"kind":"read","actor":"bob","message":"m1"}`
	for name, c := range map[string]struct {
		body   string
		change func(*http.Request)
		want   int
	}{
		"no JSON":       {`{`, nil, 400},
		"two":           {good + good, nil, 400},
		"unknown field": {`{"kind":"read","actor":"bob","message":"m1","colour":"red"}`, nil, 400},
		"kind":          {`{"kind":"burnt","actor":"bob","message":"m1"}`, nil, 400},
		"id alone":      {`{"id":"e1","kind":"read","actor":"bob","message":"m1"}`, nil, 400},
		"future":        {`{"id":"e1","at":4102444800000,"kind":"read","actor":"bob","message":"m1"}`, nil, 400},
		"long ago":      {`{"id":"e1","at":1000,"kind":"read","actor":"bob","message":"m1"}`, nil, 400},
		"large":         {`{"kind":"` + strings.Repeat("x", maxBody) + `"}`, nil, 413},
		"form":          {good, header("Content-Type", "text/plain"), 415},
		"other site":    {good, header("Sec-Fetch-Site", "cross-site"), 403},
		"other origin":  {good, header("Origin", "http://evil.example"), 403},
		"other name":    {good, func(r *http.Request) { r.Host = "evil.example" }, 421},
	} {
		if status, answer := post(t, srv, c.body, c.change); status != c.want {
			t.Errorf("%s: %d %v, want %d", name, status, answer, c.want)
		}
	}
	if len(mail.events) > 0 {
		t.Errorf("in the log: %+v", mail.events)
	}
}

func get(t *testing.T, srv *httptest.Server, path string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, srv, req)
}

func TestReads(t *testing.T) {
	srv, v, _ := testServer(t)
	feed(t, v, 0, "bob", 1,
		Item{Message: "m2", From: "cid", At: 2}, Item{Message: "m1", From: "ann", At: 1, Read: true})
	status, answer := get(t, srv, "/inbox/bob")
	if status != 200 || answer["unread"] != 1.0 || len(answer["messages"].([]any)) != 2 {
		t.Errorf("%d %v", status, answer)
	}
	if status, answer = get(t, srv, "/unread/bob"); status != 200 || answer["unread"] != 1.0 {
		t.Errorf("%d %v", status, answer)
	}
	if status, answer = get(t, srv, "/inbox/nobody"); status != 200 || len(answer["messages"].([]any)) != 0 {
		t.Errorf("%d %v", status, answer)
	}
	if status, _ = get(t, srv, "/inbox/B%20B"); status != 400 {
		t.Error(status)
	}
	for _, path := range []string{"/", "/app.js", "/style.css"} {
		if status, _ = get(t, srv, path); status != 200 {
			t.Errorf("%s: %d", path, status)
		}
	}
}

// open opens an event stream and returns a function that reads its next event.
func open(t *testing.T, srv *httptest.Server, path, lastID string) func() (id string, data []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Fatalf("%s %s", resp.Status, ct)
	}
	lines := bufio.NewScanner(resp.Body)
	return func() (id string, data []byte) {
		t.Helper()
		for lines.Scan() {
			line := lines.Bytes()
			switch {
			case bytes.HasPrefix(line, []byte("id: ")):
				id = string(line[4:])
			case bytes.HasPrefix(line, []byte("data: ")):
				data = bytes.Clone(line[6:])
			case len(line) == 0 && data != nil:
				return id, data
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return "", nil
	}
}

func decodeRows(t *testing.T, data []byte) map[string]int64 {
	t.Helper()
	var rows []rowJSON
	if err := json.Unmarshal(data, &rows); err != nil {
		t.Fatal(err)
	}
	m := make(map[string]int64)
	for _, r := range rows {
		m[r.User] = r.Unread
	}
	return m
}

// TestLive: first what is, then what changes; and after a break what changed in between, only.
func TestLive(t *testing.T) {
	srv, v, _ := testServer(t)
	feed(t, v, 10, "ann", 1, Item{Message: "m1"})
	feed(t, v, 11, "bob", 2, Item{Message: "m1"}, Item{Message: "m2"})
	next := open(t, srv, "/live", "")
	_, data := next()
	if rows := decodeRows(t, data); len(rows) != 2 || rows["bob"] != 2 {
		t.Fatalf("first %s", data)
	}
	feed(t, v, 12, "bob", 1, Item{Message: "m1"})
	id, data := next()
	if rows := decodeRows(t, data); len(rows) != 1 || rows["bob"] != 1 {
		t.Fatalf("then %s", data)
	}
	feed(t, v, 13, "cid", 1, Item{Message: "m3"})
	feed(t, v, 14, "cid", 0, Item{Message: "m3", Read: true})
	_, data = open(t, srv, "/live", id)()
	if rows := decodeRows(t, data); len(rows) != 1 || rows["cid"] != 0 {
		t.Fatalf("after a break with id %s: %s", id, data)
	}
	// Positions of topics that do not exist any more mean nothing.
	_, data = open(t, srv, "/live", strings.Replace(id, "cafe0001", "cafe0002", 1))()
	if rows := decodeRows(t, data); len(rows) != 3 {
		t.Fatalf("with a foreign id: %s", data)
	}
}

func TestLiveUser(t *testing.T) {
	srv, v, _ := testServer(t)
	next := open(t, srv, "/events/bob", "")
	var box userInbox
	_, data := next()
	if err := json.Unmarshal(data, &box); err != nil || box.User != "bob" || box.Unread != 0 {
		t.Fatalf("%s: %v", data, err)
	}
	feed(t, v, 3, "ann", 5)
	feed(t, v, 4, "bob", 1, Item{Message: "m1"})
	_, data = next()
	if err := json.Unmarshal(data, &box); err != nil || box.User != "bob" || box.Unread != 1 || len(box.Messages) != 1 {
		t.Fatalf("%s: %v", data, err)
	}
}

func TestCursor(t *testing.T) {
	now := cursor{{5, 0, 7}, {1, 2, 3}}
	id := now.id("beef")
	if id != "beef_5.0.7_1.2.3" {
		t.Fatal(id)
	}
	if got := parseCursor(id, "beef", now); got.id("beef") != id {
		t.Fatal(got)
	}
	for _, bad := range []string{
		"", "beef", "beef_5.0.7", "dead_5.0.7_1.2.3", "beef_6.0.7_1.2.3", "beef_5.0_1.2.3", "beef_5.0.x_1.2.3",
		"beef_5.0.-1_1.2.3", "beef_5.0.7_1.2.3_1", strings.Repeat("_", 5000),
	} {
		if c := parseCursor(bad, "beef", now); c[0] != nil && c[1] != nil {
			t.Errorf("%.30q is taken for %v", bad, c)
		}
	}
}

func FuzzParseCursor(f *testing.F) {
	now := cursor{{5, 0, 7}, {1, 2, 3}}
	f.Add("beef_5.0.7_1.2.3")
	f.Fuzz(func(t *testing.T, id string) {
		c := parseCursor(id, "beef", now)
		c.before(&row{seen: [2]position{{0, 1, true}, {2, 1, true}}})
		for i := range c {
			if c[i] != nil && len(c[i]) != len(now[i]) {
				t.Fatalf("%q: %v", id, c)
			}
		}
	})
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
)

// fakeLog keeps what was appended.
type fakeLog struct {
	changes []change
	err     error
}

func (f *fakeLog) append(_ context.Context, c change) (int64, error) {
	f.changes = append(f.changes, c)
	return int64(len(f.changes)), f.err
}

func testServer(t *testing.T) (*httptest.Server, *view, *fakeLog) {
	t.Helper()
	v, news, stop := newView(1, "e", zap.NewNop()), new(fakeLog), make(chan struct{})
	h, err := newServer(v, news, stop, zap.NewNop()).handler(true, http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(stop) })
	return s, v, news
}

func do(t *testing.T, method, url, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestGetArticle(t *testing.T) {
	s, v, _ := testServer(t)
	if resp, _ := do(t, "GET", s.URL+"/articles/a", ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("an unknown article: %d", resp.StatusCode)
	}
	v.take([]*kgo.Record{written(t, 0, 0, "article/a", "A")})
	resp, body := do(t, "GET", s.URL+"/articles/a", "")
	if resp.StatusCode != http.StatusOK || body != `{"id":"article/a","version":1,"title":"A"}` {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := do(t, "GET", s.URL+"/articles/a", "", "If-None-Match", resp.Header.Get("ETag")); resp.StatusCode !=
		http.StatusNotModified {
		t.Errorf("with its ETag: %d", resp.StatusCode)
	}
	if resp, body := do(t, "GET", s.URL+"/articles", ""); resp.StatusCode != http.StatusOK ||
		!strings.Contains(body, `"article/a"`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, body := do(t, "GET", s.URL+"/", ""); resp.StatusCode != http.StatusOK || !strings.Contains(body, "<title>") {
		t.Errorf("the page: %d", resp.StatusCode)
	}
}

func TestAppend(t *testing.T) {
	const good = `{"id":"tag/t","version":2,"title":"T"}`
	jsonType := []string{"Content-Type", "application/json"}
	tests := []struct {
		name, method, path, body string
		headers                  []string
		want                     int
	}{
		{"asset", "POST", "/assets", good, jsonType, http.StatusAccepted},
		{"deletion", "DELETE", "/assets/tag/t?version=3", "", nil, http.StatusAccepted},
		{"deletion without a version", "DELETE", "/assets/tag/t", "", nil, http.StatusBadRequest},
		{"deletion of no asset", "DELETE", "/assets/cat/t?version=3", "", nil, http.StatusBadRequest},
		{"form", "POST", "/assets", good, []string{"Content-Type", "text/plain"}, http.StatusUnsupportedMediaType},
		{"no version", "POST", "/assets", `{"id":"tag/t"}`, jsonType, http.StatusBadRequest},
		{"bad id", "POST", "/assets", `{"id":"tag/../t","version":1}`, jsonType, http.StatusBadRequest},
		{"unknown field", "POST", "/assets", `{"id":"tag/t","version":1,"name":"x"}`, jsonType, http.StatusBadRequest},
		{"two objects", "POST", "/assets", good + good, jsonType, http.StatusBadRequest},
		{"large", "POST", "/assets", `{"id":"` + strings.Repeat("x", maxBody) + `"}`, jsonType,
			http.StatusRequestEntityTooLarge},
		{"another site", "POST", "/assets", good, append([]string{"Sec-Fetch-Site", "cross-site"}, jsonType...),
			http.StatusForbidden},
		{"another name", "POST", "/assets", good, append([]string{"Host", "evil.example"}, jsonType...),
			http.StatusMisdirectedRequest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _, news := testServer(t)
			resp, body := do(t, tt.method, s.URL+tt.path, tt.body, tt.headers...)
			if resp.StatusCode != tt.want {
				t.Errorf("%d %s, want %d", resp.StatusCode, body, tt.want)
			}
			if appended := len(news.changes) == 1; appended != (tt.want == http.StatusAccepted) {
				t.Errorf("appended: %+v", news.changes)
			}
		})
	}
	t.Run("no log", func(t *testing.T) {
		s, _, news := testServer(t)
		news.err = errors.New("gone")
		if resp, _ := do(t, "POST", s.URL+"/assets", good, jsonType...); resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%d", resp.StatusCode)
		}
	})
}

// TestLive reads the stream: everything first, then what happens, and after a break what was missed.
func TestLive(t *testing.T) {
	s, v, _ := testServer(t)
	v.take([]*kgo.Record{written(t, 0, 0, "article/a", "A")})
	event := func(lastID string, read int) (id string, last struct {
		All   []published `json:"all"`
		Items []feedItem  `json:"items"`
	}) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, "GET", s.URL+"/live", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Last-Event-ID", lastID)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for n := 0; n < read && lines.Scan(); {
			if after, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				id = after
			}
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				last.All, last.Items = nil, nil
				if err := json.Unmarshal([]byte(data), &last); err != nil {
					t.Fatal(err)
				}
				if n++; n == 1 && read > 1 {
					v.take([]*kgo.Record{written(t, 0, 1, "article/b", "B")})
				}
			}
		}
		return id, last
	}
	id, first := event("", 1)
	if id != "e_1" || len(first.All) != 1 || first.All[0].Title != "A" {
		t.Errorf("first %s %+v", id, first)
	}
	id, second := event("", 2)
	if id != "e_2" || second.All != nil || len(second.Items) != 1 || second.Items[0].Title != "B" {
		t.Errorf("second %s %+v", id, second)
	}
	if _, missed := event("e_1", 1); missed.All != nil || len(missed.Items) != 1 || missed.Items[0].ID != "article/b" {
		t.Errorf("after a break %+v", missed)
	}
}

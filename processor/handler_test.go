package processor_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"go.uber.org/zap"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

func lengths(b *processor.Builder) {
	words := stream.From(b, processor.NewTopic("words", serde.String, serde.String))
	checked := stream.Filter(words, func(_, w string) bool {
		if w == "payload-poison" {
			panic("poison")
		}
		return true
	})
	table.To(stream.Count(stream.Group(checked), state.KeyValue("words-counted", serde.String, serde.Int64)),
		processor.NewTopic("lengths", serde.String, serde.Int64))
}

// ask requests a path of a handler.
func ask(t *testing.T, h http.Handler, method, path string) (status int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
	return w.Code, w.Body.String()
}

func TestHandler(t *testing.T) {
	t.Parallel()
	topology, err := processor.Build(lengths)
	if err != nil {
		t.Fatal(err)
	}
	brokers := broker(t, "words", "lengths")
	app, err := processor.New("shown", topology, processor.Config{
		Brokers: brokers, StateDir: t.TempDir(), CommitInterval: 20 * time.Millisecond,
		OnProcessError: processor.Skip(), OnDecodeError: processor.Skip(),
	})
	if err != nil {
		t.Fatal(err)
	}
	h := app.Handler()
	want := func(path string, status int, parts ...string) {
		t.Helper()
		got, body := ask(t, h, http.MethodGet, path)
		for _, part := range parts {
			if !strings.Contains(body, part) {
				t.Errorf("%s: no %q in %s", path, part, body)
			}
		}
		if got != status {
			t.Errorf("%s: %d, want %d: %s", path, got, status, body)
		}
		if strings.Contains(body, "payload") {
			t.Errorf("%s shows a record: %s", path, body)
		}
	}
	want("/livez", http.StatusOK, `"live": true`)
	want("/readyz", http.StatusServiceUnavailable, "it has not been started")
	want("/metrics", http.StatusOK)
	want("/status", http.StatusOK, `"application": "shown"`)

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	produce(t, brokers, "words", "a", "payload-1", "a", "payload-2", "b", "payload-poison", "c", "payload-3")
	for deadline := time.Now().Add(20 * time.Second); app.Status().Processed < 4 || !app.Status().Ready; {
		if time.Now().After(deadline) {
			t.Fatalf("not ready: %+v", app.Status())
		}
		time.Sleep(5 * time.Millisecond)
	}
	want("/livez", http.StatusOK)
	want("/readyz", http.StatusOK, `"ready": true`, `"state": "running"`)
	want("/metrics", http.StatusOK, `tailrace_records_processed_total{app="shown",member="`+app.Config().InstanceID+`"} 4`,
		`tailrace_skipped_records_total{action="skip",app="shown",member="`+app.Config().InstanceID+`",reason="panic"} 1`,
		`reason="failed"} 1`, `tailrace_kafka_fetch_records_total{app="shown",client="member"`)
	want("/topology", http.StatusOK, "Sub-topology: 0 (words)")
	want("/topology?format=text", http.StatusOK, "Sub-topology: 0 (words)")
	want("/topology?format=mermaid", http.StatusOK, "flowchart LR")
	want("/topology?format=dot", http.StatusOK, "digraph")
	want("/topology?format=png", http.StatusBadRequest)
	want("/nothing", http.StatusNotFound)
	_, body := ask(t, h, http.MethodGet, "/status")
	var s processor.Status
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.Tasks) != 3 || s.Tasks[2].Task != (processor.TaskID{Sub: "words", Partition: 2}) ||
		s.Tasks[2].State != processor.TaskRunning || s.Tasks[2].Role != processor.RoleActive {
		t.Errorf("%s", body)
	}
	for _, path := range []string{"/livez", "/readyz", "/metrics", "/status", "/topology"} {
		if status, body := ask(t, h, http.MethodHead, path); status != http.StatusOK {
			t.Errorf("HEAD %s: %d %s", path, status, body)
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
			if status, _ := ask(t, h, method, path); status != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: %d", method, path, status)
			}
		}
	}
	for _, path := range []string{"/debug/pprof/", "/debug/vars"} {
		want(path, http.StatusNotFound)
	}

	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	want("/livez", http.StatusServiceUnavailable, "it has stopped")
	want("/readyz", http.StatusServiceUnavailable, "stopped")
	want("/metrics", http.StatusOK)
}

// TestHandlerKeepsSecrets plants a password and looks for it in all that is shown of an application that cannot use it.
func TestHandlerKeepsSecrets(t *testing.T) {
	t.Parallel()
	topology, err := processor.Build(lengths)
	if err != nil {
		t.Fatal(err)
	}
	const secret = "planted-password"
	app, err := processor.New("secret", topology, processor.Config{
		Brokers: broker(t, "words", "lengths"), StateDir: t.TempDir(),
		Kafka: []kgo.Opt{kgo.SASL(plain.Auth{User: "u", Pass: secret}.AsMechanism())},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_ = app.Run(ctx) // it may end by itself or by the time
	for _, path := range []string{"/livez", "/readyz", "/metrics", "/status", "/topology"} {
		if _, body := ask(t, app.Handler(), http.MethodGet, path); strings.Contains(body, secret) {
			t.Errorf("%s shows the password: %s", path, body)
		}
	}
}

// served serves a handler until the test ends, and returns its address.
func served(t *testing.T, o processor.ServeOptions) string {
	t.Helper()
	addrs := make(chan string, 1)
	o.Listening = func(a net.Addr) { addrs <- a.String() }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "hello %v", err)
	})
	go func() { ended <- processor.Serve(ctx, h, o) }()
	select {
	case addr := <-addrs:
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("serve: %v", err)
			}
		})
		return addr
	case err := <-ended:
		cancel()
		t.Fatal(err)
		return ""
	}
}

func get(t *testing.T, url string, change func(*http.Request)) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestServeOnLoopback(t *testing.T) {
	t.Parallel()
	addr := served(t, processor.ServeOptions{})
	if host, _, err := net.SplitHostPort(addr); err != nil || host != "127.0.0.1" {
		t.Errorf("listens at %s", addr)
	}
	if status, body := get(t, "http://"+addr+"/", nil); status != http.StatusOK || !strings.HasPrefix(body, "hello") {
		t.Errorf("%d %s", status, body)
	}
	status, _ := get(t, "http://"+addr+"/", func(r *http.Request) { r.Host = "evil.example:80" })
	if status != http.StatusMisdirectedRequest {
		t.Errorf("another host's name: %d", status)
	}
	// The server may hang up before it has read all, so that an ordinary client would see a broken connection.
	large := fmt.Sprintf("GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", 1<<20+1,
		strings.Repeat("x", 1<<20+1))
	if answer := raw(t, addr, large); !strings.Contains(answer, "too large") {
		t.Errorf("large body: %s", answer)
	}
	large = "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n"
	if answer := raw(t, addr, large); !strings.HasPrefix(answer, "HTTP/1.1 431 ") {
		t.Errorf("large header: %s", answer)
	}
}

// raw sends a request as it is and returns what is answered.
func raw(t *testing.T, addr, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(conn, request) }() // it may be cut short
	b := make([]byte, 4096)
	n, _ := io.ReadAtLeast(conn, b, 200) // and so may be the answer
	return string(b[:n])
}

func TestServeElsewhere(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"0.0.0.0:0", "[::]:0", "192.0.2.1:80", "example.com:80"} {
		err := processor.Serve(t.Context(), http.NotFoundHandler(), processor.ServeOptions{Addr: addr})
		if !errors.Is(err, processor.ErrOpenAddress) {
			t.Errorf("%s: %v", addr, err)
		}
		tlsOnly := &tls.Config{MinVersion: tls.VersionTLS12}
		err = processor.Serve(t.Context(), http.NotFoundHandler(), processor.ServeOptions{Addr: addr, TLS: tlsOnly})
		if !errors.Is(err, processor.ErrOpenAddress) {
			t.Errorf("%s with TLS alone: %v", addr, err)
		}
	}
	short := processor.ServeOptions{Addr: "0.0.0.0:0", Token: "short"}
	if err := processor.Serve(t.Context(), http.NotFoundHandler(), short); err == nil || strings.Contains(err.Error(), "short") {
		t.Errorf("short token: %v", err)
	}
	if err := processor.Serve(t.Context(), http.NotFoundHandler(), processor.ServeOptions{Addr: "nonsense"}); err == nil {
		t.Error("an address without a port passed")
	}

	const token = "0123456789abcdef0123"
	addr := served(t, processor.ServeOptions{Addr: "0.0.0.0:0", Token: token, Log: zap.NewNop()})
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	url := "http://127.0.0.1:" + port + "/"
	for header, want := range map[string]int{
		"":                      http.StatusUnauthorized,
		"Bearer wrong":          http.StatusUnauthorized,
		"Basic " + token:        http.StatusUnauthorized,
		token:                   http.StatusUnauthorized,
		"Bearer " + token + "x": http.StatusUnauthorized,
		"Bearer " + token:       http.StatusOK,
	} {
		status, _ := get(t, url, func(r *http.Request) { r.Header.Set("Authorization", header) })
		if status != want {
			t.Errorf("%q: %d, want %d", header, status, want)
		}
	}
}

func ExampleApp_Handler() {
	topology, err := processor.Build(lengths)
	if err != nil {
		fmt.Println(err)
		return
	}
	app, err := processor.New("lengths", topology, processor.Config{InMemory: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux() // a server that is there anyway
	mux.Handle("/tailrace/", http.StripPrefix("/tailrace", app.Handler()))
	for _, path := range []string{"/tailrace/livez", "/tailrace/readyz"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		fmt.Println(path, w.Code)
	}
	// Output:
	// /tailrace/livez 200
	// /tailrace/readyz 503
}

func ExampleServe() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	topology, err := processor.Build(lengths)
	if err != nil {
		fmt.Println(err)
		return
	}
	app, err := processor.New("lengths", topology, processor.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	served := make(chan error, 1)
	go func() {
		served <- processor.Serve(ctx, app.Handler(), processor.ServeOptions{Addr: "127.0.0.1:8085"})
	}()
	err = app.Run(ctx)
	cancel()
	fmt.Println(errors.Join(err, <-served))
}

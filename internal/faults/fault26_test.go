//go:build unix

package faults

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// TestFault26Reading reads while members die, commits are refused and brokers are cut off. What is read is a replica of
// the counts, whole in another process, as a global table: it shows committed counts only, and for each key none that
// is below one that it has shown. Stores are not asked from outside yet; of what the health handler tells, it is required that
// it answers all the time.
func TestFault26Reading(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	f := c.feeder(10)
	n := newNetwork()
	dirs := t.TempDir()

	// The reader joins a stream of questions with the replica.
	asks := c.app + "-asks"
	c.topic(asks, 1, nil)
	replica := state.KeyValue("replica", serde.String, serde.Int64)
	var mu sync.Mutex
	var back []string
	read := map[string]int64{}
	answers := 0
	topology, err := processor.Build(func(b *processor.Builder) {
		global := table.Global(b, processor.NewTopic(c.out, serde.String, serde.Int64), replica)
		questions := stream.From(b, processor.NewTopic(asks, serde.String, serde.String))
		answered := stream.JoinGlobal(questions, global, func(_, key string) (string, bool) { return key, true },
			func(_, _ string, count int64) int64 { return count })
		stream.ForEach(answered, func(key string, count int64) {
			mu.Lock()
			defer mu.Unlock()
			answers++
			if count < read[key] {
				back = append(back, fmt.Sprintf("%s: %d after %d", key, count, read[key]))
			}
			read[key] = count
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	reader := setup{app: c.app + "-reader", topology: topology, config: memberConfig(c.addrs, filepath.Join(dirs, "reader"))}
	r := reader.run(t)
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			case <-time.After(2 * time.Millisecond):
			}
			key := fmt.Sprintf("key-%04d", i%10)
			c.cl.Produce(t.Context(), &kgo.Record{Topic: asks, Key: []byte(key), Value: []byte(key)}, nil)
		}
	}()
	t.Cleanup(func() {
		select {
		case <-end:
		default:
			close(end)
		}
		<-done
	})

	// The writer aborts one commit in seven, is cut off, and dies.
	s := c.setup(filepath.Join(dirs, "writer"), nil)
	s.config.Kafka = append(s.config.Kafka, n.dialer())
	var calm atomic.Bool
	var commits atomic.Int64
	s.seams.At = func(point string) error {
		if point != "before-end" || calm.Load() {
			return nil
		}
		switch i := commits.Add(1); {
		case i%20 == 0:
			return engine.ErrCrash
		case i%7 == 0:
			return fmt.Errorf("a commit that is not to be")
		}
		return nil
	}
	stop := f.flow(500)
	var health atomic.Int64
	for i := range 8 {
		if i == 7 {
			calm.Store(true)
		}
		var app *processor.App
		l := s.runApp(t, func(a *processor.App) { app = a })
		for began := time.Now(); time.Since(began) < 400*time.Millisecond || i == 7 && time.Since(began) < 3*time.Second; {
			if l.ended() {
				break
			}
			answer := httptest.NewRecorder()
			app.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/status", nil))
			var status map[string]any
			if err := json.Unmarshal(answer.Body.Bytes(), &status); err != nil || answer.Code != http.StatusOK {
				t.Fatalf("the handler answers %d %q: %v", answer.Code, answer.Body, err)
			}
			health.Add(1)
			if i%3 == 1 {
				n.cut(everywhere, everywhere)
			}
			time.Sleep(20 * time.Millisecond)
			n.heal()
		}
		if i < 7 && !l.ended() {
			l.cancel()
		}
		if i < 7 {
			_ = l.end(time.Minute) // a crash is what it was asked for
			continue
		}
		stop()
		c.settle(60 * time.Second)
		l.stop()
	}
	c.mustBeExact(f)
	// Nothing was read that was not committed in the end, and the last of it is what is committed.
	until(t, 30*time.Second, "the replica to show the last counts", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for key, want := range f.sent {
			if read[key] > int64(want) {
				t.Fatalf("%s: read %d, but %d is the last that was committed", key, read[key], want)
			}
			if read[key] != int64(want) {
				return false
			}
		}
		return true
	})
	close(end)
	<-done
	r.stop()
	mu.Lock()
	defer mu.Unlock()
	if len(back) > 0 {
		t.Errorf("%d answers went back: %v", len(back), back[:min(5, len(back))])
	}
	t.Logf("%d records, %d commits tried, %d answers, %d looks at the handler", f.total, commits.Load(), answers, health.Load())
}

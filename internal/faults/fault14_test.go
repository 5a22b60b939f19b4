//go:build unix

package faults

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// order is what the input of the poison tests holds.
type order struct {
	Seq  int    `json:"seq"`
	Item string `json:"item"`
}

// The items that user code fails at.
const (
	panics = "panics"
	fails  = "fails"
)

var errItem = errors.New("no such item")

// poisonTopology counts orders by key as countTopology does; some of them it cannot decode, some make it panic, and for
// some a processor returns an error, after it has forwarded a record already.
func poisonTopology(in, out string) (*processor.Topology, error) {
	return processor.Build(func(b *processor.Builder) {
		orders := stream.From(b, processor.NewTopic(in, serde.String, serde.JSON[order]()))
		checked := stream.ProcessValues(orders, func() processor.Processor[string, order, string, order] {
			return processor.ProcessorFunc[string, order, string, order](
				func(c *processor.Context[string, order], r processor.Record[string, order]) error {
					if err := c.Forward(r); err != nil || r.Value.Item != fails {
						return err
					}
					return errItem
				})
		})
		passed := stream.Peek(checked, func(_ string, o order) {
			if o.Item == panics {
				panic("order " + strconv.Itoa(o.Seq))
			}
		})
		table.To(stream.Count(stream.Group(passed), counts), processor.NewTopic(out, serde.String, serde.Int64))
	})
}

// poisons are the values that cannot be processed, by the kind of error that a dead letter has.
var poisons = []struct{ kind, value string }{
	{"decode", `{"seq": 1, "item":`}, // truncated
	{"decode", `{"seq": "one"}`},     // wrong type
	{"decode", "\x00\x00\x00\x00\x2a\x02"},
	{"decode", ``},
	{"panic", `{"seq": 4, "item": "` + panics + `"}`},
	{"process", `{"seq": 5, "item": "` + fails + `"}`},
}

// poison is a record that cannot be processed, where it went.
type poison struct {
	kind string
	rec  *kgo.Record
}

// sendPoisoned writes n records of which about one in a hundred cannot be processed, and returns those.
func (f *feeder) sendPoisoned(n int) []poison {
	f.c.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var bad []poison
	records := make([]*kgo.Record, n)
	for i := range records {
		key := fmt.Sprintf("key-%04d", rand.IntN(f.keys))
		rec := &kgo.Record{
			Topic: f.c.in, Key: []byte(key), Headers: []kgo.RecordHeader{{Key: "trace", Value: []byte(strconv.Itoa(i))}},
		}
		records[i] = rec
		if rand.IntN(100) == 0 {
			p := poisons[rand.IntN(len(poisons))]
			rec.Value = []byte(p.value)
			bad = append(bad, poison{p.kind, rec})
			continue
		}
		f.total++
		f.sent[key]++
		rec.Value = fmt.Appendf(nil, `{"seq": %d, "item": "book"}`, f.sent[key])
	}
	if err := f.c.cl.ProduceSync(f.c.t.Context(), records...).FirstErr(); err != nil {
		f.c.t.Errorf("feed: %v", err)
	}
	return bad
}

// TestFault14Poison mixes one percent of records into the input that cannot be decoded or processed, while the process
// is killed again and again. The good ones are counted exactly; the bad ones are left out, and under the policy of
// dead letters each is there exactly once, as it was, with the reason.
func TestFault14Poison(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"skip", "dead letter"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2)
			dead := c.app + "-dead"
			c.topic(dead, 1, nil)
			f := c.feeder(50)
			dir := t.TempDir()
			spec := c.spec(dir)
			spec.Poison = "-"
			if policy == "dead letter" {
				spec.Poison = dead
			}
			bad := f.sendPoisoned(1000)
			kills := 4
			if onKafka() {
				kills = 10
			}
			for range kills {
				m := spawn(t, spec)
				m.waitRunning(30 * time.Second)
				for range 5 {
					bad = append(bad, f.sendPoisoned(200)...)
					time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
				}
				m.kill()
			}
			m := spawn(t, spec)
			m.waitRunning(30 * time.Second)
			c.settle(30 * time.Second)
			m.stop()
			c.mustBeExact(f)
			c.mustMatchChangelog(t, dir)
			if policy == "skip" {
				bad = nil
			}
			c.mustHoldDeadLetters(dead, bad)
			t.Logf("%d kills, %d good records, %d dead letters", kills, f.total, len(bad))
		})
	}
}

// mustHoldDeadLetters compares a topic with the records that should be in it, each once, as they were.
func (c *cluster) mustHoldDeadLetters(topic string, bad []poison) {
	c.t.Helper()
	type place struct {
		partition int32
		offset    int64
	}
	want := map[place]poison{}
	for _, p := range bad {
		want[place{p.rec.Partition, p.rec.Offset}] = p
	}
	records, _ := c.readAll(topic)
	n := 0
	for _, rs := range records {
		for _, r := range rs {
			n++
			h := map[string]string{}
			for _, header := range r.Headers {
				h[header.Key] = string(header.Value)
			}
			partition, err1 := strconv.ParseInt(h[processor.DeadLetterPartition], 10, 32)
			offset, err2 := strconv.ParseInt(h[processor.DeadLetterOffset], 10, 64)
			p, ok := want[place{int32(partition), offset}]
			if err := errors.Join(err1, err2); err != nil || !ok {
				c.t.Errorf("a dead letter of partition %d, offset %d is there again, or should not be (%v)", partition, offset, err)
				continue
			}
			delete(want, place{int32(partition), offset})
			switch {
			case !bytes.Equal(r.Key, p.rec.Key) || !bytes.Equal(r.Value, p.rec.Value):
				c.t.Errorf("dead letter %d: %q=%q, want %q=%q", offset, r.Key, r.Value, p.rec.Key, p.rec.Value)
			case h[processor.DeadLetterTopic] != c.in || h["trace"] != string(p.rec.Headers[0].Value):
				c.t.Errorf("dead letter %d: headers %q", offset, h)
			case h[processor.DeadLetterKind] != p.kind || h[processor.DeadLetterMessage] == "" ||
				h[processor.DeadLetterOperator] == "":
				c.t.Errorf("dead letter %d: kind %q, want %q; headers %q", offset, h[processor.DeadLetterKind], p.kind, h)
			}
		}
	}
	for at, p := range want {
		c.t.Errorf("there is no dead letter of partition %d, offset %d (%s %q)", at.partition, at.offset, p.kind, p.rec.Value)
	}
	if n != len(bad) {
		c.t.Errorf("%d dead letters, want %d", n, len(bad))
	}
}

// TestFault14PoisonFails meets a record that cannot be processed without a policy: the application ends and names it, at
// each start, and nothing behind it is committed. With a policy it then goes on.
func TestFault14PoisonFails(t *testing.T) {
	t.Parallel()
	for _, p := range poisons {
		t.Run(p.kind, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1)
			f := c.feeder(5)
			topology, err := poisonTopology(c.in, c.out)
			if err != nil {
				t.Fatal(err)
			}
			s := setup{app: c.app, topology: topology, config: memberConfig(c.addrs, filepath.Join(t.TempDir(), "state"))}
			good := func(n int) {
				for range n {
					f.sendOrder()
				}
			}
			good(20)
			l := s.run(t)
			c.settle(20 * time.Second)
			bad := &kgo.Record{Topic: c.in, Key: []byte("key-0001"), Value: []byte(p.value)}
			good(5)
			if err := c.cl.ProduceSync(t.Context(), bad).FirstErr(); err != nil {
				t.Fatal(err)
			}
			good(5)
			for range 2 {
				var te *processor.TaskError
				err := l.end(20 * time.Second)
				if !errors.As(err, &te) || te.Topic != c.in || te.Partition != bad.Partition || te.Offset != bad.Offset {
					t.Fatalf("ended with %v, want an error of offset %d", err, bad.Offset)
				}
				want := map[string]error{"decode": processor.ErrDecode, "panic": processor.ErrPanic, "process": errItem}[p.kind]
				if !errors.Is(err, want) {
					t.Errorf("%v is no %v", err, want)
				}
				committed, err := c.adm.FetchOffsets(t.Context(), c.app)
				if at, ok := committed.Lookup(c.in, 0); err != nil || !ok || at.At > bad.Offset {
					t.Errorf("committed %d, behind the record at %d (%v)", at.At, bad.Offset, err)
				}
				l = s.run(t)
			}
			_ = l.end(20 * time.Second) // as before
			s.config.OnDecodeError, s.config.OnProcessError = processor.Skip(), processor.Skip()
			l = s.run(t)
			c.settle(20 * time.Second)
			l.stop()
			c.mustBeExact(f)
		})
	}
}

// sendOrder writes one good order.
func (f *feeder) sendOrder() {
	f.c.t.Helper()
	f.sendKeys(1, func(int) string { return fmt.Sprintf("key-%04d", f.total%f.keys) })
}

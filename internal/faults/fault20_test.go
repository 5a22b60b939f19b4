//go:build unix

package faults

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// TestFault20Tombstones stops a member, deletes rows by another that does its work meanwhile, lets the changelog forget
// the deletions, and starts the first one again, with its state of then. No row that was deleted may be back.
func TestFault20Tombstones(t *testing.T) {
	t.Parallel()
	c := newFake(t, 1) // deletions are forgotten when the test says so
	asked, answered := c.app+"-ask", c.app+"-answers"
	c.topic(asked, 1, nil)
	c.topic(answered, 1, nil)
	rows := state.KeyValue("rows", serde.String, serde.String).
		WithChangelogConfig(map[string]string{"delete.retention.ms": "5000"})
	topology, err := processor.Build(func(b *processor.Builder) {
		kept := table.From(b, processor.NewTopic(c.in, serde.String, serde.String), rows)
		questions := stream.From(b, processor.NewTopic(asked, serde.String, serde.String))
		stream.To(stream.LeftJoin(questions, kept, func(_, _ string, row processor.Opt[string]) string {
			if !row.OK {
				return "none"
			}
			return row.V
		}), processor.NewTopic(answered, serde.String, serde.String))
	})
	if err != nil {
		t.Fatal(err)
	}
	member := func(dir string) setup {
		s := setup{app: c.app, topology: topology, config: memberConfig(c.addrs, dir)}
		s.config.LeaveOnStop = true
		return s
	}
	put := func(topic, key string, value []byte) {
		t.Helper()
		if err := c.cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: []byte(key), Value: value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	first, second := member(t.TempDir()), member(t.TempDir())
	l := first.run(t)
	for i := range 20 {
		put(c.in, fmt.Sprintf("key-%d", i), []byte(strconv.Itoa(i)))
	}
	c.settle(20 * time.Second)
	l.stop()

	l = second.run(t)
	for i := range 10 {
		put(c.in, fmt.Sprintf("key-%d", i), nil)
	}
	for i := range 200 { // what the deletions are compacted with
		put(c.in, "key-19", []byte(strconv.Itoa(1000+i)))
	}
	c.settle(20 * time.Second)
	l.stop()
	time.Sleep(6 * time.Second) // the changelog keeps deletions for five
	c.broker.Cluster().Compact()

	l = first.run(t)
	for i := range 20 {
		put(asked, fmt.Sprintf("key-%d", i), []byte("?"))
	}
	var answers []*kgo.Record
	until(t, 30*time.Second, "the answers", func() bool {
		records, _ := c.readAll(answered)
		answers = records[0]
		return len(answers) >= 20
	})
	l.stop()
	for _, r := range answers {
		i, err := strconv.Atoi(strings.TrimPrefix(string(r.Key), "key-"))
		if err != nil {
			t.Fatal(err)
		}
		want := strconv.Itoa(i)
		switch {
		case i < 10:
			want = "none"
		case i == 19:
			want = "1199"
		}
		if string(r.Value) != want {
			t.Errorf("%s is %s, want %s", r.Key, r.Value, want)
		}
	}
	if l.logs.FilterMessageSnippet("dropping the local rows").Len() == 0 {
		t.Error("the old state was built on")
	}
}

package processor_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// TestTopologyChange runs versions of a program one after the other on the state of the one before. What could be
// misread or forgotten is refused, with all of it listed; what is harmless passes.
func TestTopologyChange(t *testing.T) {
	t.Parallel()
	for _, inMemory := range []bool{false, true} {
		t.Run(map[bool]string{false: "on disk", true: "in memory"}[inMemory], func(t *testing.T) {
			t.Parallel()
			text := serde.String
			in, out := processor.NewTopic("in", text, text), processor.NewTopic("out", text, text)
			count := func(s *state.KeyValueSpec[string, int64], records *stream.Stream[string, string]) {
				table.To(table.Map(stream.Count(stream.Group(records), s), func(_ string, n int64) string {
					return strings.Repeat("*", int(n))
				}), out)
			}
			build := func(declare func(b *processor.Builder)) *processor.Topology {
				t.Helper()
				topology, err := processor.Build(declare)
				if err != nil {
					t.Fatal(err)
				}
				return topology
			}
			brokers := broker(t, "in", "out", "more")
			config := processor.Config{
				Brokers: brokers, StateDir: t.TempDir(), InMemory: inMemory, CommitInterval: 10 * time.Millisecond,
				InstanceID: "one", TransactionalID: "one",
			}
			refused := func(topology *processor.Topology, parts ...string) {
				t.Helper()
				app, err := processor.New("shop", topology, config)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				err = app.Run(ctx)
				if !errors.Is(err, processor.ErrTopologyChanged) {
					t.Fatalf("not refused: %v", err)
				}
				for _, part := range parts {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("error %q does not say %q", err, part)
					}
				}
			}
			ints := state.KeyValue("counts", text, serde.Int64)
			first := build(func(b *processor.Builder) { count(ints, stream.From(b, in)) })
			stop := run(t, first, config)
			produce(t, brokers, "in", "a", "1", "b", "1", "a", "1")
			await(t, brokers, "out", map[string]string{"a": "**", "b": "*"})
			stop()

			// Other operators, another store, another sub-topology.
			harmless := build(func(b *processor.Builder) {
				records := stream.Filter(stream.From(b, in), func(_, v string) bool { return v != "" })
				count(ints, records)
				table.To(table.From(b, processor.NewTopic("more", text, text), state.KeyValue("copy", text, text)), out)
			})
			stop = run(t, harmless, config)
			produce(t, brokers, "in", "b", "1")
			await(t, brokers, "out", map[string]string{"a": "**", "b": "**"})
			stop()

			refused(build(func(b *processor.Builder) {
				sized := state.KeyValue("counts", text, serde.JSON[int64]())
				count(sized, stream.From(b, in))
			}), `store "counts": the serde of its values was int64 and is json`,
				`store "copy" is not in the topology any more`, "shop-copy-changelog", "2 differences")

			accepting := config
			accepting.AcceptTopologyChange = true
			without := build(func(b *processor.Builder) {
				records := stream.From(b, in)
				count(ints, records)
				stream.Count(stream.Group(records), state.KeyValue("again", text, serde.Int64))
			})
			stop = run(t, without, accepting)
			produce(t, brokers, "in", "a", "1")
			await(t, brokers, "out", map[string]string{"a": "***", "b": "**"})
			stop()
			stop = run(t, without, config) // once is enough
			produce(t, brokers, "in", "a", "1")
			await(t, brokers, "out", map[string]string{"a": "****", "b": "**"})
			stop()
			refused(harmless, `store "copy" is back after it was left out`)
		})
	}
}

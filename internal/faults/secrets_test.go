//go:build unix

package faults

import (
	"errors"
	"strings"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// touchy is a serde of strings that cannot decode all of them.
var touchy = serde.Convert(serde.String, func(s string) (string, error) {
	if strings.HasPrefix(s, "!decode") {
		return "", errors.New("this is no value")
	}
	return s, nil
}, func(s string) (string, error) { return s, nil })

// secretsTopology keeps the newest value of each key and writes it, and fails at those that ask for it.
func secretsTopology(in, out string, store *state.KeyValueSpec[string, string]) (*processor.Topology, error) {
	return processor.Build(func(b *processor.Builder) {
		records := stream.From(b, processor.NewTopic(in, serde.String, touchy))
		checked := stream.Map(records, func(_, v string) string {
			switch {
			case strings.HasPrefix(v, "!panic"):
				panic("a record that cannot be processed")
			case strings.HasPrefix(v, "!large"):
				return strings.Repeat(v, 100_000)
			}
			return v
		})
		latest := stream.Aggregate(stream.Group(checked), store, func(_, _, v string) string { return v })
		table.To(latest, processor.NewTopic(out, serde.String, serde.String))
	})
}

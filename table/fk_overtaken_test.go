package table_test

import (
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/table"
)

// A row that is deleted and written again, before the right side has answered to the deletion, leaves no result of what
// it was.
func TestForeignKeyJoinOfARowWrittenAgain(t *testing.T) {
	text := serde.String
	lefts, rights := processor.NewTopic("lefts", text, text), processor.NewTopic("rights", text, text)
	joined := processor.NewTopic("joined", text, text)
	link := table.NewLink("link", text, text, text)
	topology, err := processor.Build(func(b *processor.Builder) {
		l := table.From(b, lefts, state.KeyValue("left-rows", text, text))
		r := table.From(b, rights, state.KeyValue("right-rows", text, text))
		fk := func(_, v string) (string, bool) { _, fk, ok := strings.Cut(v, "|"); return fk, ok }
		table.To(table.ForeignKeyJoin(l, r, link, fk, func(_, l, r string) string { return l + "+" + r }), joined)
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		again string
		want  map[string]string
	}{
		"to nothing":  {"new|nowhere", map[string]string{}},
		"to the same": {"new|a", map[string]string{"k": "new|a+A"}},
		"to another":  {"new|b", map[string]string{"k": "new|b+B"}},
	} {
		d := processortest.New(t, topology)
		l, r := processortest.Input(d, lefts), processortest.Input(d, rights)
		at := func(ms int64, v string) processor.Record[string, string] {
			return processor.Record[string, string]{
				Key: "k", Value: v, Tombstone: v == "", Time: time.UnixMilli(ms),
			}
		}
		// The answer has the time of the right row, and so comes after what is written meanwhile.
		for _, key := range []string{"a", "b"} {
			right := at(100, strings.ToUpper(key))
			right.Key = key
			r.PipeRecord(right)
		}
		l.PipeRecord(at(1, "old|a"))
		var raw []processor.RawRecord
		for i, v := range []string{"", c.again} {
			enc, err := l.Encode(at(int64(2+i), v))
			if err != nil {
				t.Fatal(err)
			}
			raw = append(raw, enc)
		}
		if err := d.PipeRaw(raw...); err != nil {
			t.Fatal(err)
		}
		got := processortest.Map(processortest.Output(d, joined))
		if len(got) != len(c.want) || got["k"] != c.want["k"] {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if d.Dropped(processor.DropOutdated) == 0 {
			t.Errorf("%s: no answer was overtaken", name)
		}
	}
}

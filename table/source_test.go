package table_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// flaky is a string serde that cannot decode one value.
type flaky struct{}

func (flaky) SerdeID() string                             { return "flaky" }
func (flaky) Append(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil }
func (flaky) Decode(src []byte) (v string, err error) {
	if string(src) == "unreadable" {
		return "", serde.ErrInvalid
	}
	return string(src), nil
}

var (
	sourcePrices = processor.NewTopic("source-prices", serde.String, serde.Serde[string](flaky{}))
	sourceAsked  = processor.NewTopic("source-asked", serde.String, serde.String)
	sourceFound  = processor.NewTopic("source-found", serde.String, serde.String)
	sourceByItem = state.KeyValue("source-by-item", serde.String, serde.Serde[string](flaky{}))
)

func sourceTopology(t *testing.T, topic *processor.Topic[string, string]) *processor.Topology {
	t.Helper()
	topology, err := processor.Build(func(b *processor.Builder) {
		prices := table.FromSource(b, topic, sourceByItem)
		checked := table.Map(prices, func(_, v string) string {
			if v == "broken" {
				panic("cannot work with this")
			}
			return v
		})
		table.To(checked, processor.NewTopic("source-checked", serde.String, serde.String))
		stream.To(stream.Join(stream.From(b, sourceAsked), prices, func(_, q, p string) string { return q + "=" + p }),
			sourceFound)
	})
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

// held returns what the store of a driver holds, with the rows' times.
func held(t *testing.T, d *processortest.Driver, spec *state.KeyValueSpec[string, string]) map[string]string {
	t.Helper()
	m := make(map[string]string)
	for e, err := range processortest.Store(d, spec).All() {
		if err != nil {
			t.Fatal(err)
		}
		m[e.Key] = e.Value + "@" + e.Time.Format("05")
	}
	return m
}

func TestFromSourceIsTheTopic(t *testing.T) {
	d := processortest.New(t, sourceTopology(t, sourcePrices))
	prices := processortest.Input(d, sourcePrices)
	at := func(s int) time.Time { return time.Date(2024, 1, 1, 0, 0, s, 0, time.UTC) }
	prices.PipeAt("tea", "1", at(1))
	prices.PipeAt("rye", "2", at(2))
	prices.PipeAt("tea", "3", at(3))
	prices.PipeRecord(processor.Record[string, string]{Key: "rye", Tombstone: true, Time: at(4)})
	prices.PipeAt("oat", "", at(5))
	prices.PipeRecord(processor.Record[string, string]{NoKey: true, Value: "x", Time: at(6)})
	want := map[string]string{"tea": "3@03", "oat": "@05"}
	equal(t, "rows", held(t, d, sourceByItem), want)
	for range 2 {
		d.Crash()
		equal(t, "rows after a crash", held(t, d, sourceByItem), want)
	}
	processortest.Input(d, sourceAsked).PipeAt("tea", "how much", at(7))
	equal(t, "join", processortest.Map(processortest.Output(d, sourceFound)), map[string]string{"tea": "how much=3"})
	if n := d.Dropped(processor.DropNoKey); n != 0 { // counted before the crash
		t.Errorf("dropped %d", n)
	}
}

// TestFromSourceUncommitted finds in a restored table only what is committed, then the rest by processing it.
func TestFromSourceUncommitted(t *testing.T) {
	d := processortest.New(t, sourceTopology(t, sourcePrices), processortest.CommitManually())
	prices := processortest.Input(d, sourcePrices)
	prices.Pipe("tea", "1")
	d.Commit()
	prices.Pipe("tea", "2")
	prices.Pipe("rye", "5")
	d.Crash()
	d.Commit()
	got := processortest.Output(d, processor.NewTopic("source-checked", serde.String, serde.String)).Read()
	if len(got) != 3 || got[1].Value != "2" || got[2].Value != "5" {
		t.Errorf("outputs %v", got)
	}
	d.Crash()
	if m := held(t, d, sourceByItem); len(m) != 2 || !strings.HasPrefix(m["tea"], "2@") {
		t.Errorf("rows %v", m)
	}
}

// TestFromSourceLeftOut shows that rows are those of the topic even where a policy leaves a record out, before and after
// a restore.
func TestFromSourceLeftOut(t *testing.T) {
	d := processortest.New(t, sourceTopology(t, sourcePrices),
		processortest.OnErrors(processor.Skip(), processor.Skip()))
	prices := processortest.Input(d, sourcePrices)
	at := func(s int) time.Time { return time.Date(2024, 1, 1, 0, 0, s, 0, time.UTC) }
	prices.PipeAt("tea", "1", at(1))
	if v, ok, err := processortest.Store(d, sourceByItem).Get("tea"); v != "1" || !ok || err != nil {
		t.Fatalf("tea %q, %v, %v", v, ok, err) // and so in the store's cache
	}
	prices.PipeAt("tea", "broken", at(2))
	prices.PipeAt("rye", "2", at(3))
	prices.PipeAt("rye", "unreadable", at(4))
	want := map[string]string{"tea": "broken@02", "rye": "2@03"}
	equal(t, "rows", held(t, d, sourceByItem), want)
	if v, _, err := processortest.Store(d, sourceByItem).Get("tea"); v != "broken" || err != nil {
		t.Errorf("tea is %q, %v", v, err)
	}
	if n := len(d.Skipped()); n != 2 {
		t.Errorf("%d records left out", n)
	}
	d.Crash()
	equal(t, "rows after a crash", held(t, d, sourceByItem), want)
}

func TestFromSourceTimes(t *testing.T) {
	topic := sourcePrices.WithTimes(func(r processor.Record[string, string]) (time.Time, bool) {
		return time.Date(2024, 1, 1, 0, 0, len(r.Value), 0, time.UTC), r.Value != "none"
	}).InvalidTimes(processor.SkipInvalidTime)
	d := processortest.New(t, sourceTopology(t, topic))
	prices := processortest.Input(d, topic)
	prices.Pipe("tea", "four")
	prices.Pipe("tea", "none")
	prices.Pipe("rye", "twelve")
	want := map[string]string{"tea": "four@04", "rye": "twelve@06"}
	equal(t, "rows", held(t, d, sourceByItem), want)
	d.Crash()
	equal(t, "rows after a crash", held(t, d, sourceByItem), want)
}

func TestFromSourceRefusesOtherKeyEncodings(t *testing.T) {
	type item struct{ Name string }
	topic := processor.NewTopic("items", serde.JSON[item](), serde.String)
	spec := state.KeyValue("by-item", serde.JSON[item](), serde.String)
	topology, err := processor.Build(func(b *processor.Builder) { table.FromSource(b, topic, spec) })
	if err != nil {
		t.Fatal(err)
	}
	d := processortest.New(t, topology, processortest.OnErrors(processor.Skip(), processor.Fail()))
	err = d.PipeRaw(
		processor.RawRecord{Topic: "items", Key: []byte(`{"Name":"tea"}`), Value: []byte("1")},
		processor.RawRecord{Topic: "items", Key: []byte(`{"Name": "rye"}`), Value: []byte("2")},
	)
	if err != nil {
		t.Fatal(err)
	}
	if s := d.Skipped(); len(s) != 1 || !errors.Is(s[0], state.ErrKeyEncoding) || !errors.Is(s[0], processor.ErrDecode) {
		t.Errorf("left out: %v", s)
	}
	d.Crash()
	st := processortest.Store(d, spec)
	for name, want := range map[string]bool{"tea": true, "rye": false} {
		if _, ok, err := st.Get(item{name}); ok != want || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func TestFromSourceMistakes(t *testing.T) {
	for name, c := range map[string]struct {
		topic *processor.Topic[string, string]
		store *state.KeyValueSpec[string, string]
		want  string
	}{
		"serdes": {sourceAsked, sourceByItem, "both must have the same serdes"},
		"wall":   {sourcePrices.WithWallClock(), sourceByItem, "do not follow from the records alone"},
		"times":  {sourcePrices.InvalidTimes(processor.UsePartitionTime), sourceByItem, "do not follow from the records"},
		"topic":  {nil, sourceByItem, "the topic is nil"},
		"store":  {sourcePrices, nil, "a store is nil"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := processor.Build(func(b *processor.Builder) { table.FromSource(b, c.topic, c.store) })
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestReadOnly reads a store that a topic fills from a processor, which must not write to it.
func TestReadOnly(t *testing.T) {
	var writes error
	topology, err := processor.Build(func(b *processor.Builder) {
		processor.ReadOnly(b, sourcePrices, sourceByItem)
		stream.To(stream.Process(stream.From(b, sourceAsked),
			func() processor.Processor[string, string, string, string] { return &asker{writes: &writes} }, sourceByItem),
			sourceFound)
	})
	if err != nil {
		t.Fatal(err)
	}
	if subs := topology.SubTopologies(); len(subs) != 1 {
		t.Fatalf("sub-topologies %q", subs)
	}
	d := processortest.New(t, topology)
	processortest.Input(d, sourcePrices).Pipe("tea", "1")
	processortest.Input(d, sourceAsked).Pipe("tea", "?")
	d.Crash()
	processortest.Input(d, sourceAsked).Pipe("tea", "??")
	got := processortest.Output(d, sourceFound).Read()
	if len(got) != 2 || got[0].Value != "?1" || got[1].Value != "??1" {
		t.Errorf("found %v", got)
	}
	if !errors.Is(writes, state.ErrReadOnly) {
		t.Errorf("writing: %v", writes)
	}
	if _, err := processor.Build(func(b *processor.Builder) {
		processor.ReadOnly(b, sourcePrices, sourceByItem)
		table.From(b, sourcePrices, sourceByItem)
	}); err == nil || !strings.Contains(err.Error(), "already written by") {
		t.Errorf("two owners: %v", err)
	}
}

type asker struct {
	prices *state.KeyValueStore[string, string]
	writes *error
}

func (a *asker) Init(c *processor.Context[string, string]) (err error) {
	a.prices, err = sourceByItem.Open(c)
	return err
}

func (a *asker) Process(c *processor.Context[string, string], r processor.Record[string, string]) error {
	*a.writes = errors.Join(a.prices.Set(r.Key, "mine"), a.prices.Delete(r.Key))
	price, _, err := a.prices.Get(r.Key)
	if err != nil {
		return err
	}
	return c.Forward(processor.WithValue(r, r.Value+price))
}

func equal(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
		return
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: got %v, want %v", what, got, want)
			return
		}
	}
}

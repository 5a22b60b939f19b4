package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// passed and failed count the cases, for the closing line.
var passed, failed int

func TestMain(m *testing.M) {
	code := m.Run()
	if passed+failed > 0 {
		fmt.Printf("%d passed, %d failed\n", passed, failed)
	}
	os.Exit(code)
}

// TestConformance replays every case. One that cannot be said in the public API has failed.
func TestConformance(t *testing.T) {
	for _, file := range caseFiles(t) {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		ok := t.Run(name, func(t *testing.T) { replay(t, loadCase(t, file)) })
		if ok {
			passed++
		} else {
			failed++
		}
	}
}

// replayer runs a case in its own way.
type replayer func(t *testing.T, c *testCase) result

// replayers are the cases that do not go through a topology of the DSL.
var replayers = map[string]replayer{}

// topologies build the others, by spec.op. They are pure functions of the spec.
var topologies = map[string]func(b *builder){}

func replay(t *testing.T, c *testCase) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil { // the other cases are to be counted
			t.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	op := c.Spec.Op
	if op == "" {
		op = "partition-choice"
	}
	var got result
	switch {
	case replayers[op] != nil:
		got = replayers[op](t, c)
	case topologies[op] != nil:
		got = pipe(t, c, topologies[op])
	default:
		t.Fatalf("op %q cannot be expressed", op)
	}
	for _, m := range mismatches(c, parseRows(t, c.Expected), parseRows(t, c.Final), got) {
		t.Error(m)
	}
}

// builder is what a topology is made with: all keys and values are strings.
type builder struct {
	*processor.Builder
	spec
	topics map[string]*processor.Topic[string, string]
	// prefix goes before all names, where several cases are built into one topology.
	prefix string
	// gather gives repartition topics one partition, for results that depend on the times of all keys.
	gather bool
	// final reads the rows of the store that spec.final_store asks for, where it is run by a driver; finalIn does from
	// rows that were found otherwise.
	final     func(d *processortest.Driver) []row
	finalIn   func(e state.Env) []row
	finalSpec state.AnySpec
}

func newBuilder(b *processor.Builder, s spec) *builder {
	return &builder{Builder: b, spec: s, topics: make(map[string]*processor.Topic[string, string])}
}

// outputs returns the names of the topics that a case looks at.
func (s *spec) outputs() []string {
	if s.Outputs == nil {
		return []string{"output"}
	}
	return s.Outputs
}

// named returns the name of a topic or store in the topology, for its name in the case.
func (b *builder) named(name string) string { return b.prefix + name }

// topic returns the descriptor of a topic, one for each name.
func (b *builder) topic(name string) *processor.Topic[string, string] {
	if b.topics[name] == nil {
		b.topics[name] = processor.NewTopic(b.named(name), serde.String, serde.String)
	}
	return b.topics[name]
}

// store declares a key-value store of strings.
func (b *builder) store(name string) *state.KeyValueSpec[string, string] {
	return state.KeyValue(b.named(name), serde.String, serde.String)
}

// repartition declares a repartition topic of strings.
func (b *builder) repartition(name string) *processor.Repartition[string, string] {
	r := processor.NewRepartition(b.named(name), serde.String, serde.String)
	if b.gather {
		r = r.WithPartitions(1)
	}
	return r
}

// join fills the joiner's template.
func (b *builder) join(l, r string) string {
	template := b.Joiner
	if template == "" {
		template = "{l}+{r}"
	}
	out := ""
	for i := 0; i < len(template); {
		switch {
		case len(template) >= i+3 && template[i:i+3] == "{l}":
			out += l
			i += 3
		case len(template) >= i+3 && template[i:i+3] == "{r}":
			out += r
			i += 3
		default:
			out += template[i : i+1]
			i++
		}
	}
	return out
}

// opt reads an absent value as "null", as Java does in text.
func opt(o processor.Opt[string]) string { return o.Or("null") }

func millis(t time.Time) text { return some(strconv.FormatInt(t.UnixMilli(), 10)) }

// readFinal makes spec.final_store readable from a store, which the case calls by this name.
func readFinal[V any](b *builder, spec *state.KeyValueSpec[string, V], name string) {
	if b.Final == "" || b.Final != name {
		return
	}
	rows := func(s *state.KeyValueStore[string, V]) []row {
		var rows []row
		for e, err := range s.All() {
			if err != nil {
				return []row{{"error": some(err.Error())}}
			}
			rows = append(rows, row{"key": some(e.Key), "value": some(fmt.Sprint(e.Value)), "ts": millis(e.Time)})
		}
		return rows
	}
	b.final = func(d *processortest.Driver) []row { return rows(processortest.Store(d, spec)) }
	b.finalSpec = spec
	b.finalIn = func(e state.Env) []row {
		s, err := spec.Open(e)
		if err != nil {
			return []row{{"error": some(err.Error())}}
		}
		return rows(s)
	}
}

// pipe runs a case through a topology, one input at a time.
func pipe(t *testing.T, c *testCase, build func(b *builder)) result {
	t.Helper()
	return pipeEach(t, c, build, func(*processortest.Driver, bool) {})
}

// pipeEach is pipe with something to do after each input, which is told when it is the last.
func pipeEach(
	t *testing.T, c *testCase, build func(b *builder), each func(d *processortest.Driver, last bool),
	opts ...processortest.Option,
) result {
	t.Helper()
	b := newBuilder(processor.NewBuilder(), c.Spec)
	build(b)
	topology, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	d := processortest.New(t, topology, append(opts, processortest.StartingAt(time.UnixMilli(0).UTC()))...)
	names := c.Spec.outputs()
	outputs := make([]*processortest.OutputTopic[string, string], len(names))
	for i, name := range names {
		outputs[i] = processortest.Output(d, b.topic(name))
	}
	var got result
	for step, in := range c.Inputs {
		if in.Advance != nil {
			d.AdvanceWallClock(time.Duration(*in.Advance) * time.Millisecond)
		} else {
			processortest.Input(d, b.topic(in.Topic)).PipeRecord(in.record())
		}
		each(d, step == len(c.Inputs)-1)
		for i, out := range outputs {
			for _, r := range out.Read() {
				got.records = append(got.records, outputRow(names[i], r, step))
			}
		}
	}
	for reason := range processor.DropReasons() {
		if reason != processor.DropNoPartition {
			got.dropped += d.Dropped(reason)
		}
	}
	if b.final != nil {
		got.final = b.final(d)
	}
	return got
}

func (in input) record() processor.Record[string, string] {
	return processor.Record[string, string]{
		Key: in.Key.s, NoKey: !in.Key.ok, Value: in.Value.s, Tombstone: !in.Value.ok, Time: time.UnixMilli(in.TS).UTC(),
	}
}

func outputRow(topic string, r processor.Record[string, string], step int) row {
	o := row{"topic": some(topic), "ts": millis(r.Time), "after": some(strconv.Itoa(step)), "key": {}, "value": {}}
	if !r.NoKey {
		o["key"] = some(r.Key)
	}
	if !r.Tombstone {
		o["value"] = some(r.Value)
	}
	return o
}

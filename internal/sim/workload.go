package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// app is the id of the simulated application.
const app = "sim"

// workload is a topology with the input that it is run on, and the oracle of what must come out.
type workload struct {
	name     string
	topology *processor.Topology
	program  *engine.Program
	subs     []sub
	inputs   []string // the user's topics that are read
	internal []string // the topics between the sub-topologies
	// ordered tells that the results depend on the order of the times of two inputs, so that a task has to wait for both.
	ordered bool
	// input makes the nth of a run's records. Times rise, except where the topology has to cope with less.
	input func(r *rand.Rand, n int) input
	// judge says what is wrong with what came out.
	judge func(o *outcome) []string
}

// sub is a sub-topology.
type sub struct {
	name   string
	inputs []string
	stores []store
}

// store is a store of a sub-topology.
type store struct {
	name, changelog string
	expires         bool   // rows leave without a word in the changelog
	source          string // the topic that it follows instead of having a changelog
	row             func(r *processor.RawRecord) (key, row []byte, ok bool)
}

// input is a record of the user's.
type input struct {
	topic      string
	key, value string
	deleted    bool
	time       int64
}

// lastKey is the key of the records that end an input; the oracle leaves out what comes of them.
const lastKey = "~"

// maxIdle is longer than any run in virtual time: tasks wait for both inputs as long as it takes.
const maxIdle = 1000 * time.Hour

// epoch is when virtual time begins.
const epoch = 1_700_000_000_000

const (
	windowSize  = 10 * time.Second
	windowGrace = 5 * time.Second
	// windowRetention is how long rows of windows are kept.
	windowRetention = 20 * time.Second
)

var (
	inputTopic  = processor.NewTopic("in", serde.String, serde.String)
	leftTopic   = processor.NewTopic("left", serde.String, serde.String)
	rightTopic  = processor.NewTopic("right", serde.String, serde.String)
	textsTopic  = processor.NewTopic("out", serde.String, serde.String)
	countsTopic = processor.NewTopic("out", serde.String, serde.Int64)
	windowTopic = processor.NewTopic("out", state.WindowedSerde(serde.String), serde.Int64)
	byValue     = processor.NewRepartition("by-value", serde.String, serde.String)
	countStore  = state.KeyValue("counts", serde.String, serde.Int64)
	windowStore = state.Window("windows", serde.String, serde.Int64, windowRetention)
	heldStore   = state.Buffer("held", state.WindowedSerde(serde.String), serde.Int64)
	leftStore   = state.KeyValue("lefts", serde.String, serde.String)
	rightStore  = state.KeyValue("rights", serde.String, serde.String)
	link        = table.NewLink("link", serde.String, serde.String, serde.String)
)

// workloads are built once, because a topology is immutable, and may be shared by runs in parallel.
var workloads = sync.OnceValue(func() []*workload {
	return []*workload{
		newWorkload("count", false, []string{"in"}, inputCount, judgeCount, func(b *processor.Builder) {
			rekeyed := stream.Rekey(stream.From(b, inputTopic), func(_, v string) string { return v })
			counted := stream.Count(stream.Group(stream.Repartition(rekeyed, byValue)), countStore)
			table.To(counted, countsTopic)
		}),
		newWorkload("window", false, []string{"in"}, inputWindow, judgeWindow, func(b *processor.Builder) {
			table.To(countWindows(b), windowTopic)
		}),
		newWorkload("suppress", false, []string{"in"}, inputWindow, judgeSuppress, func(b *processor.Builder) {
			table.To(table.SuppressUntilClose(countWindows(b), heldStore, table.Limits{}), windowTopic)
		}),
		newWorkload("stream-table", true, []string{"left", "right"}, inputStreamTable, judgeStreamTable,
			func(b *processor.Builder) {
				rights := table.From(b, rightTopic, rightStore)
				stream.To(stream.Join(stream.From(b, leftTopic), rights, joined), textsTopic)
			}),
		newWorkload("stream-source", true, []string{"left", "right"}, inputStreamTable, judgeStreamTable,
			func(b *processor.Builder) {
				rights := table.FromSource(b, rightTopic, rightStore)
				stream.To(stream.Join(stream.From(b, leftTopic), rights, joined), textsTopic)
			}),
		newWorkload("table-table", true, []string{"left", "right"}, inputTables, judgeTables,
			func(b *processor.Builder) {
				rights := table.From(b, rightTopic, rightStore)
				lefts := table.From(b, leftTopic, leftStore)
				table.To(table.Join(lefts, rights, joined), textsTopic)
			}),
		newWorkload("foreign-key", false, []string{"left", "right"}, inputForeign, judgeForeign,
			func(b *processor.Builder) {
				rights := table.From(b, rightTopic, rightStore)
				lefts := table.From(b, leftTopic, leftStore)
				fk := func(_, l string) (string, bool) { return foreignKey(l), true }
				table.To(table.ForeignKeyJoin(lefts, rights, link, fk, joined), textsTopic)
			}),
	}
})

func countWindows(b *processor.Builder) *table.Table[state.Windowed[string], int64] {
	windows := stream.Tumbling(windowSize).Grace(windowGrace)
	return stream.Count(stream.WindowBy(stream.Group(stream.From(b, inputTopic)), windows), windowStore)
}

func joined(_, l, r string) string { return l + "+" + r }

// foreignKey is the part of a left row before the colon.
func foreignKey(l string) string {
	fk, _, _ := strings.Cut(l, ":")
	return fk
}

func newWorkload(
	name string, ordered bool, inputs []string, in func(*rand.Rand, int) input, judge func(*outcome) []string,
	build func(*processor.Builder),
) *workload {
	topology, err := processor.Build(build)
	if err != nil {
		panic(fmt.Sprintf("sim: workload %s: %v", name, err)) //nolint:forbidigo // the workloads are constants of this package
	}
	w := &workload{name: name, topology: topology, inputs: inputs, ordered: ordered, input: in, judge: judge}
	w.program = &engine.Program{App: app, Fingerprint: topology.Fingerprint()}
	for _, sn := range topology.SubTopologies() {
		sb := sub{name: sn, inputs: topology.Sources(app, sn)}
		es := engine.Sub{Name: sn}
		for _, in := range sb.inputs {
			internal := !slices.Contains(inputs, in)
			if internal {
				w.internal = append(w.internal, in)
			}
			es.Sources = append(es.Sources, engine.Source{Topic: in, Internal: internal})
		}
		followed := topology.Followed(app, sn)
		for _, spec := range topology.Stores(sn) {
			st := store{name: spec.Name(), changelog: processor.StoreTopic(app, spec), expires: spec.Kind() == "window"}
			if i := slices.IndexFunc(followed, func(f processor.Followed) bool { return f.Store == st.name }); i >= 0 {
				st.changelog, st.source, st.row = "", followed[i].Topic, followed[i].Row
			}
			es.Stores = append(es.Stores, engine.Store{Name: st.name, Changelog: st.changelog, Source: st.source})
			sb.stores = append(sb.stores, st)
		}
		w.subs = append(w.subs, sb)
		w.program.Subs = append(w.program.Subs, es)
	}
	return w
}

// inputCount makes records whose values are the keys that are counted.
func inputCount(r *rand.Rand, n int) input {
	return input{topic: "in", key: fmt.Sprintf("k%d", r.IntN(5)), value: fmt.Sprintf("v%d", r.IntN(6)), time: epoch + int64(n)*100}
}

// inputWindow makes records whose times are out of order, some of them too late for their window.
func inputWindow(r *rand.Rand, n int) input {
	back := int64(0)
	if r.IntN(3) == 0 {
		back = r.Int64N(25_000)
	}
	return input{topic: "in", key: fmt.Sprintf("k%d", r.IntN(4)), value: "x", time: epoch + 30_000 + int64(n)*900 - back}
}

// inputStreamTable makes records of both sides with times of their own. Rows are sometimes deleted.
func inputStreamTable(r *rand.Rand, n int) input {
	in := input{topic: "left", key: fmt.Sprintf("k%d", r.IntN(4)), value: fmt.Sprintf("l%d", n), time: epoch + int64(n)*10}
	if r.IntN(2) == 0 {
		in.topic, in.value, in.deleted = "right", fmt.Sprintf("r%d", n), r.IntN(5) == 0
	}
	return in
}

func inputTables(r *rand.Rand, n int) input {
	in := inputStreamTable(r, n)
	in.deleted = r.IntN(6) == 0
	return in
}

// inputForeign makes left rows that refer to right ones.
func inputForeign(r *rand.Rand, n int) input {
	in := input{topic: "left", key: fmt.Sprintf("k%d", r.IntN(5)), time: epoch + int64(n)*10, deleted: r.IntN(8) == 0}
	in.value = fmt.Sprintf("f%d:%06d", r.IntN(3), n)
	if r.IntN(3) == 0 {
		in.topic, in.key, in.value = "right", fmt.Sprintf("f%d", r.IntN(3)), fmt.Sprintf("%06d", n)
	}
	return in
}

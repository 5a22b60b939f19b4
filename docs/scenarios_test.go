package docs_test

import (
	"fmt"
	"strings"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// The topics and stores of the pictures and of the snippets in the pages.
var (
	Lefts   = processor.NewTopic("lefts", serde.String, serde.String)
	Rights  = processor.NewTopic("rights", serde.String, serde.String)
	Results = processor.NewTopic("results", serde.String, serde.String)

	LeftRows  = state.KeyValue("left-rows", serde.String, serde.String)
	RightRows = state.KeyValue("right-rows", serde.String, serde.String)
	History   = state.Versioned("history", serde.String, serde.String, time.Minute)
	Pairs     = state.Join("pairs", serde.String, serde.String, serde.String, time.Minute)
	Waiting   = state.Buffer("waiting", serde.String, serde.String)
	Link      = table.NewLink("link", serde.String, serde.String, serde.String)
	Windows   = state.Window("windows", serde.String, serde.Int64, state.Forever)
	Activity  = state.Session("activity", serde.String, serde.Int64, time.Minute)
	Final     = state.Buffer("final", state.WindowedSerde(serde.String), serde.Int64)
)

// step is a record that goes in; on is the topic.
type step struct {
	on     *processor.Topic[string, string]
	key    string
	value  string
	delete bool
	at     int64
}

func left(at int64, value string) step  { return step{on: Lefts, key: "a", value: value, at: at} }
func right(at int64, value string) step { return step{on: Rights, key: "a", value: value, at: at} }

// record is one whose value does not matter: it shows its time.
func record(at int64) step { return left(at, fmt.Sprint(at)) }

func (s step) of(key string) step { s.key = key; return s }
func (s step) gone() step         { s.delete = true; return s }

type declare = func(b *processor.Builder) *stream.Stream[string, string]

type result struct {
	step int // after which it came out
	processor.Record[string, string]
	drops int64 // records that were too late, at that step; then there is no Record
}

// run pipes the steps through a topology and returns what came out, in order.
func run(steps []step, f declare) ([]result, *processortest.Driver, error) {
	t, err := processor.Build(func(b *processor.Builder) { stream.To(f(b), Results) })
	if err != nil {
		return nil, nil, err
	}
	d := processortest.New(processortest.Panics, t)
	ins := map[*processor.Topic[string, string]]*processortest.InputTopic[string, string]{}
	for _, s := range steps {
		if ins[s.on] == nil {
			ins[s.on] = processortest.Input(d, s.on)
		}
	}
	out := processortest.Output(d, Results)
	var all []result
	for i, s := range steps {
		before := d.Dropped(processor.DropLate)
		ins[s.on].PipeRecord(processor.Record[string, string]{
			Key: s.key, Value: s.value, Tombstone: s.delete, Time: time.UnixMilli(s.at),
		})
		for _, r := range out.Read() {
			all = append(all, result{step: i, Record: r})
		}
		if n := d.Dropped(processor.DropLate) - before; n > 0 {
			all = append(all, result{step: i, drops: n})
		}
	}
	return all, d, nil
}

// The functions of the joins: both values with a dot between them, a dash where there is none.
func pair(_, l, r string) string { return l + "·" + r }

func leftPair(_, l string, r processor.Opt[string]) string { return l + "·" + r.Or("–") }

func outerPair(_ string, l, r processor.Opt[string]) string { return l.Or("–") + "·" + r.Or("–") }

// windowed writes a table by windows as a stream whose keys and values are text.
func windowed(t *table.Table[state.Windowed[string], int64]) *stream.Stream[string, string] {
	type in = processor.Record[state.Windowed[string], int64]
	return stream.MapRecord(stream.Changes(t), func(r in) processor.Record[string, string] {
		key := fmt.Sprintf("%d/%d", r.Key.StartMillis, r.Key.EndMillis)
		if r.Tombstone {
			return processor.WithKey(processor.WithoutValue[string](r), key)
		}
		return processor.WithKey(processor.WithValue(r, fmt.Sprint(r.Value)), key)
	})
}

// scenario is a picture that a run fills in.
type scenario struct {
	picture
	steps   []step
	keys    bool // keys are shown
	times   bool // times are shown where the axis is order
	inputs  []input
	results []lanes
}

type input struct {
	label, under string
	on           *processor.Topic[string, string]
	class        string
	reach        int64 // draw how far a record looks for partners
}

type lanes struct {
	label, under string
	build        declare
}

const ms = time.Millisecond

var (
	leftStream  = input{"left", "a stream", Lefts, "left", 0}
	rightStream = input{"right", "a stream", Rights, "right", 0}
	leftTable   = input{"left", "a table", Lefts, "left", 0}
	rightTable  = input{"right", "a table", Rights, "right", 0}
	records     = input{"records", "", Lefts, "left", 0}
)

func fromLeft(b *processor.Builder) *stream.Stream[string, string]  { return stream.From(b, Lefts) }
func fromRight(b *processor.Builder) *stream.Stream[string, string] { return stream.From(b, Rights) }
func leftRows(b *processor.Builder) *table.Table[string, string] {
	return table.From(b, Lefts, LeftRows)
}
func rightRows(b *processor.Builder) *table.Table[string, string] {
	return table.From(b, Rights, RightRows)
}
func leftGroup(b *processor.Builder) *stream.Grouped[string, string] {
	return stream.Group(fromLeft(b))
}

func scenarios() []scenario {
	within := stream.Within(10 * ms)
	graced := within.Grace(20 * ms)
	foreign := func(_, v string) (string, bool) { return v, v != "" }
	tumbling := stream.Tumbling(10 * ms).Grace(5 * ms)
	count := func(w stream.Windows) declare {
		return func(b *processor.Builder) *stream.Stream[string, string] {
			return windowed(stream.Count(stream.WindowBy(leftGroup(b), w), Windows))
		}
	}
	sessions := func(w stream.SessionWindows) declare {
		return func(b *processor.Builder) *stream.Stream[string, string] {
			return windowed(stream.Count(stream.SessionBy(leftGroup(b), w), Activity))
		}
	}
	return []scenario{
		{
			picture: picture{name: "stream-and-table", title: "A stream of changes, and the table that it leads to"},
			keys:    true,
			steps: []step{
				left(1, "Oslo").of("ann"), left(2, "Rome").of("bob"), left(3, "Bonn").of("ann"), left(4, "").of("bob").gone(),
			},
			inputs: []input{{"stream", "changes in the log", Lefts, "left", 0}},
			results: []lanes{
				{"table", "its rows after each", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Changes(leftRows(b))
				}},
			},
		},
		{
			picture: picture{name: "join-stream-stream", title: "Streams joined within 10 ms: stream.JoinWindow and its kin",
				scale: 10, until: 66, tick: 10},
			steps: []step{left(5, "A"), right(12, "x"), left(24, "B"), right(40, "y"), right(46, "z"), left(54, "C")},
			inputs: []input{
				{"left", "a stream", Lefts, "left", 10}, rightStream,
			},
			results: []lanes{
				{"JoinWindow", "inner", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.JoinWindow(fromLeft(b), fromRight(b), within, Pairs, pair)
				}},
				{"LeftJoinWindow", "left", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.LeftJoinWindow(fromLeft(b), fromRight(b), within, Pairs, leftPair)
				}},
				{"OuterJoinWindow", "outer", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.OuterJoinWindow(fromLeft(b), fromRight(b), within, Pairs, outerPair)
				}},
			},
		},
		{
			picture: picture{name: "join-stream-stream-grace", title: "A late record and a left join within 10 ms"},
			times:   true,
			steps:   []step{left(5, "A"), right(30, "x"), right(12, "y"), left(60, "B")},
			inputs:  []input{leftStream, rightStream},
			results: []lanes{
				{"LeftJoinWindow", "without grace", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.LeftJoinWindow(fromLeft(b), fromRight(b), within, Pairs, leftPair)
				}},
				{"LeftJoinWindow", "with 20 ms of grace", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.LeftJoinWindow(fromLeft(b), fromRight(b), graced, Pairs, leftPair)
				}},
			},
		},
		{
			picture: picture{name: "join-self", title: "A stream joined with itself within 10 ms", scale: 11, until: 50, tick: 10},
			steps:   []step{left(5, "A"), left(13, "B"), left(34, "C")},
			inputs:  []input{{"stream", "", Lefts, "left", 10}},
			results: []lanes{
				{"SelfJoinWindow", "", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.SelfJoinWindow(fromLeft(b), within, Pairs, pair)
				}},
			},
		},
		{
			picture: picture{name: "join-stream-table", title: "A stream joined with a table, in the order of processing"},
			steps: []step{
				left(1, "A"), right(2, "x"), left(3, "B"), right(4, "y"), left(5, "C"), right(6, "").gone(), left(7, "D"),
			},
			inputs: []input{{"stream", "left", Lefts, "left", 0}, {"table", "right", Rights, "right", 0}},
			results: []lanes{
				{"stream.Join", "inner", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Join(fromLeft(b), rightRows(b), pair)
				}},
				{"stream.LeftJoin", "left", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.LeftJoin(fromLeft(b), rightRows(b), leftPair)
				}},
			},
		},
		{
			picture: picture{name: "join-stream-table-grace", title: "A stream joined with a table whose change comes late, at 15 after 20"},
			times:   true,
			steps:   []step{right(1, "x"), left(20, "A"), right(15, "y"), left(10, "B"), left(40, "C").of("b")},
			inputs:  []input{{"stream", "", Lefts, "left", 0}, {"table", "", Rights, "right", 0}},
			results: []lanes{
				{"Join", "table.From", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Join(fromLeft(b), rightRows(b), pair)
				}},
				{"Join", "table.FromVersioned", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Join(fromLeft(b), table.FromVersioned(b, Rights, History), pair)
				}},
				{"JoinGrace, 10 ms", "table.FromVersioned", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.JoinGrace(fromLeft(b), table.FromVersioned(b, Rights, History), 10*ms, Waiting, pair)
				}},
			},
		},
		{
			picture: picture{name: "join-table-table", title: "Two tables joined by key, in the order of processing"},
			steps:   []step{left(1, "A"), right(2, "x"), left(3, "B"), right(4, "").gone(), right(5, "y"), left(6, "").gone(), right(7, "z")},
			inputs:  []input{leftTable, rightTable},
			results: []lanes{
				{"table.Join", "inner", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Changes(table.Join(leftRows(b), rightRows(b), pair))
				}},
				{"table.LeftJoin", "left", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Changes(table.LeftJoin(leftRows(b), rightRows(b), leftPair))
				}},
				{"table.OuterJoin", "outer", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Changes(table.OuterJoin(leftRows(b), rightRows(b), outerPair))
				}},
			},
		},
		{
			picture: picture{name: "join-foreign-key", title: "Two tables joined by a key that is in the left value: who lives where"},
			keys:    true,
			steps: []step{
				left(1, "Oslo").of("ann"), left(2, "Oslo").of("bob"), right(3, "NO").of("Oslo"),
				left(4, "Rome").of("ann"), right(5, "N").of("Oslo"), right(6, "IT").of("Rome"),
			},
			inputs: []input{leftTable, rightTable},
			results: []lanes{
				{"ForeignKeyJoin", "inner", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Changes(table.ForeignKeyJoin(leftRows(b), rightRows(b), Link, foreign, pair))
				}},
				{"LeftForeignKeyJoin", "left", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Changes(table.LeftForeignKeyJoin(leftRows(b), rightRows(b), Link, foreign, leftPair))
				}},
			},
		},
		{
			picture: picture{name: "join-many", title: "A table joined with all the rows that each of its rows refers to: pages and their parts"},
			keys:    true,
			steps: []step{
				right(1, "L1").of("l"), left(2, "l,p").of("home"), right(3, "P1").of("p"), right(4, "L2").of("l"),
				right(5, "").of("p").gone(), left(6, "l").of("home"),
			},
			inputs: []input{leftTable, rightTable},
			results: []lanes{
				{"JoinMany", "", func(b *processor.Builder) *stream.Stream[string, string] {
					parts := func(_, v string) []string { return strings.Split(v, ",") }
					whole := func(_, _ string, rows []processor.Opt[string]) string {
						var texts []string
						for _, r := range rows {
							texts = append(texts, r.Or("–"))
						}
						return strings.Join(texts, "·")
					}
					return stream.Changes(table.JoinMany(leftRows(b), rightRows(b), Link, parts, whole))
				}},
			},
		},
		{
			picture: picture{name: "join-global", title: "A stream joined with a table that every process holds whole"},
			keys:    true,
			steps: []step{
				right(1, "euro").of("€"), left(2, "€").of("1"), left(3, "$").of("2"), right(4, "dollar").of("$"), left(5, "$").of("3"),
			},
			inputs: []input{{"stream", "left", Lefts, "left", 0}, {"global table", "right", Rights, "right", 0}},
			results: []lanes{
				{"JoinGlobal", "inner", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.JoinGlobal(fromLeft(b), table.Global(b, Rights, RightRows), foreign, pair)
				}},
				{"LeftJoinGlobal", "left", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.LeftJoinGlobal(fromLeft(b), table.Global(b, Rights, RightRows), foreign, leftPair)
				}},
			},
		},
		{
			picture: picture{name: "window-tumbling", title: "stream.Tumbling(10 ms): one window for each record", scale: 14, until: 40, tick: 5},
			steps:   []step{record(3), record(8), record(10), record(17), record(34)},
			inputs:  []input{records},
			results: []lanes{{"windows", "and their counts", count(stream.Tumbling(10 * ms))}},
		},
		{
			picture: picture{name: "window-hopping", title: "stream.Hopping(10 ms, 5 ms): windows overlap", scale: 14, until: 40, tick: 5},
			steps:   []step{record(3), record(9), record(12), record(27)},
			inputs:  []input{records},
			results: []lanes{{"windows", "and their counts", count(stream.Hopping(10*ms, 5*ms))}},
		},
		{
			picture: picture{name: "window-sliding", title: "stream.Sliding(10 ms): a window for each different content", scale: 14, until: 40, tick: 5},
			steps:   []step{record(12), record(18), record(25)},
			inputs:  []input{records},
			results: []lanes{{"windows", "and their counts", count(stream.Sliding(10 * ms))}},
		},
		{
			picture: picture{name: "window-session", title: "stream.Sessions(5 ms): a pause of more than 5 ms ends a session", scale: 14, until: 40, tick: 5},
			steps:   []step{record(3), record(8), record(11), record(20), record(23), record(33)},
			inputs:  []input{records},
			results: []lanes{{"sessions", "and their counts", sessions(stream.Sessions(5 * ms))}},
		},
		{
			picture: picture{name: "window-session-merge", title: "A record between two sessions makes them one"},
			times:   true, keys: true,
			steps:  []step{record(10), record(20), record(15)},
			inputs: []input{records},
			results: []lanes{
				{"Count", "gap 5 ms, grace 20 ms", sessions(stream.Sessions(5 * ms).Grace(20 * ms))},
			},
		},
		{
			picture: picture{name: "window-unlimited", title: "stream.Unlimited from 10 ms on: one window without an end", scale: 14, until: 40, tick: 5},
			steps:   []step{record(4), record(12), record(20), record(33)},
			inputs:  []input{records},
			results: []lanes{{"window", "and its count", count(stream.Unlimited(time.UnixMilli(10)))}},
		},
		{
			picture: picture{name: "window-grace", title: "Tumbling windows of 10 ms with 5 ms of grace: when results come out"},
			times:   true, keys: true,
			steps:  []step{record(3), record(9), record(12), record(4), record(16), record(5), record(26)},
			inputs: []input{records},
			results: []lanes{
				{"Count", "on update", count(tumbling)},
				{"Count, EmitOnClose", "once, when closed", count(tumbling.EmitOnClose())},
				{"SuppressUntilClose", "of the Count on update", func(b *processor.Builder) *stream.Stream[string, string] {
					counts := stream.Count(stream.WindowBy(leftGroup(b), tumbling), Windows)
					return windowed(table.SuppressUntilClose(counts, Final, table.Limits{}))
				}},
			},
		},
		{
			picture: picture{name: "suppress", title: "table.Suppress for 10 ms: at most one change of a row in that time"},
			times:   true, keys: true,
			steps: []step{
				left(1, "A").of("ann"), left(3, "x").of("bob"), left(5, "B").of("ann"), left(8, "C").of("ann"), left(11, "y").of("bob"),
				left(13, "D").of("ann"), left(30, "z").of("cy"),
			},
			inputs: []input{{"changes", "of the table", Lefts, "left", 0}},
			results: []lanes{
				{"Suppress, 10 ms", "", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Changes(table.Suppress(leftRows(b), Waiting, 10*ms, table.Limits{}))
				}},
				{"the same, one row", "MaxRecords: 1", func(b *processor.Builder) *stream.Stream[string, string] {
					return stream.Changes(table.Suppress(leftRows(b), Waiting, 10*ms, table.Limits{MaxRecords: 1}))
				}},
			},
		},
	}
}

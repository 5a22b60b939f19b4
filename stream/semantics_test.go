package stream_test

import (
	"fmt"
	"slices"
	"strconv"
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

// The cases of this file say what operators do with tombstones, missing keys and times that go back, as Kafka Streams
// does it: record by record, everything that comes of it.

var (
	Left  = processor.NewTopic("left", serde.String, serde.String)
	Right = processor.NewTopic("right", serde.String, serde.String)

	LeftRows  = state.KeyValue("left-rows", serde.String, serde.String)
	RightRows = state.KeyValue("right-rows", serde.String, serde.String)
)

// step is one record piped, "key=value@millis", and what is written because of it, in order; to topics other than out
// as "topic:key=value@millis". A value or key "~" is absent.
type step struct {
	topic *processor.Topic[string, string]
	in    string
	out   []string
}

func parseRecord(t *testing.T, s string) processor.Record[string, string] {
	t.Helper()
	key, rest, ok1 := strings.Cut(s, "=")
	value, at, ok2 := strings.Cut(rest, "@")
	millis, err := strconv.ParseInt(at, 10, 64)
	if !ok1 || !ok2 || err != nil {
		t.Fatalf("%q is not key=value@millis", s)
	}
	r := processor.Record[string, string]{Key: key, Value: value, Time: time.UnixMilli(millis)}
	if r.NoKey = key == "~"; r.NoKey {
		r.Key = ""
	}
	if r.Tombstone = value == "~"; r.Tombstone {
		r.Value = ""
	}
	return r
}

func showRecord(r processor.Record[string, string]) string {
	if r.NoKey {
		r.Key = "~"
	}
	if r.Tombstone {
		r.Value = "~"
	}
	return fmt.Sprintf("%s=%s@%d", r.Key, r.Value, r.Time.UnixMilli())
}

// run pipes the steps and compares. It does so twice: as they are, and with a crash after each record, which must make
// no difference.
func run(
	t *testing.T, declare func(*processor.Builder), steps []step, check func(t *testing.T, d *processortest.Driver),
) {
	t.Helper()
	for _, crashing := range []bool{false, true} {
		d := processortest.New(t, build(declare))
		outs := []*processortest.OutputTopic[string, string]{processortest.Output(d, Out), processortest.Output(d, Out2)}
		for i, s := range steps {
			processortest.Input(d, s.topic).PipeRecord(parseRecord(t, s.in))
			var got []string
			for j, out := range outs {
				for _, r := range out.Read() {
					got = append(got, []string{"", "out2:"}[j]+showRecord(r))
				}
			}
			if !slices.Equal(got, s.out) {
				t.Errorf("crashing=%t, step %d, %s %s:\n got %q\nwant %q", crashing, i, s.topic.Name(), s.in, got, s.out)
			}
			if crashing {
				d.Crash()
			}
		}
		if check != nil && !crashing {
			check(t, d)
		}
	}
}

// holds compares a store with rows "key=value@millis".
func holds[V any](t *testing.T, d *processortest.Driver, spec *state.KeyValueSpec[string, V], want ...string) {
	t.Helper()
	var got []string
	for row, err := range processortest.Store(d, spec).All() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s=%v@%d", row.Key, row.Value, row.Time.UnixMilli()))
	}
	if !slices.Equal(got, want) {
		t.Errorf("store %q:\n got %q\nwant %q", spec.Name(), got, want)
	}
}

func dropped(t *testing.T, d *processortest.Driver, want map[processor.DropReason]int64) {
	t.Helper()
	for reason := range processor.DropReasons() {
		if got := d.Dropped(reason); got != want[reason] {
			t.Errorf("dropped for %v: %d, want %d", reason, got, want[reason])
		}
	}
}

func pair(_, l, r string) string { return l + "-" + r }

func leftPair(_, l string, r processor.Opt[string]) string { return l + "-" + r.Or("none") }

func toText[V any](t *table.Table[string, V]) *table.Table[string, string] {
	return table.Map(t, func(_ string, v V) string { return fmt.Sprint(v) })
}

func TestTableSourceFollowsTheLog(t *testing.T) {
	run(t, func(b *processor.Builder) { table.To(table.From(b, Left, LeftRows), Out) }, []step{
		{Left, "x=1@30", []string{"x=1@30"}},
		{Left, "y=1@40", []string{"y=1@40"}},
		{Left, "x=2@20", []string{"x=2@20"}}, // an older time overwrites
		{Left, "~=z@50", nil},
		{Left, "y=~@3", []string{"y=~@3"}}, // a tombstone deletes, whatever its time is
		{Left, "z=~@60", []string{"z=~@60"}},
		{Left, "x=3@25", []string{"x=3@25"}},
	}, func(t *testing.T, d *processortest.Driver) {
		holds(t, d, LeftRows, "x=3@25")
		dropped(t, d, map[processor.DropReason]int64{processor.DropNoKey: 1})
	})
}

func TestToTableFollowsTheLog(t *testing.T) {
	run(t, func(b *processor.Builder) { table.To(stream.ToTable(stream.From(b, Left), LeftRows), Out) }, []step{
		{Left, "x=1@30", []string{"x=1@30"}},
		{Left, "~=1@31", nil},
		{Left, "x=2@20", []string{"x=2@20"}},
		{Left, "x=~@21", []string{"x=~@21"}},
	}, func(t *testing.T, d *processortest.Driver) {
		holds(t, d, LeftRows)
		dropped(t, d, map[processor.DropReason]int64{processor.DropNoKey: 1})
	})
}

func odd(_, v string) bool { return len(v)%2 == 1 }

func TestTableFilterForwardsTombstones(t *testing.T) {
	run(t, func(b *processor.Builder) {
		rows := table.From(b, Left, LeftRows)
		table.To(table.Filter(rows, odd), Out)
		table.To(table.FilterNot(rows, odd), Out2)
	}, []step{
		{Left, "x=a@10", []string{"x=a@10", "out2:x=~@10"}}, // although x never passed FilterNot
		{Left, "x=aa@5", []string{"x=~@5", "out2:x=aa@5"}},
		{Left, "x=~@7", []string{"x=~@7", "out2:x=~@7"}},
		{Left, "y=~@8", []string{"y=~@8", "out2:y=~@8"}},
	}, nil)
}

func TestTableFilterThatKnowsOldValuesIsQuiet(t *testing.T) {
	run(t, func(b *processor.Builder) {
		passed := table.Filter(table.From(b, Left, LeftRows), odd)
		passed.Node().AskOld() // as grouping does
		table.To(passed, Out)
	}, []step{
		{Left, "x=aa@10", nil},
		{Left, "x=a@11", []string{"x=a@11"}},
		{Left, "x=aa@12", []string{"x=~@12"}},
		{Left, "x=~@13", nil},
		{Left, "y=~@14", nil},
	}, nil)
}

// What asks for old values must not change what stands above a store of its own.
func TestAskingForOldValuesStopsAtAStore(t *testing.T) {
	run(t, func(b *processor.Builder) {
		passed := table.Filter(table.From(b, Left, LeftRows), odd)
		table.To(passed, Out)
		counts := stream.Count(stream.Group(stream.Changes(passed)), Counts)
		counts.Node().AskOld()
	}, []step{
		{Left, "x=aa@10", []string{"x=~@10"}},
	}, nil)
}

func TestSplitFirstMatchWins(t *testing.T) {
	run(t, func(b *processor.Builder) {
		split := stream.Split(stream.From(b, Left))
		stream.To(split.When("odd", odd), Out)
		split.When("four", func(_, v string) bool { return len(v) == 4 })
		stream.To(split.Otherwise("rest"), Out2)
	}, []step{
		{Left, "x=a@1", []string{"x=a@1"}},
		{Left, "x=aa@2", []string{"out2:x=aa@2"}},
		{Left, "x=aaaa@3", nil},
		{Left, "~=aaa@4", []string{"~=aaa@4"}}, // a key is not needed
		{Left, "x=~@5", nil},
	}, func(t *testing.T, d *processortest.Driver) {
		dropped(t, d, map[processor.DropReason]int64{processor.DropNoValue: 1})
	})
}

// inputs is what the aggregations below are fed with: times that go back, a tombstone, a missing key.
var inputs = []string{"x=a@50", "y=b@10", "x=c@30", "x=~@90", "~=d@95", "x=e@70"}

// aggregated makes the steps of inputs with what each leads to, "" for nothing.
func aggregated(outs ...string) []step {
	var steps []step
	for i, in := range inputs {
		s := step{topic: Left, in: in}
		if outs[i] != "" {
			s.out = []string{outs[i]}
		}
		steps = append(steps, s)
	}
	return steps
}

var aggregationDrops = map[processor.DropReason]int64{processor.DropNoKey: 1, processor.DropNoValue: 1}

func TestAggregationsKeepTheLargestTime(t *testing.T) {
	t.Run("count", func(t *testing.T) {
		run(t, func(b *processor.Builder) {
			table.To(toText(stream.Count(stream.Group(stream.From(b, Left)), Counts)), Out)
		}, aggregated("x=1@50", "y=1@10", "x=2@50", "", "", "x=3@70"), func(t *testing.T, d *processortest.Driver) {
			holds(t, d, Counts, "x=3@70", "y=1@10")
			dropped(t, d, aggregationDrops)
		})
	})
	t.Run("reduce", func(t *testing.T) {
		run(t, func(b *processor.Builder) {
			table.To(stream.Reduce(stream.Group(stream.From(b, Left)), LeftRows, func(a, v string) string { return a + v }), Out)
		}, aggregated("x=a@50", "y=b@10", "x=ac@50", "", "", "x=ace@70"), func(t *testing.T, d *processortest.Driver) {
			holds(t, d, LeftRows, "x=ace@70", "y=b@10")
			dropped(t, d, aggregationDrops)
		})
	})
	t.Run("aggregate", func(t *testing.T) {
		run(t, func(b *processor.Builder) {
			table.To(stream.Aggregate(stream.Group(stream.From(b, Left)), Joined,
				func(a, k, v string) string { return a + k + v }), Out)
		}, aggregated("x=>xa@50", "y=>yb@10", "x=>xaxc@50", "", "", "x=>xaxcxe@70"),
			func(t *testing.T, d *processortest.Driver) {
				holds(t, d, Joined, "x=>xaxcxe@70", "y=>yb@10")
				dropped(t, d, aggregationDrops)
			})
	})
}

func TestFoldThatDeletesStartsAfresh(t *testing.T) {
	run(t, func(b *processor.Builder) {
		table.To(stream.Fold(stream.Group(stream.From(b, Left)), LeftRows,
			func(a processor.Opt[string], _, v string) processor.Opt[string] {
				if v == "del" {
					return processor.None[string]()
				}
				return processor.Some(a.Or("0") + v)
			}), Out)
	}, []step{
		{Left, "x=a@50", []string{"x=0a@50"}},
		{Left, "x=del@20", []string{"x=~@50"}}, // the time is the largest, in deletions too
		{Left, "x=b@5", []string{"x=0b@5"}},    // and does not outlive the row
		{Left, "x=del@9", []string{"x=~@9"}},
		{Left, "x=del@9", []string{"x=~@9"}},
	}, func(t *testing.T, d *processortest.Driver) { holds(t, d, LeftRows) })
}

func TestStreamTableJoin(t *testing.T) {
	declare := func(left bool) func(b *processor.Builder) {
		return func(b *processor.Builder) {
			s, rows := stream.From(b, Left), table.From(b, Right, RightRows)
			if left {
				stream.To(stream.LeftJoin(s, rows, leftPair), Out)
			} else {
				stream.To(stream.Join(s, rows, pair), Out)
			}
		}
	}
	for _, left := range []bool{false, true} {
		none := func(s string) []string { // what only the left join makes
			if left {
				return []string{s}
			}
			return nil
		}
		t.Run(fmt.Sprintf("left=%t", left), func(t *testing.T) {
			run(t, declare(left), []step{
				{Left, "k=A@3", none("k=A-none@3")},
				{Right, "k=a@9", nil},                  // the table's changes make no results
				{Left, "k=B@5", []string{"k=B-a@5"}},   // the row is of a later time: it counts that it is there
				{Left, "k=~@6", nil},                   // dropped
				{Left, "~=C@7", none("~=C-none@7")},    // no key finds no row
				{Right, "k=~@1", nil},                  // deletes, whatever the time is
				{Left, "k=D@20", none("k=D-none@20")},  //
				{Right, "k=b@2", nil},                  //
				{Left, "k=E@30", []string{"k=E-b@30"}}, // the result's time is the record's
				{Left, "other=F@1", none("other=F-none@1")},
			}, func(t *testing.T, d *processortest.Driver) {
				want := map[processor.DropReason]int64{processor.DropNoValue: 1}
				if !left {
					want[processor.DropNoKey] = 1
				}
				dropped(t, d, want)
			})
		})
	}
}

func TestTableTableJoin(t *testing.T) {
	declare := func(left bool) func(b *processor.Builder) {
		return func(b *processor.Builder) {
			l, r := table.From(b, Left, LeftRows), table.From(b, Right, RightRows)
			if left {
				table.To(table.LeftJoin(l, r, leftPair), Out)
			} else {
				table.To(table.Join(l, r, pair), Out)
			}
		}
	}
	for _, left := range []bool{false, true} {
		none := func(s string) []string {
			if left {
				return []string{s}
			}
			return nil
		}
		t.Run(fmt.Sprintf("left=%t", left), func(t *testing.T) {
			run(t, declare(left), []step{
				{Left, "k=~@1", nil}, // no row on either side
				{Right, "k=~@2", nil},
				{Left, "k=A@3", none("k=A-none@3")},
				{Right, "k=a@8", []string{"k=A-a@8"}}, // the time is the larger of both rows'
				{Left, "k=B@5", []string{"k=B-a@8"}},
				{Right, "k=b@6", []string{"k=B-b@6"}}, // and so may go back
				{Left, "k=~@4", []string{"k=~@6"}},
				{Left, "k=~@7", []string{"k=~@7"}}, // nothing was there; forwarded, because the right side is
				{Right, "k=~@9", nil},
				{Left, "k=C@10", none("k=C-none@10")},
				{Right, "k=c@9", []string{"k=C-c@10"}},
				{Right, "k=~@12", map[bool][]string{false: {"k=~@12"}, true: {"k=C-none@12"}}[left]},
				{Left, "k=~@11", none("k=~@11")},
			}, nil)
		})
	}
}

func TestJoinOfJoins(t *testing.T) {
	run(t, func(b *processor.Builder) {
		l, r := table.From(b, Left, LeftRows), table.From(b, Right, RightRows)
		first := table.LeftJoin(l, r, leftPair)
		stream.To(stream.Join(stream.From(b, Words), first, pair), Out) // looks the join up, which is not stored
	}, []step{
		{Words, "k=1@1", nil},
		{Left, "k=A@2", nil},
		{Words, "k=2@3", []string{"k=2-A-none@3"}},
		{Right, "k=a@4", nil},
		{Words, "k=3@5", []string{"k=3-A-a@5"}},
		{Left, "k=~@6", nil},
		{Words, "k=4@7", nil},
	}, nil)
}

func TestRepartitionDropsRecordsWithoutAKey(t *testing.T) {
	run(t, func(b *processor.Builder) { stream.To(stream.Repartition(stream.From(b, Left), ByWord), Out) }, []step{
		{Left, "~=a@1", nil},
		{Left, "k=~@2", []string{"k=~@2"}}, // but not tombstones
		{Left, "k=b@1", []string{"k=b@1"}},
	}, func(t *testing.T, d *processortest.Driver) {
		dropped(t, d, map[processor.DropReason]int64{processor.DropNoPartition: 1})
	})
}

// Functions of a key and a value never see a tombstone; those of a record see everything.
func TestTombstonesThroughTheStatelessOperators(t *testing.T) {
	never := func(what string) { panic(what + " was called for a tombstone") }
	seen := 0
	run(t, func(b *processor.Builder) {
		s := stream.From(b, Left)
		s = stream.Filter(s, func(string, string) bool { never("filter"); return false })
		s = stream.FilterNot(s, func(string, string) bool { never("filter-not"); return true })
		s = stream.Map(s, func(string, string) string { never("map"); return "" })
		s = stream.FlatMap(s, func(string, string) []string { never("flat-map"); return nil })
		s = stream.Peek(s, func(string, string) { never("peek") })
		stream.ForEach(s, func(string, string) { never("for-each") })
		stream.Rekey(s, func(string, string) string { never("rekey"); return "" })
		stream.FlatRekey(s, func(string, string) []string { never("flat-rekey"); return nil })
		stream.Split(s).Otherwise("rest")
		s = stream.PeekRecord(s, func(processor.Record[string, string]) { seen++ })
		s = stream.FilterRecord(s, func(processor.Record[string, string]) bool { seen++; return true })
		stream.To(s, Out)
	}, []step{
		{Left, "k=~@1", []string{"k=~@1"}},
		{Left, "~=~@2", []string{"~=~@2"}},
	}, func(t *testing.T, d *processortest.Driver) {
		if seen != 4 {
			t.Errorf("the functions of records were called %d times", seen)
		}
		dropped(t, d, map[processor.DropReason]int64{processor.DropNoValue: 6})
	})
}

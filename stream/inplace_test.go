package stream_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// These tests run two tasks over the same records, failures, aborts and restarts. They differ in the functions of their
// aggregations: those of one change their first argument in place, those of the other never change anything. Nobody
// must be able to tell.

// doc is a value that is shared by reference, and an aggregate as well.
type doc struct {
	N    int            `json:"n"`
	Tags []string       `json:"tags,omitempty"`
	Seen map[string]int `json:"seen,omitempty"`
}

func (d *doc) clone() *doc {
	if d == nil {
		return &doc{}
	}
	return &doc{N: d.N, Tags: slices.Clone(d.Tags), Seen: maps.Clone(d.Seen)}
}

// fail panics at values that say so, after the aggregate was changed.
func fail(v *doc) {
	if slices.Contains(v.Tags, "panic") {
		panic("in the middle")
	}
}

// add changes a.
func (d *doc) add(v *doc) {
	d.N += v.N
	for i := range d.Tags {
		d.Tags[i] += "'"
	}
	d.Tags = append(d.Tags, fmt.Sprint(v.N))
	if d.Seen == nil {
		d.Seen = make(map[string]int)
	}
	d.Seen[fmt.Sprint(v.N)]++
	fail(v)
}

// kinds are the aggregations under test, each with a store of its own; all read one stream.
type kind struct {
	name    string
	inPlace func(g *stream.Grouped[string, *doc]) *table.Table[string, string]
	pure    func(g *stream.Grouped[string, *doc]) *table.Table[string, string]
	store   state.AnySpec
}

func text[A any](t *table.Table[string, A]) *table.Table[string, string] {
	return table.Map(t, func(_ string, a A) string {
		b, err := json.Marshal(a)
		if err != nil {
			panic(err)
		}
		return string(b)
	})
}

func aggregateKind[A any](name string, inPlace, pure func(a A, k string, v *doc) A) kind {
	spec := state.KeyValue(name, serde.String, serde.JSON[A]())
	of := func(f func(a A, k string, v *doc) A) func(g *stream.Grouped[string, *doc]) *table.Table[string, string] {
		return func(g *stream.Grouped[string, *doc]) *table.Table[string, string] {
			return text(stream.Aggregate(g, spec, f))
		}
	}
	return kind{name, of(inPlace), of(pure), spec}
}

func reduceKind(name string) kind {
	spec := state.KeyValue(name, serde.String, serde.JSON[*doc]())
	return kind{name: name, store: spec,
		inPlace: func(g *stream.Grouped[string, *doc]) *table.Table[string, string] {
			return text(stream.Reduce(g, spec, func(a, v *doc) *doc { a.add(v); return a }))
		},
		pure: func(g *stream.Grouped[string, *doc]) *table.Table[string, string] {
			return text(stream.Reduce(g, spec, func(a, v *doc) *doc { a = a.clone(); a.add(v); return a }))
		},
	}
}

func foldKind(name string) kind {
	spec := state.KeyValue(name, serde.String, serde.JSON[*doc]())
	fold := func(own func(*doc) *doc) func(g *stream.Grouped[string, *doc]) *table.Table[string, string] {
		return func(g *stream.Grouped[string, *doc]) *table.Table[string, string] {
			return text(stream.Fold(g, spec, func(a processor.Opt[*doc], _ string, v *doc) processor.Opt[*doc] {
				if !a.OK {
					return processor.Some(v) // the record's own value, which others hold, too
				}
				d := own(a.V)
				d.add(v)
				if d.N%5 == 0 {
					return processor.None[*doc]()
				}
				return processor.Some(d)
			}))
		}
	}
	return kind{name, fold(func(d *doc) *doc { return d }), fold((*doc).clone), spec}
}

var kinds = []kind{
	aggregateKind("maps",
		func(a map[string]int, _ string, v *doc) map[string]int {
			if a == nil {
				a = make(map[string]int)
			}
			a[fmt.Sprint(v.N)]++
			a["all"] += v.N
			fail(v)
			return a
		},
		func(a map[string]int, _ string, v *doc) map[string]int {
			b := make(map[string]int)
			maps.Copy(b, a)
			b[fmt.Sprint(v.N)]++
			b["all"] += v.N
			fail(v)
			return b
		}),
	aggregateKind("slices",
		func(a []int, _ string, v *doc) []int {
			for i := range a {
				a[i]++
			}
			fail(v)
			return append(a, v.N)
		},
		func(a []int, _ string, v *doc) []int {
			b := []int{}
			for _, n := range a {
				b = append(b, n+1)
			}
			fail(v)
			return append(b, v.N)
		}),
	aggregateKind("pointers",
		func(a *doc, _ string, v *doc) *doc {
			if a == nil {
				a = new(doc)
			}
			a.add(v)
			return a
		},
		func(a *doc, _ string, v *doc) *doc {
			b := a.clone()
			b.add(v)
			return b
		}),
	aggregateKind("structs",
		func(a doc, _ string, v *doc) doc { a.add(v); return a },
		func(a doc, _ string, v *doc) doc { b := a.clone(); b.add(v); return *b }),
	aggregateKind("first-values",
		func(a *doc, _ string, v *doc) *doc {
			if a == nil {
				return v // the record's own value, which others hold, too
			}
			a.add(v)
			return a
		},
		func(a *doc, _ string, v *doc) *doc {
			if a == nil {
				return v
			}
			b := a.clone()
			b.add(v)
			return b
		}),
	reduceKind("reduce-1"),
	reduceKind("reduce-2"),
	foldKind("fold-1"),
	foldKind("fold-2"),
}

var Docs = processor.NewTopic("docs", serde.String, serde.JSON[*doc]())

// declare is the topology: all kinds, whose old values are asked for or not, and behind them an operator that fails for
// a record after all have written.
func declare(inPlace, old bool) func(*processor.Builder) {
	return func(b *processor.Builder) {
		docs := stream.From(b, Docs)
		g := stream.Group(docs)
		for _, k := range kinds {
			make := k.pure
			if inPlace {
				make = k.inPlace
			}
			t := make(g)
			if old {
				t.Node().AskOld()
			}
			stream.To(stream.New(changes(k.name, t)), Out)
		}
		stream.To(stream.Map(docs, func(_ string, v *doc) string { return fmt.Sprint("record ", *v) }), Out)
		stream.ForEach(docs, func(_ string, v *doc) {
			if slices.Contains(v.Tags, "late") {
				panic("after all have written")
			}
		})
	}
}

// changes makes records of a table's changes, old values included.
func changes(name string, t *table.Table[string, string]) *processor.Node[string, string] {
	type change = table.Change[string]
	return processor.Derive(t.Node(), processor.Operator{Kind: "show"},
		func(_ *processor.Task, next processor.Handler[string, string]) (processor.Handler[string, change], error) {
			return func(r processor.Record[string, change]) error {
				return next(processor.WithValue(r, fmt.Sprintf("%s: %v -> %v", name, r.Value.Old, r.Value.New)))
			}, nil
		})
}

// twin is one of the two tasks, with its backend and what it committed.
type twin struct {
	topology *processor.Topology
	opts     processor.TaskOptions
	backend  *memory.Backend
	task     *processor.Task
	offset   int64
	batch    struct {
		offsets  []processor.Offset
		metadata string
	}
}

func newTwin(t *rapid.T, inPlace, old bool, policy processor.ErrorPolicy) *twin {
	topology, err := processor.Build(declare(inPlace, old))
	if err != nil {
		t.Fatal(err)
	}
	w := &twin{topology: topology, opts: processor.TaskOptions{OnProcessError: policy}, backend: memory.New()}
	w.open(t)
	return w
}

func (w *twin) open(t *rapid.T) {
	var err error
	w.task, err = w.topology.NewTask("app", processor.TaskID{Sub: "docs"}, w.backend, w.opts)
	if err == nil {
		err = w.task.Start(w.batch.offsets, w.batch.metadata, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (w *twin) pipe(key string, v *doc) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	w.task.Enqueue("docs", []processor.RawRecord{{
		Topic: "docs", Offset: w.offset, TimeMillis: w.offset, Key: []byte(key), Value: raw,
	}})
	w.offset++
	if _, _, err := w.task.Step(10, 0); err != nil {
		return err.Error()
	}
	var b []byte
	for _, o := range w.task.Outputs() {
		b = fmt.Appendf(b, "%s %s=%s@%d\n", o.Topic, o.Key, o.Value, o.TimeMillis)
	}
	return string(b)
}

func (w *twin) commit() {
	b := w.task.Boundary()
	w.batch.offsets, w.batch.metadata = b.Offsets, b.Metadata
	w.task.Commit(slices.Repeat([]state.Position{{Next: w.offset}}, len(kinds)), 1)
}

func (w *twin) flush(t *rapid.T) {
	if f := w.task.Layers().Freeze(); f != nil {
		if err := f.Run(); err != nil {
			t.Fatal(err)
		}
		w.task.Layers().Done(f)
	}
}

// rows shows all stores.
func (w *twin) rows() string {
	var b []byte
	for _, k := range kinds {
		rows, err := w.task.StoreRows(k.store)
		if err != nil {
			return err.Error()
		}
		sc := rows.Scan(nil, nil, false)
		for sc.Next() {
			b = fmt.Appendf(b, "%s %q=%q\n", k.name, sc.Key(), sc.Row())
		}
		sc.Close()
	}
	return string(b)
}

func TestInPlaceAggregatesCannotBeTold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := rapid.SampledFrom([]processor.ErrorPolicy{processor.Skip(), processor.DeadLetter("dead")}).Draw(t, "policy")
		old := rapid.Bool().Draw(t, "old")
		twins := []*twin{newTwin(t, true, old, policy), newTwin(t, false, old, policy)}
		each := func(f func(w *twin) string) {
			if a, b := f(twins[0]), f(twins[1]); a != b {
				t.Fatalf("changed in place:\n%s\nnever changed:\n%s", a, b)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"record": func(t *rapid.T) {
				key := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key")
				v := doc{N: rapid.IntRange(0, 4).Draw(t, "n")}
				if tag := rapid.SampledFrom([]string{"", "", "", "panic", "late"}).Draw(t, "tag"); tag != "" {
					v.Tags = []string{tag}
				}
				if policy == processor.Skip() || len(v.Tags) == 0 {
					each(func(w *twin) string { return w.pipe(key, &v) })
					return
				}
				for _, w := range twins { // dead letters hold stack traces, which differ
					w.pipe(key, &v)
				}
			},
			"commit": func(*rapid.T) {
				for _, w := range twins {
					w.commit()
				}
			},
			"abort": func(t *rapid.T) {
				for _, w := range twins {
					if err := w.task.Abort(w.batch.offsets, w.batch.metadata, 0); err != nil {
						t.Fatal(err)
					}
				}
			},
			"flush": func(t *rapid.T) {
				for _, w := range twins {
					w.flush(t)
				}
			},
			"restart": func(t *rapid.T) {
				for _, w := range twins {
					w.commit()
					w.flush(t) // what follows starts from what is on disk
					w.flush(t)
					w.open(t)
				}
			},
			"": func(*rapid.T) { each((*twin).rows) },
		})
	})
}

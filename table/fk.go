package table

import (
	"bytes"
	"fmt"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// Link declares what a foreign-key join keeps and sends: the subscriptions of rows to the rows that they refer to, in a
// store of the right side; for JoinMany the answers, in one of the left side; and two internal topics, which take a subscription to the partition of the row that is
// referred to, and its answer back. Declare it once, as a package-level value; the names are for life.
type Link[K, FK, R any] struct {
	name          string
	key           serde.Serde[K]
	pair          serde.PairSerde[FK, K]
	foreign       serde.Serde[FK]
	subscriptions *state.KeyValueSpec[serde.Pair[FK, K], struct{}]
	ask           *processor.Repartition[FK, subscription[K]]
	answer        *processor.Repartition[K, answer[R]]
	// answers are what a JoinMany keeps: the newest answer to each row about each of those that it refers to.
	answers       *state.KeyValueSpec[serde.Pair[K, FK], processor.Opt[R]]
	maxReferences int
	err           error
}

// NewLink declares a link with the given name and the encodings of the left table's keys, of the foreign keys, which
// must be that of the right table's keys, and of the right table's values.
func NewLink[K, FK, R any](
	name string, key serde.Serde[K], foreign serde.Serde[FK], right serde.Serde[R],
) *Link[K, FK, R] {
	l := &Link[K, FK, R]{name: name, key: key, foreign: foreign, err: state.CheckName("link", name)}
	if l.err == nil && (key == nil || foreign == nil || right == nil) {
		l.err = fmt.Errorf("link %q: a serde is nil", name)
	}
	if l.err != nil {
		return l
	}
	l.pair = serde.Tuple2(foreign, key)
	l.subscriptions = state.KeyValue(name+"-subscriptions", serde.Serde[serde.Pair[FK, K]](l.pair), serde.None)
	l.maxReferences = defaultMaxReferences
	l.answers = state.KeyValue(name+"-answers", serde.Serde[serde.Pair[K, FK]](serde.Tuple2(key, foreign)),
		serde.Serde[processor.Opt[R]](optSerde[R]{right}))
	l.ask = processor.NewRepartition(name+"-ask", foreign, serde.Serde[subscription[K]](subscriptionSerde[K]{key}))
	l.answer = processor.NewRepartition(name+"-answer", key, serde.Serde[answer[R]](answerSerde[R]{right}))
	return l
}

// ForeignKeyJoin joins each row of the left table with the row of the right table whose key the function fk finds in it; a
// row for which fk returns false has no result. A change of either side updates all results that depend on it.
//
// The tables need not be partitioned alike. Results of different keys come in no order. An answer that was overtaken by
// a newer value of the left row is discarded, and counted; the last result is always that of the newest rows. The time of a result is the larger of the two rows' where the left row
// changed, and that of the right row where that did. A left row that moves from one foreign key to
// another, without a match there, forwards a deletion even when there was no result before.
//
// The result is not stored: see Store for looking it up. (Kafka Streams: KTable#join with a foreign-key extractor,
// KIP-213.)
func ForeignKeyJoin[K, L, FK, R, W any](
	left *Table[K, L], right *Table[FK, R], link *Link[K, FK, R], fk func(k K, l L) (FK, bool), f func(k K, l L, r R) W,
) *Table[K, W] {
	given(left, "foreign-key-join", fk != nil && f != nil)
	return joinForeign(left, right, link, "foreign-key-join", false, fk,
		func(k K, l L, r processor.Opt[R]) W { return f(k, l, r.V) })
}

// LeftForeignKeyJoin is ForeignKeyJoin with a result for each left row, also where it refers to nothing, or to a row that is
// not there. (Kafka Streams: KTable#leftJoin with a foreign-key extractor.)
func LeftForeignKeyJoin[K, L, FK, R, W any](
	left *Table[K, L], right *Table[FK, R], link *Link[K, FK, R], fk func(k K, l L) (FK, bool),
	f func(k K, l L, r processor.Opt[R]) W,
) *Table[K, W] {
	given(left, "left-foreign-key-join", fk != nil && f != nil)
	return joinForeign(left, right, link, "left-foreign-key-join", true, fk, f)
}

// subscription is what a left row sends to the partition of the row that it refers to.
type subscription[K any] struct {
	key  K
	want want
}

// want says what a subscription is to do.
type want byte

const (
	wantRow       want = 1 + iota // subscribe; answer if the row is there
	wantAnswer                    // subscribe; answer in any case
	unsubscribe                   // no answer
	unsubscribeOK                 // answer that it is done: the result is to be deleted
)

// answer is what comes back: the foreign key that it is about, and the row, if there is one.
type answer[R any] struct {
	foreign []byte // encoded
	gone    bool   // the answer to unsubscribeOK
	row     processor.Opt[R]
}

func joinForeign[K, L, FK, R, W any](
	left *Table[K, L], right *Table[FK, R], link *Link[K, FK, R], kind string, outer bool,
	fk func(k K, l L) (FK, bool), f func(k K, l L, r processor.Opt[R]) W,
) *Table[K, W] {
	b := left.node.Builder()
	switch {
	case right == nil || link == nil:
		b.Fail(kind, "the right table or the link is nil")
	case link.err != nil:
		b.Fail(kind, "%v", link.err)
	}
	if right == nil || link == nil || link.err != nil {
		return New[K, W](processor.Derive(left.node, processor.Operator{Kind: kind},
			func(*processor.Task, processor.Handler[K, Change[W]]) (processor.Handler[K, Change[L]], error) {
				return nil, nil
			}), nil)
	}
	RequireStored(left, kind)
	RequireStored(right, kind)
	left.node.AskOld()
	subscribe(left, link, kind, outer, fk)
	processor.ToRepartition(answerRows(right, link, kind), link.answer)

	answers := processor.FromRepartition(b, link.answer)
	if !outer {
		processor.ToRepartition(askAgain(left, answers, kind, fk), link.ask)
	}
	direct := unlinked(left, kind, outer, fk, f)
	results := processor.Derive(answers, processor.Operator{Kind: kind, Stores: left.stores, NeedsKey: true},
		func(t *processor.Task, next processor.Handler[K, Change[W]]) (processor.Handler[K, answer[R]], error) {
			get, err := left.view(t)
			if err != nil {
				return nil, err
			}
			var scratch []byte
			return func(r processor.Record[K, answer[R]]) error {
				l, _, ok, err := get(r.Key)
				if err != nil {
					return err
				}
				a := r.Value
				var key FK
				refers := ok
				if ok {
					key, refers = fk(r.Key, l)
				}
				if a.gone {
					if refers {
						t.Drop(processor.DropOutdated)
						return nil
					}
					return next(processor.WithValue(r, Change[W]{}))
				}
				if refers {
					if scratch, err = link.foreign.Append(scratch[:0], key); err != nil {
						return fmt.Errorf("encode foreign key: %w", err)
					}
				}
				if !refers || !bytes.Equal(scratch, a.foreign) {
					t.Drop(processor.DropOutdated)
					return nil
				}
				var c Change[W]
				if a.row.OK || outer {
					c.New = processor.Some(f(r.Key, l, a.row))
				}
				return next(processor.WithValue(r, c))
			}, nil
		})
	if direct != nil {
		results = processor.Combine(processor.Operator{Kind: "merge"}, results, direct)
	}
	return New[K, W](results, nil)
}

// subscribe sends what the changes of the left table mean to the right side.
func subscribe[K, L, FK, R any](
	left *Table[K, L], link *Link[K, FK, R], kind string, outer bool, fk func(k K, l L) (FK, bool),
) {
	asks := processor.Derive(left.node, processor.Operator{Kind: kind + "-ask", Rekeys: true},
		func(t *processor.Task, next processor.Handler[FK, subscription[K]]) (processor.Handler[K, Change[L]], error) {
			var was, is []byte
			return func(r processor.Record[K, Change[L]]) error {
				if r.Value.Outdated {
					t.Drop(processor.DropOutdated)
					return nil
				}
				send := func(to FK, w want) error {
					return next(processor.WithKey(processor.WithValue(r, subscription[K]{r.Key, w}), to))
				}
				oldFK, hadFK := extract(fk, r.Key, r.Value.Old)
				newFK, hasFK := extract(fk, r.Key, r.Value.New)
				if r.Value.New.OK && !hasFK && !outer {
					t.Drop(processor.DropNoKey)
				}
				var err error
				if hadFK {
					if was, err = link.foreign.Append(was[:0], oldFK); err != nil {
						return fmt.Errorf("encode foreign key: %w", err)
					}
				}
				if hasFK {
					if is, err = link.foreign.Append(is[:0], newFK); err != nil {
						return fmt.Errorf("encode foreign key: %w", err)
					}
				}
				moved := hadFK && (!hasFK || !bytes.Equal(was, is))
				if moved {
					w := unsubscribe
					if !hasFK && !outer {
						w = unsubscribeOK
					}
					if err := send(oldFK, w); err != nil {
						return err
					}
				}
				if !hasFK {
					return nil
				}
				if outer || moved {
					return send(newFK, wantAnswer)
				}
				return send(newFK, wantRow)
			}, nil
		})
	processor.ToRepartition(asks, link.ask)
}

// askAgain asks on behalf of a left row that came while the deletion of its predecessor was on its way: the answer that
// it is done must not delete the result of the new row, but if the new row has none, nothing else would delete the old
// one. (Kafka Streams leaves it.)
func askAgain[K, L, FK, R any](
	left *Table[K, L], answers *processor.Node[K, answer[R]], kind string, fk func(k K, l L) (FK, bool),
) *processor.Node[FK, subscription[K]] {
	op := processor.Operator{Kind: kind + "-ask-again", Stores: left.stores, NeedsKey: true, Rekeys: true}
	return processor.Derive(answers, op,
		func(t *processor.Task, next processor.Handler[FK, subscription[K]]) (processor.Handler[K, answer[R]], error) {
			get, err := left.view(t)
			if err != nil {
				return nil, err
			}
			return func(r processor.Record[K, answer[R]]) error {
				if !r.Value.gone {
					return nil
				}
				l, _, ok, err := get(r.Key)
				if err != nil || !ok {
					return err
				}
				key, refers := fk(r.Key, l)
				if !refers {
					return nil
				}
				return next(processor.WithKey(processor.WithValue(r, subscription[K]{r.Key, wantAnswer}), key))
			}, nil
		})
}

// unlinked makes the results of an outer join that need no answer: of rows that refer to nothing, and deletions.
func unlinked[K, L, FK, R, W any](
	left *Table[K, L], kind string, outer bool, fk func(k K, l L) (FK, bool), f func(k K, l L, r processor.Opt[R]) W,
) *processor.Node[K, Change[W]] {
	if !outer {
		return nil
	}
	return processor.Derive(left.node, processor.Operator{Kind: kind + "-unlinked"},
		func(_ *processor.Task, next processor.Handler[K, Change[W]]) (processor.Handler[K, Change[L]], error) {
			return func(r processor.Record[K, Change[L]]) error {
				if r.Value.Outdated || (!r.Value.Old.OK && !r.Value.New.OK) {
					return nil
				}
				if _, refers := extract(fk, r.Key, r.Value.New); refers {
					return nil
				}
				var c Change[W]
				if r.Value.New.OK {
					c.New = processor.Some(f(r.Key, r.Value.New.V, processor.None[R]()))
				}
				return next(processor.WithValue(r, c))
			}, nil
		})
}

func extract[K, L, FK any](fk func(k K, l L) (FK, bool), k K, l processor.Opt[L]) (key FK, ok bool) {
	if !l.OK {
		return key, false
	}
	return fk(k, l.V)
}

// answerRows keeps the subscriptions, and answers them and the changes of the right table.
func answerRows[K, FK, R any](right *Table[FK, R], link *Link[K, FK, R], kind string) *processor.Node[K, answer[R]] {
	op := processor.Operator{
		Kind: kind + "-answer", Owned: []state.AnySpec{link.subscriptions}, Stores: right.stores,
		Rekeys: true, NeedsKey: true,
	}
	asks := processor.FromRepartition(right.node.Builder(), link.ask)
	return processor.Derive2(asks, right.node, op,
		func(t *processor.Task, next processor.Handler[K, answer[R]]) (
			processor.Handler[FK, subscription[K]], processor.Handler[FK, Change[R]], error,
		) {
			subs, err := link.subscriptions.Open(t)
			if err != nil {
				return nil, nil, err
			}
			get, err := right.view(t)
			if err != nil {
				return nil, nil, err
			}
			onAsk := func(r processor.Record[FK, subscription[K]]) error {
				pair := serde.Pair[FK, K]{First: r.Key, Second: r.Value.key}
				switch r.Value.want {
				case wantRow, wantAnswer:
					err = subs.Set(pair, struct{}{})
				case unsubscribe, unsubscribeOK:
					err = subs.Delete(pair)
				}
				if err != nil || r.Value.want == unsubscribe {
					return err
				}
				row, at, err := lookup(get, r.Key)
				if err != nil || (r.Value.want == wantRow && !row.OK) {
					return err
				}
				a := answer[R]{row: row}
				if r.Value.want == unsubscribeOK {
					a = answer[R]{gone: true}
				}
				if a.foreign, err = link.foreign.Append(nil, r.Key); err != nil {
					return fmt.Errorf("encode foreign key: %w", err)
				}
				out := processor.WithKey(processor.WithValue(r, a), r.Value.key)
				return next(later(out, row.OK, at))
			}
			onRow := func(r processor.Record[FK, Change[R]]) error {
				if r.Value.Outdated {
					t.Drop(processor.DropOutdated)
					return nil
				}
				prefix, err := link.pair.AppendPrefix(nil, r.Key)
				if err != nil {
					return fmt.Errorf("encode foreign key: %w", err)
				}
				a := answer[R]{row: r.Value.New}
				if a.foreign, err = link.foreign.Append(nil, r.Key); err != nil {
					return fmt.Errorf("encode foreign key: %w", err)
				}
				for e, err := range subs.Prefix(prefix) {
					if err != nil {
						return err
					}
					if err := next(processor.WithKey(processor.WithValue(r, a), e.Key.Second)); err != nil {
						return err
					}
				}
				return nil
			}
			return onAsk, onRow, nil
		})
}

// Store keeps a table's rows in a store, so that they can be looked up and old values are known. It is for tables that
// are computed and not kept, such as the result of a foreign-key join.
func Store[K, V any](t *Table[K, V], store *state.KeyValueSpec[K, V]) *Table[K, V] {
	return Materialize(Values(t), "store", store)
}

// RequireStored reports a mistake unless the table's rows can be looked up. It is for writing operators.
func RequireStored[K, V any](t *Table[K, V], kind string) {
	if t.view == nil {
		t.node.Builder().Fail(kind, "the table is computed and not kept, so its rows cannot be looked up: "+
			"put table.Store in between")
		t.view = func(*processor.Task) (Getter[K, V], error) { return nil, nil }
	}
}

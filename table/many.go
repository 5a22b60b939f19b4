package table

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// ErrTooManyReferences is the error of a row that refers to more rows than its link allows.
var ErrTooManyReferences = errors.New("table: a row refers to too many others")

// defaultMaxReferences bounds the list of a row; see Link.WithMaxReferences.
const defaultMaxReferences = 1024

// JoinMany joins each row of the left table with all the rows of the right table that it refers to, as an article with its
// assets: fks returns their keys, in the order in which f gets what they hold; a key may come several times. A row that
// is not there is absent in f's list. A change of the left row, or of any row that it refers to, updates the result.
//
// When a row refers to something new, its result waits for the answer, so that f never sees a list that is known in
// part only; until then the old result stays. Answers about what a row no longer refers to are discarded, and counted. The
// tables need not be partitioned alike, and results of different keys come in no order. The time of a result is that
// of the change that completed it, or of the right row where that is later.
//
// A list is bounded: see Link.WithMaxReferences. The result is not stored: see Store for looking it up. Kafka Streams has
// no such join; there, one takes the list apart and groups it again.
func JoinMany[K, L, FK, R, W any](
	left *Table[K, L], right *Table[FK, R], link *Link[K, FK, R], fks func(k K, l L) []FK,
	f func(k K, l L, rows []processor.Opt[R]) W,
) *Table[K, W] {
	const kind = "join-many"
	given(left, kind, fks != nil && f != nil)
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
	processor.ToRepartition(askMany(left, link, fks), link.ask)
	processor.ToRepartition(answerRows(right, link, kind), link.answer)

	answers := processor.FromRepartition(b, link.answer)
	op := processor.Operator{
		Kind: kind, Owned: []state.AnySpec{link.answers}, Stores: left.stores, NeedsKey: true,
	}
	results := processor.Derive2(left.node, answers, op,
		func(t *processor.Task, next processor.Handler[K, Change[W]]) (
			processor.Handler[K, Change[L]], processor.Handler[K, answer[R]], error,
		) {
			get, err := left.view(t)
			if err != nil {
				return nil, nil, err
			}
			known, err := link.answers.Open(t)
			if err != nil {
				return nil, nil, err
			}
			m := &manyJoiner[K, L, FK, R, W]{t: t, link: link, get: get, known: known, fks: fks, f: f, next: next}
			return m.onLeft, m.onAnswer, nil
		})
	return New[K, W](results, nil)
}

// WithMaxReferences returns the link with another bound of how many rows one row may refer to; a row with more is an
// error of its record. The default is 1024.
func (l Link[K, FK, R]) WithMaxReferences(n int) *Link[K, FK, R] {
	if n < 1 {
		l.err = fmt.Errorf("link %q: at most %d references: give 1 or more", l.name, n)
	}
	l.maxReferences = n
	return &l
}

// references returns the distinct keys of a list, encoded, with their number.
func (l *Link[K, FK, R]) references(keys []FK) (map[string]FK, error) {
	if len(keys) > l.maxReferences {
		return nil, fmt.Errorf("%w: %d, and link %q allows %d", ErrTooManyReferences, len(keys), l.name, l.maxReferences)
	}
	m := make(map[string]FK, len(keys))
	for _, k := range keys {
		enc, err := l.foreign.Append(nil, k)
		if err != nil {
			return nil, fmt.Errorf("encode foreign key: %w", err)
		}
		m[string(enc)] = k
	}
	return m, nil
}

// references returns what a row referred to and refers to now.
func references[K, L, FK, R any](
	link *Link[K, FK, R], fks func(k K, l L) []FK, r processor.Record[K, Change[L]],
) (was, is map[string]FK, err error) {
	if r.Value.Old.OK {
		if was, err = link.references(fks(r.Key, r.Value.Old.V)); err != nil {
			return nil, nil, err
		}
	}
	if r.Value.New.OK {
		is, err = link.references(fks(r.Key, r.Value.New.V))
	}
	return was, is, err
}

// askMany sends what a change of a left row means to the rows that it refers to: those that are new, and those that are no
// longer.
func askMany[K, L, FK, R any](
	left *Table[K, L], link *Link[K, FK, R], fks func(k K, l L) []FK,
) *processor.Node[FK, subscription[K]] {
	op := processor.Operator{Kind: "join-many-ask", Rekeys: true}
	return processor.Derive(left.node, op,
		func(t *processor.Task, next processor.Handler[FK, subscription[K]]) (processor.Handler[K, Change[L]], error) {
			return func(r processor.Record[K, Change[L]]) error {
				if r.Value.Outdated {
					t.Drop(processor.DropOutdated)
					return nil
				}
				was, is, err := references(link, fks, r)
				if err != nil {
					return err
				}
				send := func(to FK, w want) error {
					return next(processor.WithKey(processor.WithValue(r, subscription[K]{r.Key, w}), to))
				}
				for _, enc := range slices.Sorted(maps.Keys(was)) {
					if _, still := is[enc]; !still {
						if err := send(was[enc], unsubscribe); err != nil {
							return err
						}
					}
				}
				for _, enc := range slices.Sorted(maps.Keys(is)) {
					if _, already := was[enc]; !already {
						if err := send(is[enc], wantAnswer); err != nil {
							return err
						}
					}
				}
				return nil
			}, nil
		})
}

// manyJoiner is the left side of the join in a task: it keeps the answers, and makes the results.
type manyJoiner[K, L, FK, R, W any] struct {
	t     *processor.Task
	link  *Link[K, FK, R]
	get   Getter[K, L]
	known *state.KeyValueStore[serde.Pair[K, FK], processor.Opt[R]]
	fks   func(k K, l L) []FK
	f     func(k K, l L, rows []processor.Opt[R]) W
	next  processor.Handler[K, Change[W]]
}

// onLeft forgets the answers that a row no longer needs, and makes the result if all others are known.
func (m *manyJoiner[K, L, FK, R, W]) onLeft(r processor.Record[K, Change[L]]) error {
	if r.Value.Outdated {
		return nil // counted where it would have asked
	}
	was, is, err := references(m.link, m.fks, r)
	if err != nil {
		return err
	}
	for _, enc := range slices.Sorted(maps.Keys(was)) {
		if _, still := is[enc]; still {
			continue
		}
		if err := m.known.Delete(serde.Pair[K, FK]{First: r.Key, Second: was[enc]}); err != nil {
			return err
		}
	}
	switch {
	case r.Value.New.OK:
		return m.settle(processor.WithValue(r, struct{}{}), r.Value.New.V)
	case r.Value.Old.OK:
		return m.next(processor.WithValue(r, Change[W]{}))
	default:
		return nil
	}
}

// onAnswer keeps an answer that is still of use.
func (m *manyJoiner[K, L, FK, R, W]) onAnswer(r processor.Record[K, answer[R]]) error {
	l, _, ok, err := m.get(r.Key)
	if err != nil {
		return err
	}
	var refers bool
	var key FK
	if ok {
		list, err := m.link.references(m.fks(r.Key, l))
		if err != nil {
			return err
		}
		key, refers = list[string(r.Value.foreign)]
	}
	if !refers {
		m.t.Drop(processor.DropOutdated)
		return nil
	}
	if err := m.known.Set(serde.Pair[K, FK]{First: r.Key, Second: key}, r.Value.row); err != nil {
		return err
	}
	return m.settle(processor.WithValue(r, struct{}{}), l)
}

// settle forwards the result of a row if everything that it refers to is known.
func (m *manyJoiner[K, L, FK, R, W]) settle(r processor.Record[K, struct{}], l L) error {
	keys := m.fks(r.Key, l)
	rows := make([]processor.Opt[R], len(keys))
	for i, key := range keys {
		row, known, err := m.known.Get(serde.Pair[K, FK]{First: r.Key, Second: key})
		if err != nil || !known {
			return err
		}
		rows[i] = row
	}
	return m.next(processor.WithValue(r, Change[W]{New: processor.Some(m.f(r.Key, l, rows))}))
}

// optSerde encodes an Opt: a byte that says whether there is a value, then the value.
type optSerde[V any] struct{ value serde.Serde[V] }

// SerdeID identifies the encoding.
func (s optSerde[V]) SerdeID() string { return "opt(" + serde.ID(s.value) + ")" }

// Append implements serde.Serde.
func (s optSerde[V]) Append(dst []byte, o processor.Opt[V]) ([]byte, error) {
	if !o.OK {
		return append(dst, 0), nil
	}
	return s.value.Append(append(dst, 1), o.V)
}

// Decode implements serde.Serde.
func (s optSerde[V]) Decode(src []byte) (o processor.Opt[V], err error) {
	switch {
	case len(src) == 0:
		return o, &serde.Error{Type: "opt", Offset: 0, Err: serde.ErrShort}
	case src[0] > 1:
		return o, &serde.Error{Type: "opt", Offset: 0, Err: serde.ErrInvalid}
	case src[0] == 0 && len(src) > 1:
		return o, &serde.Error{Type: "opt", Offset: 1, Err: serde.ErrTrailing}
	case src[0] == 0:
		return o, nil
	}
	o.V, err = s.value.Decode(src[1:])
	o.OK = err == nil
	return o, err
}

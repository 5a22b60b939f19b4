package table

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// Grouped is a table whose rows are regrouped under other keys, ready to be aggregated: each change of a row takes the
// old value out of its group and puts the new one into its own.
type Grouped[K, V any] struct {
	node *processor.Node[K, Change[V]]
}

// GroupBy brings each row to the group that f returns for it, with a value to be aggregated; where f returns false the
// row belongs to no group. The changes travel through an internal topic to the partition of the group's key: via
// declares it. f is not called for deletions.
//
// A row that stays in its group is one record there, and so shows no state in between; one that moves is two, the old
// group first. (Kafka Streams: KTable#groupBy, KTableRepartitionMap, KIP-904.)
func GroupBy[K, V, K2, V2 any](
	t *Table[K, V], via *processor.Repartition[K2, V2], f func(k K, v V) (K2, V2, bool),
) *Grouped[K2, V2] {
	given(t, "group-by", f != nil)
	if via == nil {
		t.node.Builder().Fail("group-by", "the repartition topic is nil")
		via = processor.NewRepartition[K2, V2]("", nil, nil)
	}
	RequireStored(t, "group-by")
	t.node.AskOld()
	changes := processor.RepartitionAs(via, changeSerde[V2]{via.Value()})
	key := via.Key()
	n := processor.Derive(t.node, processor.Operator{Kind: "group-by", Rekeys: true},
		func(tk *processor.Task, next processor.Handler[K2, Change[V2]]) (processor.Handler[K, Change[V]], error) {
			var oldKey, newKey []byte
			pick := func(k K, v processor.Opt[V], scratch []byte) (k2 K2, v2 processor.Opt[V2], enc []byte, err error) {
				if !v.OK {
					return k2, v2, scratch, nil
				}
				k2, v2.V, v2.OK = f(k, v.V)
				if !v2.OK {
					return k2, v2, scratch, nil
				}
				enc, err = key.Append(scratch[:0], k2)
				return k2, v2, enc, err
			}
			return func(r processor.Record[K, Change[V]]) error {
				if r.Value.Outdated {
					return nil // groups are of the newest versions
				}
				if r.NoKey {
					tk.Drop(processor.DropNoKey)
					return nil
				}
				was, old, enc, err := pick(r.Key, r.Value.Old, oldKey)
				oldKey = enc
				if err != nil {
					return fmt.Errorf("encode the group's key: %w", err)
				}
				is, now, enc, err := pick(r.Key, r.Value.New, newKey)
				newKey = enc
				if err != nil {
					return fmt.Errorf("encode the group's key: %w", err)
				}
				send := func(k K2, c Change[V2]) error {
					return next(processor.WithKey(processor.WithValue(r, c), k))
				}
				if old.OK && now.OK && bytes.Equal(oldKey, newKey) {
					return send(is, Change[V2]{Old: old, New: now})
				}
				if old.OK {
					if err := send(was, Change[V2]{Old: old}); err != nil {
						return err
					}
				}
				if now.OK {
					return send(is, Change[V2]{New: now})
				}
				return nil
			}, nil
		})
	processor.ToRepartition(n, changes)
	return &Grouped[K2, V2]{processor.FromRepartition(t.node.Builder(), changes)}
}

// Count counts the rows of each group. A group that has lost its rows stays, with 0. (Kafka Streams:
// KGroupedTable#count.)
func Count[K, V any](g *Grouped[K, V], store *state.KeyValueSpec[K, int64]) *Table[K, int64] {
	return Aggregate(g, store,
		func(n int64, _ K, _ V) int64 { return n + 1 },
		func(n int64, _ K, _ V) int64 { return n - 1 })
}

// Reduce combines the values of each group: the first is stored as it is, add makes the next value of the last one and
// a value that joins the group, and subtract of the last one and a value that leaves it, first subtract, then add.
// Both own their first argument. A group that has lost its values keeps what subtract returned. (Kafka Streams:
// KGroupedTable#reduce.)
func Reduce[K, V any](
	g *Grouped[K, V], store *state.KeyValueSpec[K, V], add, subtract func(a, v V) V,
) *Table[K, V] {
	return fold(g, store, "reduce", false, add != nil && subtract != nil,
		func(a processor.Opt[V], _ K, v V) V {
			if !a.OK {
				return v
			}
			return add(a.V, v)
		},
		func(a V, _ K, v V) V { return subtract(a, v) })
}

// Aggregate folds the values of each group: add makes the next value of the last one, the key and a value that joins the
// group, and subtract of the last one, the key and a value that leaves it; first subtract, then add. It starts at the
// zero value, or at what the store's spec says by Initially. Both own their first argument and may change it in place.
//
// subtract runs only while the group has a value. A group that has lost its values keeps what subtract returned. The
// time of a row is the largest of the records that made it. (Kafka Streams: KGroupedTable#aggregate, KTableAggregate.)
func Aggregate[K, V, A any](
	g *Grouped[K, V], store *state.KeyValueSpec[K, A], add, subtract func(a A, k K, v V) A,
) *Table[K, A] {
	return fold(g, store, "aggregate", true, add != nil && subtract != nil,
		func(a processor.Opt[A], k K, v V) A {
			if !a.OK {
				a.V = store.Initial()
			}
			return add(a.V, k, v)
		}, subtract)
}

// fold is what the aggregations share. own tells that what add returns is its own, and not a value that others hold.
func fold[K, V, A any](
	g *Grouped[K, V], store *state.KeyValueSpec[K, A], kind string, own, complete bool,
	add func(a processor.Opt[A], k K, v V) A, subtract func(a A, k K, v V) A,
) *Table[K, A] {
	if !complete {
		g.node.Builder().Fail(kind, "a function is nil")
	}
	wantOld := new(bool)
	op := processor.Operator{Kind: kind, Owned: []state.AnySpec{spec(store)}, NeedsKey: true, Expires: true}
	n := processor.Derive(g.node, op,
		func(t *processor.Task, next processor.Handler[K, Change[A]]) (processor.Handler[K, Change[V]], error) {
			st, err := store.Open(t)
			if err != nil {
				return nil, err
			}
			put := st.SetAt
			if own {
				put = st.Give
			}
			expire := processor.ExpireRows(store, st, Deleted[A](wantOld), next)
			return func(r processor.Record[K, Change[V]]) error {
				if r.NoKey {
					t.Drop(processor.DropNoKey)
					return nil
				}
				if expire != nil {
					if err := expire(r.Key, r.Time); err != nil {
						return err
					}
				}
				var c Change[A]
				if *wantOld {
					// Decoded apart from what the functions are going to change in place.
					if c.Old.V, c.Old.OK, err = st.Get(r.Key); err != nil {
						return err
					}
				}
				var at int64
				if c.New.V, at, c.New.OK, err = st.Take(r.Key); err != nil {
					return err
				}
				if c.New.OK && at > r.Time.UnixMilli() {
					r.Time = time.UnixMilli(at).UTC()
				}
				if c.New.OK && r.Value.Old.OK {
					c.New.V = subtract(c.New.V, r.Key, r.Value.Old.V)
				}
				if r.Value.New.OK {
					c.New = processor.Some(add(c.New, r.Key, r.Value.New.V))
				}
				if c.New.OK {
					if err := put(r.Key, c.New.V, r.Time.UnixMilli()); err != nil {
						return err
					}
				}
				return next(processor.WithValue(r, c))
			}, nil
		})
	n.OnAskOld(wantOld)
	return New(n, StoreView(store), spec(store))
}

// changeSerde encodes a Change for an internal topic: a byte that says which of old (1) and new (2) follow, then the old
// value with its length before it, then the new one.
type changeSerde[V any] struct {
	value serde.Serde[V]
}

const (
	hasOld = 1 << 0
	hasNew = 1 << 1
)

// SerdeID identifies the encoding.
func (s changeSerde[V]) SerdeID() string { return "change(" + serde.ID(s.value) + ")" }

// Append implements serde.Serde.
func (s changeSerde[V]) Append(dst []byte, c Change[V]) ([]byte, error) {
	at := len(dst)
	dst = append(dst, 0)
	if c.Old.OK {
		dst[at] |= hasOld
		dst = append(dst, 0, 0, 0, 0)
		from := len(dst)
		var err error
		if dst, err = s.value.Append(dst, c.Old.V); err != nil {
			return nil, err
		}
		binary.BigEndian.PutUint32(dst[from-4:], uint32(len(dst)-from))
	}
	if c.New.OK {
		dst[at] |= hasNew
		return s.value.Append(dst, c.New.V)
	}
	return dst, nil
}

// Decode implements serde.Serde.
func (s changeSerde[V]) Decode(src []byte) (c Change[V], err error) {
	fail := func(at int, err error) (Change[V], error) {
		return Change[V]{}, &serde.Error{Type: "change", Offset: at, Err: err}
	}
	if len(src) == 0 {
		return fail(0, serde.ErrShort)
	}
	flags, rest := src[0], src[1:]
	if flags&^(hasOld|hasNew) != 0 {
		return fail(0, serde.ErrInvalid)
	}
	if flags&hasOld != 0 {
		if len(rest) < 4 {
			return fail(len(src), serde.ErrShort)
		}
		n := binary.BigEndian.Uint32(rest)
		rest = rest[4:]
		if uint64(n) > uint64(len(rest)) {
			return fail(len(src), serde.ErrShort)
		}
		if c.Old.V, err = s.value.Decode(rest[:n:n]); err != nil {
			return fail(len(src)-len(rest), err)
		}
		c.Old.OK, rest = true, rest[n:]
	}
	if flags&hasNew != 0 {
		if c.New.V, err = s.value.Decode(rest); err != nil {
			return fail(len(src)-len(rest), err)
		}
		c.New.OK = true
	} else if len(rest) > 0 {
		return fail(len(src)-len(rest), serde.ErrTrailing)
	}
	return c, nil
}

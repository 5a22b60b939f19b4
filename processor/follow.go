package processor

import (
	"errors"

	"tailrace.dev/internal/task"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// follower is a store that an input topic of its task is the changelog of.
type follower struct {
	spec   state.AnySpec
	source *node
	row    func(r *RawRecord) (key, row []byte, ok bool)
}

// Followed describes a store that has no changelog, because an input topic of its task is: see FollowTopic.
type Followed struct {
	// Store is the name of the store, and Topic that of the topic on the broker.
	Store, Topic string
	// Row returns the row that a record of the topic leaves behind, nil where it deletes; ok is false when it leaves
	// none, as processing it does not.
	Row func(r *RawRecord) (key, row []byte, ok bool)
}

// Followed returns the stores of a sub-topology that follow a topic. App and processortest restore them from it.
func (t *Topology) Followed(app, sub string) []Followed {
	s := t.sub(sub)
	if s == nil {
		return nil
	}
	var all []Followed
	for _, f := range s.followers() {
		all = append(all, Followed{f.spec.Name(), f.source.brokerTopic(app), f.row})
	}
	return all
}

func (s *subTopology) followers() []*follower {
	var fs []*follower
	for _, n := range s.nodes {
		if n.follows != nil {
			fs = append(fs, n.follows)
		}
	}
	return fs
}

// FollowTopic adds a topic as an input, together with a store of the newest record of each of its keys, which has no
// changelog: the topic is it. Where that is opened it is read up to the committed offset. What comes out is made by
// change, of what the row was, when wantOld is set by then, and what it is.
//
// It is what table.FromSource and ReadOnly are made with; the first says what it asks of the topic. kind names the
// operator.
func FollowTopic[K, V, C any](
	b *Builder, kind string, topic *Topic[K, V], store *state.KeyValueSpec[K, V], wantOld *bool,
	change func(old, is Opt[V]) C,
) *Node[K, C] {
	src := FromTopic(b, topic)
	if topic == nil || topic.err != nil {
		return newNode[K, C](b, Operator{Kind: kind}, src.meta)
	}
	if store == nil || store.Err() != nil {
		return newNode[K, C](b, Operator{Kind: kind, Owned: []state.AnySpec{anySpec(store)}}, src.meta)
	}
	checkFollowed(b, kind, topic, store)
	n := Derive(src, Operator{Kind: kind, Owned: []state.AnySpec{store}},
		func(t *Task, next Handler[K, C]) (Handler[K, V], error) {
			s, err := store.Open(t)
			if err != nil {
				return nil, err
			}
			t.onLeftOut(src.meta, func(r *RawRecord) { _ = s.FollowRaw(r.Key, r.Value, r.TimeMillis) })
			return func(r Record[K, V]) error {
				if r.NoKey {
					t.Drop(DropNoKey)
					return nil
				}
				var old, is Opt[V]
				if *wantOld {
					if old.V, old.OK, err = s.Get(r.Key); err != nil {
						return err
					}
				}
				if !r.Tombstone {
					is = Some(r.Value)
				}
				// The record is that of the source, which is the operator's only input.
				err := s.Follow(t.record.Key, t.record.Value, r.Key, r.Value, r.Time.UnixMilli())
				if errors.Is(err, state.ErrKeyEncoding) {
					return &decodeError{"key", err}
				}
				if err != nil {
					return err
				}
				return next(WithValue(r, change(old, is)))
			}, nil
		})
	n.meta.follows = &follower{spec: store, source: src.meta, row: followedRow(topic, store)}
	return n
}

func anySpec[K, V any](s *state.KeyValueSpec[K, V]) state.AnySpec {
	if s == nil {
		return nil
	}
	return s
}

// checkFollowed reports what would make a row depend on more than one record of the topic.
func checkFollowed[K, V any](b *Builder, kind string, topic *Topic[K, V], store *state.KeyValueSpec[K, V]) {
	if serde.ID(topic.key) != serde.ID(store.Key()) || serde.ID(topic.value) != serde.ID(store.Value()) {
		b.Fail(kind, "store %q keeps the records of topic %q as they are, so both must have the same serdes: declare the "+
			"store with the topic's Key() and Value()", store.Name(), topic.name)
	}
	if topic.times.wall || topic.times.invalid == UsePartitionTime {
		b.Fail(kind, "the times of topic %q do not follow from the records alone, so store %q could not be made of it "+
			"again: keep it in a store with a changelog, by table.From", topic.name, store.Name())
	}
}

// followedRow returns the function that makes a row of a record outside of a task.
func followedRow[K, V any](
	topic *Topic[K, V], store *state.KeyValueSpec[K, V],
) func(r *RawRecord) (key, row []byte, ok bool) {
	find := topic.times.finder(func(raw *task.Record) (Record[K, V], error) {
		return decodeRecord(raw, topic.key, topic.value)
	})
	return func(r *RawRecord) (key, row []byte, ok bool) {
		at := r.TimeMillis
		if find != nil {
			millis, ok, err := find(r, -1, 0)
			if err != nil || !ok {
				return nil, nil, false
			}
			at = millis
		}
		if at < 0 || r.Key == nil {
			return nil, nil, false
		}
		key, row, err := store.FollowedRow(r.Key, r.Value, at)
		return key, row, err == nil
	}
}

// ReadOnly keeps the newest record of each key of a topic in a store that other operators only read: name the spec among
// the stores of a Processor and open it there. Writing to it is state.ErrReadOnly. Each task has the rows of its own
// partition; for all of a topic in every process use table.Global.
//
// The topic is the store's changelog, and has to be as table.FromSource says. Records of all of the task's topics are
// processed in the order of their times, so that a processor finds the rows of its time, as far as it waits for them (see
// Config.MaxTaskIdle). (Kafka Streams: Topology#addReadOnlyStateStore, KIP-813.)
func ReadOnly[K, V any](b *Builder, topic *Topic[K, V], store *state.KeyValueSpec[K, V]) {
	FollowTopic(b, "read-only", topic, store, new(bool), func(_, _ Opt[V]) struct{} { return struct{}{} })
}

// leftOutKey is where Task.memo holds what has to be done about records that a policy leaves out.
type leftOutKey struct{ source *node }

// onLeftOut registers what is done about a record of a source that was left out, after all that it did was undone.
func (t *Task) onLeftOut(source *node, f func(r *RawRecord)) {
	fs, _ := t.memo[leftOutKey{source}].([]func(*RawRecord))
	t.memo[leftOutKey{source}] = append(fs, f)
}

// followLeftOut keeps the rows of the stores that follow a source as the topic says, though the record was left out:
// they would be so after a restore.
func (t *Task) followLeftOut(source *node, raw *task.Record) {
	if t.unlogged == nil {
		return
	}
	fs, _ := t.memo[leftOutKey{source}].([]func(*RawRecord))
	for _, f := range fs {
		f(raw)
	}
}

// followStores tells the layers and the task which of its stores have no changelog.
func (t *Task) followStores() {
	for _, f := range t.sub.followers() {
		for i, spec := range t.sub.stores {
			if spec != f.spec {
				continue
			}
			if t.unlogged == nil {
				t.unlogged = make([]bool, len(t.sub.stores))
			}
			t.unlogged[i] = true
			t.layers.Rows(spec.Name()).SetReadOnly()
		}
	}
}

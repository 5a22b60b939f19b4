package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// shape is what a topology leaves behind: what a later one, of the same application, could misread or forget. It is
// recorded in the application's control topic; ADR 20 says what follows from a difference.
type shape struct {
	Version     int    `json:"version"`
	Fingerprint string `json:"fingerprint"`
	// Known are the fingerprints of all topologies that were recorded or that this record was found to go with, oldest
	// first: a member that comes back with one of them is part of a rolling upgrade.
	Known []string   `json:"known,omitempty"`
	Subs  []shapeSub `json:"subs"`
	// Left are stores that a topology was allowed to leave behind with AcceptTopologyChange. Their topics were not
	// followed since.
	Left []shapeStore `json:"left,omitempty"`
}

// shapeSub is a recorded sub-topology.
type shapeSub struct {
	Name       string        `json:"name"`
	Partitions int32         `json:"partitions"`
	Sources    []shapeSource `json:"sources"`
	Stores     []shapeStore  `json:"stores,omitempty"`
}

// shapeSource is a recorded input. Key and Value are those of internal topics; others are their owners' matter.
type shapeSource struct {
	Topic    string `json:"topic"`
	Internal bool   `json:"internal,omitempty"`
	TopicID  string `json:"id,omitempty"`
	Key      string `json:"key,omitempty"`
	Value    string `json:"value,omitempty"`
}

// shapeStore is a recorded store. Changelog is empty where the store follows a topic, which is Follows then.
type shapeStore struct {
	Name      string `json:"name"`
	Kind      string `json:"kind"`
	Key       string `json:"key"`
	Value     string `json:"value"`
	Changelog string `json:"changelog,omitempty"`
	TopicID   string `json:"id,omitempty"`
	Follows   string `json:"follows,omitempty"`
}

const (
	shapeVersion = 1
	maxShape     = 900 << 10 // what a record of Kafka's default size holds
	maxKnown     = 16
	maxLeft      = 256
)

var errShape = errors.New("engine: the recorded topology cannot be read")

// encode renders the shape. An error says that it is too large to be recorded.
func (s *shape) encode() ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("engine: record the topology: %w", err)
	}
	if len(b) > maxShape {
		return nil, fmt.Errorf("engine: the topology takes %d bytes to record, and %d is the limit", len(b), maxShape)
	}
	return b, nil
}

// decodeShape reads what encode made. A nil shape without an error is one that was never recorded.
func decodeShape(b []byte) (*shape, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if len(b) > maxShape {
		return nil, fmt.Errorf("%w: %d bytes", errShape, len(b))
	}
	s := &shape{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%w: %w", errShape, err)
	}
	if s.Version != shapeVersion {
		return nil, fmt.Errorf("%w: its version is %d, and this program reads %d", errShape, s.Version, shapeVersion)
	}
	for _, sub := range s.Subs {
		if len(sub.Sources) == 0 {
			return nil, fmt.Errorf("%w: sub-topology %q has no source", errShape, sub.Name)
		}
	}
	return s, nil
}

// sub returns the sub-topology that reads a topic, or nil.
func (s *shape) sub(topic string) *shapeSub {
	for i := range s.Subs {
		if s.Subs[i].source(topic) != nil {
			return &s.Subs[i]
		}
	}
	return nil
}

func (s *shapeSub) source(topic string) *shapeSource {
	i := slices.IndexFunc(s.Sources, func(src shapeSource) bool { return src.Topic == topic })
	if i < 0 {
		return nil
	}
	return &s.Sources[i]
}

// store returns what became of a store, and the sub-topology that it is in, or nils: the one with its name and changelog,
// or else the one with its name.
func (s *shape) store(of *shapeStore) (sub *shapeSub, found *shapeStore) {
	for i := range s.Subs {
		for j := range s.Subs[i].Stores {
			st := &s.Subs[i].Stores[j]
			if st.Name != of.Name || found != nil && st.Changelog != of.Changelog {
				continue
			}
			sub, found = &s.Subs[i], st
		}
	}
	return sub, found
}

// meets tells whether two sub-topologies have an input in common.
func (s *shapeSub) meets(o *shapeSub) bool {
	return slices.ContainsFunc(s.Sources, func(src shapeSource) bool { return o.source(src.Topic) != nil })
}

func (s *shapeSub) topics() string {
	names := make([]string, len(s.Sources))
	for i, src := range s.Sources {
		names[i] = src.Topic
	}
	return strings.Join(names, ", ")
}

// verdict is what a difference between two shapes means.
type verdict int

const (
	// harmless: nothing is lost or misread; said in the log.
	harmless verdict = iota
	// orphaned: something recorded is in the new shape no more.
	orphaned
	// misread: the new shape would read something as what it is not.
	misread
)

// difference is one difference between the recorded shape and the present one, and what can be done about it.
type difference struct {
	verdict  verdict
	what, do string
	// topic is where what was recorded lies, and item the store or topic that it is about.
	topic, item string
	// whole tells that nothing of the recorded sub-topology is left in the present shape.
	whole bool
	// count tells that it is about numbers of partitions, recreated that an input is not the topic that was read.
	count, recreated bool
}

func (d difference) String() string { return d.what + ": " + d.do }

// compareShapes lists the differences that matter, in a fixed order. there tells whether a recorded topic still exists,
// as the same topic: what is gone cannot be misread.
func compareShapes(was, is *shape, there func(topic, id string) bool) []difference {
	c := comparison{was: was, is: is, there: there}
	for i := range was.Subs {
		c.sub(&was.Subs[i])
	}
	for i := range was.Left {
		c.left(&was.Left[i])
	}
	return c.found
}

type comparison struct {
	was, is *shape
	there   func(topic, id string) bool
	found   []difference
}

func (c *comparison) add(v verdict, topic, item, do, format string, args ...any) *difference {
	c.found = append(c.found, difference{verdict: v, topic: topic, item: item, what: fmt.Sprintf(format, args...), do: do})
	return &c.found[len(c.found)-1]
}

func (c *comparison) sub(was *shapeSub) {
	whole := !slices.ContainsFunc(was.Sources, func(s shapeSource) bool { return c.is.sub(s.Topic) != nil })
	first := len(c.found)
	kept := false // something that depends on the number of partitions
	for i := range was.Sources {
		if src := &was.Sources[i]; src.Internal && c.there(src.Topic, src.TopicID) {
			kept = true
			c.repartition(src)
		}
	}
	for i := range was.Stores {
		st := &was.Stores[i]
		if st.Changelog == "" || c.there(st.Changelog, st.TopicID) {
			kept = kept || st.Changelog != ""
			c.store(was, st)
		}
	}
	for i := first; i < len(c.found); i++ {
		c.found[i].whole = whole
	}
	c.partitions(was, kept)
	if kept || len(was.Stores) == 0 {
		c.inputs(was)
	}
	if is := c.is.sub(was.Sources[0].Topic); is != nil && is.Name != was.Name {
		c.add(harmless, "", was.Name, "its local state is restored from the changelogs, and the old directories are removed in time",
			"sub-topology %q is named %q now", was.Name, is.Name)
	}
	if whole && len(was.Stores) == 0 && len(c.found) == first {
		c.add(harmless, "", was.Name, "its committed offsets stay until they expire",
			"sub-topology %q is not in the topology any more", was.Name)
	}
}

// partitions compares the numbers of partitions, by an input that both shapes have.
func (c *comparison) partitions(was *shapeSub, kept bool) {
	for _, src := range was.Sources {
		is := c.is.sub(src.Topic)
		if is == nil || is.Partitions == was.Partitions {
			continue
		}
		do := "keys now go to other partitions than their state: reset the application, which then works with the new count"
		switch {
		case len(was.Stores) > 0 && !kept:
			return // it was reset: nothing is left that goes by the old count
		case !kept:
			do = "no state depends on it, but records of a key may be processed out of order: start once with " +
				"AcceptTopologyChange, or reset the application"
		}
		c.add(misread, src.Topic, src.Topic, do, "input %q had %d partitions and has %d", src.Topic, was.Partitions,
			is.Partitions).count = true
		return
	}
}

// inputs finds inputs that were deleted and made anew: what was derived came from other records.
func (c *comparison) inputs(was *shapeSub) {
	for _, src := range was.Sources {
		is := c.is.sub(src.Topic)
		if src.Internal || is == nil {
			continue
		}
		if now := is.source(src.Topic); src.TopicID != "" && now.TopicID != "" && src.TopicID != now.TopicID {
			c.add(misread, src.Topic, src.Topic,
				"results so far came from the old topic: reset the application; or, to keep its state and go on with the new "+
					"topic, set the group's offsets of the topic with kafka-consumer-groups.sh --reset-offsets",
				"input %q was deleted and created again since it was read", src.Topic).recreated = true
		}
	}
}

// repartition compares an internal topic, which may hold records that were not processed yet.
func (c *comparison) repartition(src *shapeSource) {
	is := c.is.sub(src.Topic)
	if is == nil {
		c.add(orphaned, src.Topic, src.Topic,
			"let the former version process what waits in it and then delete the topic, or start once with AcceptTopologyChange "+
				"to leave it behind",
			"nothing reads the internal topic %q any more", src.Topic)
		return
	}
	now := is.source(src.Topic)
	c.serde("keys", src.Key, now.Key, src.Topic, src.Topic, fmt.Sprintf("internal topic %q", src.Topic),
		"let the former version process what waits in it and then delete the topic, or give the new one another name")
	c.serde("values", src.Value, now.Value, src.Topic, src.Topic, fmt.Sprintf("internal topic %q", src.Topic),
		"let the former version process what waits in it and then delete the topic, or give the new one another name")
}

func (c *comparison) serde(what, was, is, topic, item, where, do string) {
	if was != is && was != "" && is != "" {
		c.add(misread, topic, item, do, "%s: the serde of its %s was %s and is %s", where, what, was, is)
	}
}

const renameOrReset = "reset the application, or give the store another name, under which it starts empty"

// store compares a store whose rows exist.
func (c *comparison) store(was *shapeSub, st *shapeStore) {
	is, now := c.is.store(st)
	if now == nil {
		if st.Changelog == "" {
			c.add(harmless, "", st.Name, "it can be made again from its topic at any time",
				"store %q, which followed %q, is not in the topology any more", st.Name, st.Follows)
			return
		}
		c.add(orphaned, st.Changelog, st.Name,
			fmt.Sprintf("put it back, or delete the topic %q if its rows are not needed, or start once with AcceptTopologyChange "+
				"to leave it behind", st.Changelog),
			"store %q is not in the topology any more, and its changelog is left over", st.Name)
		return
	}
	where := fmt.Sprintf("store %q", st.Name)
	if st.Kind != now.Kind {
		c.add(misread, st.Changelog, st.Name, renameOrReset, "%s: it was of kind %s and is of kind %s", where, st.Kind, now.Kind)
	}
	switch {
	case st.Changelog == "" && now.Changelog == "":
		if st.Follows != now.Follows {
			c.add(harmless, "", st.Name, "its rows are made again from the new topic",
				"%s: it followed %q and follows %q", where, st.Follows, now.Follows)
		}
		return // whatever its encoding is, the rows are made again from the topic
	case st.Changelog == "":
		c.add(misread, now.Changelog, st.Name, renameOrReset,
			"%s: it followed topic %q and now has a changelog, which lacks the rows so far", where, st.Follows)
		return
	case now.Changelog == "":
		c.add(orphaned, st.Changelog, st.Name, fmt.Sprintf("delete the topic %q, or start once with AcceptTopologyChange", st.Changelog),
			"%s: it follows topic %q now, and its changelog is left over", where, now.Follows)
		return
	}
	c.serde("keys", st.Key, now.Key, st.Changelog, st.Name, where, renameOrReset)
	c.serde("values", st.Value, now.Value, st.Changelog, st.Name, where, renameOrReset)
	if !was.meets(is) {
		c.add(misread, st.Changelog, st.Name, renameOrReset,
			"%s: its rows were made from %s, and the sub-topology that it is in now reads %s", where, was.topics(), is.topics())
	}
}

// left finds a store that comes back after it was left behind.
func (c *comparison) left(st *shapeStore) {
	_, now := c.is.store(st)
	if now == nil || now.Changelog != st.Changelog || !c.there(st.Changelog, st.TopicID) {
		return
	}
	c.add(misread, st.Changelog, st.Name,
		fmt.Sprintf("delete the topic %q, so that the store starts empty, or reset the application", st.Changelog),
		"store %q is back after it was left out for a while: its rows lack what was processed meanwhile", st.Name)
}

// merge returns the shape to record once is has been let in, by a record whose present topics are told by there. What
// is lacks stays in the record when is was recorded before, for then a later version is being rolled out; else it is
// forgotten, and with leave, what still has its changelog is noted as left behind.
func (s *shape) merge(is *shape, leave bool, there func(topic, id string) bool) *shape {
	earlier := s.knows(is.Fingerprint)
	if earlier && !leave && s.covers(is, false) {
		return s
	}
	out := &shape{Version: shapeVersion, Fingerprint: is.Fingerprint}
	for _, sub := range is.Subs {
		sub.Sources, sub.Stores = slices.Clone(sub.Sources), slices.Clone(sub.Stores)
		out.Subs = append(out.Subs, sub)
	}
	left := slices.Clone(s.Left)
	for _, sub := range s.Subs {
		switch {
		case leave:
			left = append(left, sub.Stores...)
		case earlier:
			out.add(is, sub)
		}
	}
	for _, st := range left {
		if _, now := is.store(&st); now == nil && st.Changelog != "" && there(st.Changelog, st.TopicID) &&
			!slices.ContainsFunc(out.Left, func(l shapeStore) bool { return l.Changelog == st.Changelog }) {
			out.Left = append(out.Left, st)
		}
	}
	if n := len(out.Left) - maxLeft; n > 0 {
		out.Left = out.Left[n:]
	}
	out.Known = slices.Clone(s.Known)
	for _, f := range []string{s.Fingerprint, is.Fingerprint} {
		if !out.knows(f) {
			out.Known = append(out.Known, f)
		}
	}
	if n := len(out.Known) - maxKnown; n > 0 {
		out.Known = out.Known[n:]
	}
	return out
}

// unite returns s with all that o has beside it.
func (s *shape) unite(o *shape) *shape {
	out := &shape{Version: shapeVersion, Fingerprint: s.Fingerprint}
	for _, sub := range s.Subs {
		sub.Sources, sub.Stores = slices.Clone(sub.Sources), slices.Clone(sub.Stores)
		out.Subs = append(out.Subs, sub)
	}
	for _, sub := range o.Subs {
		out.add(s, sub)
	}
	out.Left, out.Known = slices.Clone(s.Left), slices.Clone(s.Known)
	for _, l := range o.Left {
		if !slices.Contains(out.Left, l) && len(out.Left) < maxLeft {
			out.Left = append(out.Left, l)
		}
	}
	for _, f := range o.Known {
		if !out.knows(f) && len(out.Known) < maxKnown {
			out.Known = append(out.Known, f)
		}
	}
	return out
}

func (s *shape) knows(fingerprint string) bool { return slices.Contains(s.Known, fingerprint) }

// add adds what a recorded sub-topology has and is lacks: whole, or its stores and internal topics to what it became.
func (s *shape) add(is *shape, sub shapeSub) {
	if !slices.ContainsFunc(sub.Sources, func(src shapeSource) bool { return is.sub(src.Topic) != nil }) {
		s.Subs = append(s.Subs, sub)
		return
	}
	for i := range s.Subs {
		if !s.Subs[i].meets(&sub) {
			continue
		}
		for _, src := range sub.Sources {
			if s.sub(src.Topic) == nil {
				s.Subs[i].Sources = append(s.Subs[i].Sources, src)
			}
		}
		for _, st := range sub.Stores {
			if _, have := s.store(&st); have == nil {
				s.Subs[i].Stores = append(s.Subs[i].Stores, st)
			}
		}
		return
	}
}

// same tells whether two records say the same of everything but which topology came last.
func (s *shape) same(o *shape) bool { return s.covers(o, true) && o.covers(s, true) }

// covers tells whether everything that o has is in s, in the same form, and s knows all fingerprints that o does. names
// tells that the names of sub-topologies count.
func (s *shape) covers(o *shape, names bool) bool {
	for i := range o.Subs {
		sub := &o.Subs[i]
		for _, src := range sub.Sources {
			in := s.sub(src.Topic)
			if in == nil || in.Partitions != sub.Partitions || *in.source(src.Topic) != src || names && in.Name != sub.Name {
				return false
			}
		}
		for _, st := range sub.Stores {
			if in, have := s.store(&st); have == nil || *have != st || names && in.Name != sub.Name {
				return false
			}
		}
	}
	for _, l := range o.Left {
		if !slices.Contains(s.Left, l) {
			return false
		}
	}
	return s.knows(o.Fingerprint) && !slices.ContainsFunc(o.Known, func(f string) bool { return !s.knows(f) })
}

// topics returns the internal topics of the shape with their ids, those left behind included.
func (s *shape) topics() map[string]string {
	ids := map[string]string{}
	for _, sub := range s.Subs {
		for _, src := range sub.Sources {
			if src.Internal {
				ids[src.Topic] = src.TopicID
			}
		}
		for _, st := range sub.Stores {
			if st.Changelog != "" {
				ids[st.Changelog] = st.TopicID
			}
		}
	}
	for _, st := range s.Left {
		ids[st.Changelog] = st.TopicID
	}
	return ids
}

// identify notes the ids of the topics.
func (s *shape) identify(id func(topic string) string) {
	for i := range s.Subs {
		for j := range s.Subs[i].Sources {
			src := &s.Subs[i].Sources[j]
			src.TopicID = id(src.Topic)
		}
		for j := range s.Subs[i].Stores {
			if st := &s.Subs[i].Stores[j]; st.Changelog != "" {
				st.TopicID = id(st.Changelog)
			}
		}
	}
}

// shape returns what the program leaves behind with so many tasks of each sub-topology. The ids of topics are not in it.
func (p *Program) shape(tasks []int32) *shape {
	s := &shape{Version: shapeVersion, Fingerprint: p.Fingerprint, Known: []string{p.Fingerprint}}
	for i := range p.Subs {
		sub := shapeSub{Name: p.Subs[i].Name, Partitions: tasks[i]}
		for _, src := range p.Subs[i].Sources {
			in := shapeSource{Topic: src.Topic, Internal: src.Internal}
			if src.Internal {
				in.Key, in.Value = src.KeySerde, src.ValueSerde
			}
			sub.Sources = append(sub.Sources, in)
		}
		for j := range p.Subs[i].Stores {
			sub.Stores = append(sub.Stores, p.Subs[i].Stores[j].shape())
		}
		s.Subs = append(s.Subs, sub)
	}
	return s
}

func (st *Store) shape() shapeStore {
	return shapeStore{
		Name: st.Name, Kind: st.Kind, Key: st.KeySerde, Value: st.ValueSerde, Changelog: st.Changelog, Follows: st.Source,
	}
}

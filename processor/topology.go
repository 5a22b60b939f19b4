package processor

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"tailrace.dev/state"
)

// Topology is a checked, immutable graph of operators between topics. It falls into sub-topologies: parts that are
// connected otherwise than through topics, and so run as one task for each partition.
type Topology struct {
	nodes   []*node
	subs    []*subTopology
	globals []globalTable
}

// subTopology is a connected part. It is named after its smallest declared source topic, so that its name, which the
// state directories carry, does not change when operators come and go.
type subTopology struct {
	name    string
	sources []*node // by declared topic name
	stores  []state.AnySpec
	nodes   []*node
}

func (n *node) brokerTopic(app string) string {
	if n.internal != nil {
		return RepartitionTopic(app, n.topic)
	}
	return n.topic
}

func newTopology(b *Builder) *Topology {
	t := &Topology{nodes: b.nodes, globals: b.globals}
	group := make(map[*node]*node) // union-find
	var find func(n *node) *node
	find = func(n *node) *node {
		if p, ok := group[n]; ok && p != n {
			group[n] = find(p)
			return group[n]
		}
		return n
	}
	byStore := make(map[string]*node)
	for _, n := range b.nodes {
		for _, p := range n.parents {
			group[find(n)] = find(p)
		}
		for _, s := range n.stores {
			if first, ok := byStore[s.Name()]; ok {
				group[find(n)] = find(first)
			}
			byStore[s.Name()] = n
		}
	}
	subs := make(map[*node]*subTopology)
	for _, n := range b.nodes {
		root := find(n)
		sub := subs[root]
		if sub == nil {
			sub = &subTopology{}
			subs[root] = sub
		}
		n.sub = sub
		sub.nodes = append(sub.nodes, n)
		if n.kind == "source" {
			sub.sources = append(sub.sources, n)
		}
		for _, s := range n.stores {
			if !slices.Contains(sub.stores, s) {
				sub.stores = append(sub.stores, s)
			}
		}
	}
	for _, sub := range subs {
		if len(sub.sources) == 0 {
			continue // only after mistakes, which are reported
		}
		slices.SortFunc(sub.sources, func(a, b *node) int { return cmp.Compare(a.topic, b.topic) })
		slices.SortFunc(sub.stores, func(a, b state.AnySpec) int { return cmp.Compare(a.Name(), b.Name()) })
		sub.name = sub.sources[0].topic
		t.subs = append(t.subs, sub)
	}
	slices.SortFunc(t.subs, func(a, b *subTopology) int { return cmp.Compare(a.name, b.name) })
	return t
}

// check finds the mistakes that only the whole shows.
func (t *Topology) check() []error {
	var errs []error
	fail := func(n *node, format string, args ...any) {
		errs = append(errs, &BuildError{Caller: n.caller, Operator: n.kind, Problem: fmt.Sprintf(format, args...)})
	}
	written := make(map[string][]*node)
	for _, n := range t.nodes {
		if n.kind == "sink" && n.internal != nil {
			written[n.topic] = append(written[n.topic], n)
		}
	}
	read := make(map[string]bool)
	for _, n := range t.nodes {
		if n.kind != "source" || n.internal == nil {
			continue
		}
		read[n.topic] = true
		if len(written[n.topic]) == 0 {
			fail(n, "repartition topic %q is read, but nothing writes it", n.topic)
		}
	}
	for topic, writers := range written {
		if !read[topic] {
			fail(writers[0], "repartition topic %q is written, but nothing reads it", topic)
		}
	}
	for _, sub := range t.subs {
		first := sub.sources[0]
		for _, src := range sub.sources[1:] {
			if first.internal != nil && src.internal != nil && first.internal.partitions != 0 &&
				src.internal.partitions != 0 && first.internal.partitions != src.internal.partitions {
				fail(src, "repartition topics %q (%d partitions) and %q (%d) are processed together: give them one count",
					first.topic, first.internal.partitions, src.topic, src.internal.partitions)
			}
		}
	}
	return errs
}

func (t *Topology) sub(name string) *subTopology {
	i := slices.IndexFunc(t.subs, func(s *subTopology) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return t.subs[i]
}

// SubTopologies returns the names of the sub-topologies, in order.
func (t *Topology) SubTopologies() []string {
	names := make([]string, len(t.subs))
	for i, s := range t.subs {
		names[i] = s.name
	}
	return names
}

// Sources returns the broker's names of the topics that a sub-topology of the application reads, in order.
func (t *Topology) Sources(app, sub string) []string {
	s := t.sub(sub)
	if s == nil {
		return nil
	}
	names := make([]string, len(s.sources))
	for i, n := range s.sources {
		names[i] = n.brokerTopic(app)
	}
	return names
}

// Stores returns the specs of a sub-topology's stores, in the order in which a Task's Batch counts them.
func (t *Topology) Stores(sub string) []state.AnySpec {
	s := t.sub(sub)
	if s == nil {
		return nil
	}
	return slices.Clone(s.stores)
}

// sinks returns the user's topics that a sub-topology writes to, in order.
func (s *subTopology) sinks() []string {
	var names []string
	for _, n := range s.nodes {
		if n.deadLetter != "" {
			names = append(names, n.deadLetter)
		}
		if n.kind != "sink" || n.internal != nil {
			continue
		}
		if n.topic != "" {
			names = append(names, n.topic)
		}
		names = append(names, n.choices...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// repartitions returns the declared names of the internal topics that a sub-topology writes to, in order.
func (s *subTopology) repartitions() []string {
	var names []string
	for _, n := range s.nodes {
		if n.kind == "sink" && n.internal != nil {
			names = append(names, n.topic)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Fingerprint identifies the shape of the topology, as far as what it leaves behind goes: sub-topologies, their topics,
// their stores and how those are encoded. Operators in between do not count.
func (t *Topology) Fingerprint() string {
	h := sha256.New()
	for _, s := range t.subs {
		fmt.Fprintf(h, "sub %s\n", s.name)
		for _, n := range s.sources {
			fmt.Fprintf(h, "source %s %v %s\n", n.topic, n.internal != nil, n.keySerde)
		}
		for _, st := range s.stores {
			k, v := st.SerdeIDs()
			fmt.Fprintf(h, "store %s %s %s %s\n", st.Name(), st.Kind(), k, v)
		}
		for _, f := range s.followers() {
			fmt.Fprintf(h, "follow %s %s\n", f.spec.Name(), f.source.topic)
		}
		for _, name := range s.repartitions() {
			fmt.Fprintf(h, "repartition %s\n", name)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// String describes the topology in the text form of Kafka Streams' Topology#describe, which tools that draw it
// understand.
func (t *Topology) String() string {
	var b strings.Builder
	b.WriteString("Topologies:\n")
	for i, s := range t.subs {
		fmt.Fprintf(&b, "   Sub-topology: %d (%s)\n", i, s.name)
		for _, n := range s.nodes {
			switch n.kind {
			case "source":
				fmt.Fprintf(&b, "    Source: %s (topics: [%s])\n", n.name(), n.described())
			case "sink":
				fmt.Fprintf(&b, "    Sink: %s (topic: %s)\n", n.name(), n.described())
			default:
				fmt.Fprintf(&b, "    Processor: %s (stores: [%s])\n", n.name(), strings.Join(n.storeNames(), ", "))
			}
			if n.kind != "sink" {
				fmt.Fprintf(&b, "      --> %s\n", nameList(n.children))
			}
			if n.kind != "source" {
				fmt.Fprintf(&b, "      <-- %s\n", nameList(n.parents))
			}
		}
		b.WriteString("\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// name is the node's name in descriptions, without spaces.
func (n *node) name() string { return strings.ReplaceAll(n.label, " ", "-") }

// described is the topic of a source or sink, as descriptions show it: internal ones without the application's prefix.
func (n *node) described() string {
	switch {
	case n.internal != nil:
		return n.topic + "-repartition"
	case len(n.choices) > 0:
		return "one of " + strings.Join(n.choices, " ")
	default:
		return n.topic
	}
}

func (n *node) storeNames() []string {
	names := make([]string, len(n.stores))
	for i, s := range n.stores {
		names[i] = s.Name()
	}
	return names
}

func nameList(ns []*node) string {
	if len(ns) == 0 {
		return "none"
	}
	names := make([]string, len(ns))
	for i, n := range ns {
		names[i] = n.name()
	}
	return strings.Join(names, ", ")
}

package processor

import (
	"fmt"
	"strings"
)

// drawing is what Mermaid and DOT have in common: topics and stores once, operators in their sub-topologies.
type drawing struct {
	topics []string
	stores []string
	edges  [][2]string // ids
}

func topicID(name string) string { return "topic:" + name }
func storeID(name string) string { return "store:" + name }

func (t *Topology) drawing() drawing {
	var d drawing
	seen := make(map[string]bool)
	topic := func(name string) string {
		if !seen[topicID(name)] {
			seen[topicID(name)] = true
			d.topics = append(d.topics, name)
		}
		return topicID(name)
	}
	for _, s := range t.subs {
		for _, st := range s.stores {
			d.stores = append(d.stores, st.Name())
		}
		for _, n := range s.nodes {
			if n.kind == "source" {
				from := topic(n.described())
				for _, c := range n.children {
					d.edges = append(d.edges, n.targets(from, c, topic)...)
				}
				continue
			}
			if n.kind == "sink" {
				continue
			}
			for _, c := range n.children {
				d.edges = append(d.edges, n.targets(n.name(), c, topic)...)
			}
			for _, st := range n.storeNames() {
				d.edges = append(d.edges, [2]string{n.name(), storeID(st)})
			}
		}
	}
	return d
}

// targets returns the edges from an id to a child: sinks are drawn as their topics.
func (*node) targets(from string, c *node, topic func(string) string) [][2]string {
	if c.kind != "sink" {
		return [][2]string{{from, c.name()}}
	}
	if len(c.choices) == 0 {
		return [][2]string{{from, topic(c.described())}}
	}
	var es [][2]string
	for _, name := range c.choices {
		es = append(es, [2]string{from, topic(name)})
	}
	return es
}

// Mermaid draws the topology as a Mermaid flowchart, which Markdown renderers show in place.
func (t *Topology) Mermaid() string {
	d := t.drawing()
	ids := make(map[string]string)
	id := func(name string) string {
		if _, ok := ids[name]; !ok {
			ids[name] = fmt.Sprintf("n%d", len(ids))
		}
		return ids[name]
	}
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	for _, name := range d.topics {
		fmt.Fprintf(&b, "  %s[[%q]]\n", id(topicID(name)), name)
	}
	for i, s := range t.subs {
		fmt.Fprintf(&b, "  subgraph s%d[%q]\n", i, s.name)
		for _, n := range s.nodes {
			if n.kind != "source" && n.kind != "sink" {
				fmt.Fprintf(&b, "    %s(%q)\n", id(n.name()), n.name())
			}
		}
		for _, st := range s.stores {
			fmt.Fprintf(&b, "    %s[(%q)]\n", id(storeID(st.Name())), st.Name())
		}
		b.WriteString("  end\n")
	}
	for _, e := range d.edges {
		arrow := "-->"
		if strings.HasPrefix(e[1], "store:") {
			arrow = "-.-"
		}
		fmt.Fprintf(&b, "  %s %s %s\n", id(e[0]), arrow, id(e[1]))
	}
	return b.String()
}

// DOT draws the topology in the language of Graphviz.
func (t *Topology) DOT() string {
	d := t.drawing()
	var b strings.Builder
	b.WriteString("digraph topology {\n  rankdir=LR;\n")
	for _, name := range d.topics {
		fmt.Fprintf(&b, "  %q [label=%q, shape=box, style=rounded];\n", topicID(name), name)
	}
	for i, s := range t.subs {
		fmt.Fprintf(&b, "  subgraph cluster_%d {\n    label=%q;\n", i, s.name)
		for _, n := range s.nodes {
			if n.kind != "source" && n.kind != "sink" {
				fmt.Fprintf(&b, "    %q;\n", n.name())
			}
		}
		for _, st := range s.stores {
			fmt.Fprintf(&b, "    %q [label=%q, shape=cylinder];\n", storeID(st.Name()), st.Name())
		}
		b.WriteString("  }\n")
	}
	for _, e := range d.edges {
		style := ""
		if strings.HasPrefix(e[1], "store:") {
			style = " [dir=none, style=dashed]"
		}
		fmt.Fprintf(&b, "  %q -> %q%s;\n", e[0], e[1], style)
	}
	b.WriteString("}\n")
	return b.String()
}

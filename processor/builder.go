package processor

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"tailrace.dev/state"
)

// Builder collects the operators of a topology. The functions of packages stream and table add to it; Build checks the
// whole. A Builder is used by one goroutine, once.
type Builder struct {
	nodes   []*node
	sources map[string]*node // by declared topic name: a topic is read once, however many use it
	stores  map[string]*declaredStore
	typed   map[string]any // by declared topic name: the *Node[K, V] of its source
	topics  map[string]any // by declared topic name: its descriptor, to find two of one name
	globals []globalTable
	errs    []error
	built   bool
}

type declaredStore struct {
	spec   state.AnySpec
	caller string
	owner  *node // the operator that writes it on behalf of the library, if any
}

// NewBuilder returns an empty builder.
func NewBuilder() *Builder {
	return &Builder{
		sources: make(map[string]*node), stores: make(map[string]*declaredStore),
		typed: make(map[string]any), topics: make(map[string]any),
	}
}

// Build makes a topology of what the given functions declare. It is short for NewBuilder, the calls and Builder.Build.
func Build(declare ...func(b *Builder)) (*Topology, error) {
	b := NewBuilder()
	for _, f := range declare {
		f(b)
	}
	return b.Build()
}

// node is an operator of a topology, without its types.
type node struct {
	id       int
	kind     string
	label    string // what Describe calls it
	caller   string // file:line of the user's call
	parents  []*node
	children []*node
	stores   []state.AnySpec

	topic    string // sources and sinks: the declared name
	internal *internalTopic
	choices  []string // sinks that choose: the declared names
	// deadLetter is the topic of an operator's own error policy, if any.
	deadLetter string
	start      StartAt
	open       func(t *Task) (*source, error) // sources

	// keySerde identifies how the keys of the partitioning were encoded, for sources and what keeps their keys;
	// empty once the key was changed.
	keySerde string
	// valueSerde identifies how the values of a source are encoded.
	valueSerde string
	rekeyed    *node // the operator that changed the key since the last topic, or nil
	// mixedKeys is the operator that brought together records whose keys are encoded differently, or nil.
	mixedKeys *node
	owner     bool // it has stores that it alone writes

	follows *follower // it has a store that its source is the changelog of

	needsOld []*bool // set when something below asks for old values
	sub      *subTopology
}

type internalTopic struct {
	name       string
	partitions int32
}

// caller returns the file:line of the first caller outside of the library's packages.
func caller() string {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		inside := strings.HasPrefix(f.Function, "tailrace.dev/stream.") ||
			strings.HasPrefix(f.Function, "tailrace.dev/table.") ||
			strings.HasPrefix(f.Function, "tailrace.dev/processor.")
		if !inside || strings.HasSuffix(f.File, "_test.go") {
			return path.Join(path.Base(path.Dir(f.File)), path.Base(f.File)) + ":" + strconv.Itoa(f.Line)
		}
		if !more {
			return "unknown"
		}
	}
}

// BuildError is one mistake in a topology.
type BuildError struct {
	// Caller is the file:line of the call that declared it, with the file's folder.
	Caller string
	// Operator is the kind of the operator, as in Topology.Describe.
	Operator string
	// Problem says what is wrong, and what to do.
	Problem string
}

// Error renders the mistake on one line.
func (e *BuildError) Error() string { return e.Caller + ": " + e.Operator + ": " + e.Problem }

// Fail records a mistake found by an operator at its call. Build reports it.
func (b *Builder) Fail(operator, format string, args ...any) {
	b.errs = append(b.errs, &BuildError{Caller: caller(), Operator: operator, Problem: fmt.Sprintf(format, args...)})
}

func (b *Builder) addNode(kind string, parents []*node) *node {
	n := &node{id: len(b.nodes), kind: kind, caller: caller(), parents: parents}
	n.label = kind + "-" + strconv.Itoa(n.id)
	b.nodes = append(b.nodes, n)
	for _, p := range parents {
		p.children = append(p.children, n)
	}
	return n
}

// useStore connects a store to an operator. owner tells that the operator alone writes it.
func (b *Builder) useStore(n *node, spec state.AnySpec, owner bool) {
	if spec == nil {
		b.Fail(n.kind, "a store is nil: pass the spec that declares it, as state.KeyValue returns it")
		return
	}
	if err := spec.Err(); err != nil {
		b.Fail(n.kind, "%v", err)
		return
	}
	d := b.stores[spec.Name()]
	switch {
	case d == nil:
		d = &declaredStore{spec: spec, caller: n.caller}
		b.stores[spec.Name()] = d
	case d.spec != spec:
		b.Fail(n.kind, "store name %q is already used by another spec at %s: names are for life, choose another one",
			spec.Name(), d.caller)
		return
	}
	if owner {
		if d.owner != nil {
			b.Fail(n.kind, "store %q is already written by the %s at %s: declare a store of its own",
				spec.Name(), d.owner.kind, d.owner.caller)
			return
		}
		d.owner = n
	}
	if !slices.Contains(n.stores, spec) {
		n.stores = append(n.stores, spec)
	}
}

// declareTopic checks that one name is declared by one descriptor only.
func (b *Builder) declareTopic(kind, name string, descriptor any, err error) {
	if err != nil {
		b.Fail(kind, "%v", err)
		return
	}
	if old, ok := b.topics[name]; ok && old != descriptor {
		b.Fail(kind, "topic %q is declared twice, by two descriptors: declare it once, as a package-level value", name)
		return
	}
	b.topics[name] = descriptor
}

// Build checks everything that was declared and returns the topology. All mistakes come at once, joined: each is a
// *BuildError with the place of the call that made it.
func (b *Builder) Build() (*Topology, error) {
	if b.built {
		return nil, errors.New("processor: Build was called twice on one Builder")
	}
	b.built = true
	if len(b.sources) == 0 && len(b.errs) == 0 {
		b.errs = append(b.errs, errors.New("the topology reads no topic: start with stream.From or table.From"))
	}
	t := newTopology(b)
	b.errs = append(b.errs, t.check()...)
	if len(b.errs) > 0 {
		noun := "mistakes"
		if len(b.errs) == 1 {
			noun = "mistake"
		}
		return nil, fmt.Errorf("processor: %d %s in the topology:\n%w", len(b.errs), noun, errors.Join(b.errs...))
	}
	return t, nil
}

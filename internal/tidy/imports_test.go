package tidy

import (
	"slices"
	"strconv"
	"strings"
	"testing"
)

// arrows say which packages of this module a package may import; what is not listed is refused. Tests may import what
// they like. A name that ends in /... covers the packages below it, and the longest matching name counts.
var arrows = map[string][]string{
	"serde":              {},
	"serde/avro":         {"serde"},
	"state":              {"serde"},
	"state/...":          {"serde", "state"},
	"internal/task":      {"state"},
	"internal/embedded":  {},
	"internal/kafkatest": {},
	"internal/engine":    {"state", "internal/task"},
	"processor": {
		"serde", "state", "state/badger", "state/memory", "internal/task", "internal/engine", "internal/embedded",
	},
	"processor/processortest": {"serde", "state", "state/memory", "internal/task", "processor"},
	"table":                   {"serde", "state", "internal/task", "processor"},
	"stream":                  {"serde", "state", "internal/task", "processor", "table"},
	// The commands of an operator need what the engine knows of a cluster beside what an application says of itself.
	"cli":     {"processor", "internal/engine", "internal/embedded"},
	"cmd/...": {"cli"},
	// Examples and programs are users: they see what a user sees.
	"examples/...": {"serde", "serde/avro", "state", "processor", "table", "stream", "cli"},
	"bench":        {"serde", "serde/avro", "state", "processor", "table", "stream"},
}

// libraries say where a library may be imported, tests aside.
var libraries = []struct {
	path    string // with what is below it
	only    []string
	because string
}{
	{
		"github.com/twmb/franz-go/pkg/kfake",
		[]string{"internal/embedded", "internal/sim"},
		"the broker in the process is behind internal/embedded",
	},
	{
		"github.com/twmb/franz-go",
		// processor has it for the type of the options for SASL and TLS; the examples and the
		// benchmark are programs of users, which write to the log and follow what is derived with a client of their own.
		[]string{
			"internal/engine", "internal/embedded", "internal/kafkatest", "internal/sim", "internal/faults/...", "processor",
			"bench", "bench/...", "cmd/...", "examples/...",
		},
		"what talks to Kafka is internal/engine",
	},
	{
		"github.com/dgraph-io",
		[]string{"state/badger"},
		"the rest knows only state.Backend",
	},
	{
		"github.com/spf13/cobra",
		[]string{"cli", "cmd/...", "examples/..."},
		"who imports the library alone gets no command line",
	},
	{
		"github.com/jedib0t/go-pretty",
		[]string{"cli"},
		"only the commands print tables",
	},
	{
		"testing",
		[]string{"internal/kafkatest", "internal/sim", "state/statetest", "processor/processortest"},
		"the testing package adds flags to a program",
	},
}

// covers reports whether the name of a table covers the package.
func covers(name, pkg string) bool {
	if under, ok := strings.CutSuffix(name, "/..."); ok {
		return strings.HasPrefix(pkg, under+"/")
	}
	return name == pkg
}

func coveredBy(names []string, pkg string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return covers(n, pkg) })
}

func importRule(files []*file) []string {
	var bad []string
	for _, f := range files {
		if !f.library() {
			continue
		}
		for _, spec := range f.tree.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				continue
			}
			if why := refusedImport(f.dir(), imported); why != "" {
				bad = append(bad, f.at(spec)+": "+f.dir()+" may not import "+imported+": "+why)
			}
		}
	}
	return bad
}

func refusedImport(pkg, imported string) string {
	if ours, ok := strings.CutPrefix(imported, module+"/"); ok {
		best := ""
		for name := range arrows {
			if covers(name, pkg) && len(name) > len(best) {
				best = name
			}
		}
		if best != "" && !coveredBy(arrows[best], ours) {
			return "imports go serde <- state <- processor <- table <- stream <- examples"
		}
		return ""
	}
	for _, l := range libraries {
		if imported == l.path || strings.HasPrefix(imported, l.path+"/") {
			if coveredBy(l.only, pkg) {
				return ""
			}
			return l.because
		}
	}
	return ""
}

func TestImports(t *testing.T) { check(t, importRule) }

func TestImportRule(t *testing.T) {
	catches(t, importRule, 6, map[string]string{
		"serde/a.go":           `package serde; import _ "tailrace.dev/state"`,
		"state/a.go":           `package state; import _ "github.com/dgraph-io/badger/v4"`,
		"state/badger/a.go":    `package badger; import _ "github.com/dgraph-io/badger/v4"; import _ "tailrace.dev/state"`,
		"table/a.go":           `package table; import _ "tailrace.dev/stream"; import _ "tailrace.dev/processor"`,
		"stream/a.go":          `package stream; import _ "github.com/twmb/franz-go/pkg/kgo"`,
		"internal/engine/a.go": `package engine; import _ "tailrace.dev/table"; import _ "github.com/twmb/franz-go/pkg/kgo"`,
		"examples/x/a.go":      `package main; import _ "tailrace.dev/internal/engine"; import _ "tailrace.dev/stream"`,
		"stream/a_test.go":     `package stream; import _ "github.com/twmb/franz-go/pkg/kgo"; import _ "testing"`,
	})
}

package tidy

import (
	"go/ast"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// pure are the packages whose code must give the same result for the same input: no clock, no chance, no goroutine, no
// operating system and no network. Everything else follows from it: the tests by seed, the restores, the goldens.
var pure = []string{"serde", "state", "processor", "processor/processortest", "table", "stream", "internal/task"}

// impure are the files of those packages that are not part of the computation, and why.
var impure = map[string]string{
	"processor/app.go":      "starts the engine",
	"processor/config.go":   "reads the host's defaults",
	"processor/embedded.go": "starts the embedded broker",
	"processor/handler.go":  "serves the state of an App over HTTP",
	"processor/serve.go":    "listens for HTTP",
}

// bannedImports are packages, with those below them, that pure code may not import.
var bannedImports = []string{"math/rand", "crypto/rand", "os", "net", "syscall", "io/ioutil", "runtime/pprof"}

// bannedCalls are functions that pure code may not use, neither called nor as values.
var bannedCalls = map[string][]string{
	"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"},
}

func callRule(files []*file) []string {
	var bad []string
	for _, f := range files {
		if !f.library() || !slices.Contains(pure, f.dir()) || impure[f.name] != "" {
			continue
		}
		names := make(map[string]string) // local name of an import: its path
		for _, spec := range f.tree.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				continue
			}
			name := path.Base(imported)
			if spec.Name != nil {
				name = spec.Name.Name
			}
			names[name] = imported
			for _, b := range bannedImports {
				if imported == b || strings.HasPrefix(imported, b+"/") {
					bad = append(bad, f.at(spec)+": pure code imports "+imported)
				}
			}
		}
		ast.Inspect(f.tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				bad = append(bad, f.at(n)+": pure code starts a goroutine")
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if ok && slices.Contains(bannedCalls[names[x.Name]], n.Sel.Name) {
					bad = append(bad, f.at(n)+": pure code uses "+names[x.Name]+"."+n.Sel.Name)
				}
			}
			return true
		})
	}
	return bad
}

func TestPureCode(t *testing.T) { check(t, callRule) }

func TestCallRule(t *testing.T) {
	catches(t, callRule, 5, map[string]string{
		"stream/a.go":              `package stream; import "time"; var now = time.Now`,
		"table/a.go":               `package table; import clock "time"; func f() { clock.Sleep(clock.Second) }`,
		"processor/task.go":        `package processor; func f() { go f() }`,
		"processor/app.go":         `package processor; import _ "os"; func f() { go f() }`,
		"state/row.go":             `package state; import _ "math/rand/v2"`,
		"state/a.go":               `package state; import _ "net/http"`,
		"state/badger/backend.go":  `package badger; import _ "os"; func f() { go f() }`,
		"processor/task_x_test.go": `package processor; import _ "os"`,
	})
}

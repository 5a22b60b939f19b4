package tidy

import (
	"go/ast"
	"go/token"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documentRule wants a comment on every exported symbol and on every package.
func documentRule(files []*file) []string {
	var bad []string
	packages := make(map[string]bool) // has a package comment
	for _, f := range files {
		if !f.library() {
			continue
		}
		packages[f.dir()] = packages[f.dir()] || f.tree.Doc.Text() != ""
		if f.tree.Name.Name == "main" {
			continue
		}
		for _, d := range f.tree.Decls {
			for name, n := range undocumented(d) {
				bad = append(bad, f.at(n)+": "+name+" has no comment")
			}
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(packages)) {
		if !packages[dir] {
			bad = append(bad, dir+": the package has no comment")
		}
	}
	return bad
}

// undocumented names the exported symbols of a declaration that have no comment. A comment on a group of constants or
// variables covers the group.
func undocumented(d ast.Decl) map[string]ast.Node {
	bad := make(map[string]ast.Node)
	want := func(doc *ast.CommentGroup, name string, n ast.Node) {
		if doc.Text() == "" {
			bad[name] = n
		}
	}
	switch d := d.(type) {
	case *ast.FuncDecl:
		if name := symbol(d); name != "" {
			want(d.Doc, name, d)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if !s.Name.IsExported() {
					continue
				}
				doc := s.Doc
				if doc == nil && !d.Lparen.IsValid() {
					doc = d.Doc
				}
				want(doc, s.Name.Name, s)
				// The comment of an interface with one method speaks of that method.
				if it, ok := s.Type.(*ast.InterfaceType); ok && len(it.Methods.List) > 1 {
					for _, m := range it.Methods.List {
						if len(m.Names) == 1 && m.Names[0].IsExported() && m.Comment == nil {
							want(m.Doc, s.Name.Name+"."+m.Names[0].Name, m)
						}
					}
				}
			case *ast.ValueSpec:
				for _, n := range s.Names {
					if n.IsExported() && s.Doc == nil && s.Comment == nil {
						want(d.Doc, n.Name, n)
					}
				}
			}
		}
	}
	return bad
}

// symbol is the name of an exported function, or Type.Name of an exported method of an exported type, or empty.
func symbol(d *ast.FuncDecl) string {
	if !d.Name.IsExported() {
		return ""
	}
	if d.Recv == nil {
		return d.Name.Name
	}
	recv := typeName(d.Recv.List[0].Type)
	if !token.IsExported(recv) {
		return ""
	}
	return recv + "." + d.Name.Name
}

// typeName is the name of a receiver's type, without pointer and type parameters.
func typeName(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.StarExpr:
		return typeName(x.X)
	case *ast.IndexExpr:
		return typeName(x.X)
	case *ast.IndexListExpr:
		return typeName(x.X)
	case *ast.Ident:
		return x.Name
	default:
		return ""
	}
}

// symbols are the exported names of a package and, as Type.Name, their methods and fields.
func symbols(files []*file, dir string) map[string]bool {
	names := make(map[string]bool)
	for _, f := range files {
		if f.dir() != dir || !f.library() {
			continue
		}
		for _, d := range f.tree.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				names[symbol(d)] = true
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						names[s.Name.Name] = true
						for _, m := range members(s.Type) {
							names[s.Name.Name+"."+m] = true
						}
					case *ast.ValueSpec:
						for _, n := range s.Names {
							names[n.Name] = true
						}
					}
				}
			}
		}
	}
	return names
}

func members(x ast.Expr) []string {
	var list *ast.FieldList
	switch x := x.(type) {
	case *ast.StructType:
		list = x.Fields
	case *ast.InterfaceType:
		list = x.Methods
	default:
		return nil
	}
	var names []string
	for _, f := range list.List {
		for _, n := range f.Names {
			names = append(names, n.Name)
		}
	}
	return names
}

var (
	fence    = regexp.MustCompile("(?s)\n```.*?\n```")
	code     = regexp.MustCompile("`[^`\n]+`")
	mention  = regexp.MustCompile(`\b([a-z]+)\.([A-Z]\w*)(?:\.([A-Z]\w*))?`)
	goFenced = regexp.MustCompile("(?s)\n```go\n(.*?)\n```")
)

// mentionRule wants every package.Symbol of ours in a document, in backquotes or in a block of Go, to exist. Embedded
// fields are not followed.
func mentionRule(files []*file) []string {
	known := make(map[string]map[string]bool) // by package name
	for _, f := range files {
		if name := path.Base(f.dir()); f.library() && f.tree.Name.Name == name && known[name] == nil {
			known[name] = symbols(files, f.dir())
		}
	}
	var bad []string
	for _, f := range files {
		if path.Ext(f.name) != ".md" || f.testdata() {
			continue
		}
		text := "\n" + string(f.text)
		var parts []string
		for _, m := range goFenced.FindAllStringSubmatch(text, -1) {
			parts = append(parts, m[1])
		}
		parts = append(parts, code.FindAllString(fence.ReplaceAllString(text, ""), -1)...)
		for _, part := range parts {
			for _, m := range mention.FindAllStringSubmatch(part, -1) {
				names, ours := known[m[1]]
				if !ours {
					continue
				}
				name := m[2]
				if names[name] && m[3] != "" && hasMembers(names, name) {
					name += "." + m[3]
				}
				if !names[name] {
					bad = append(bad, f.name+": there is no "+m[1]+"."+name)
				}
			}
		}
	}
	slices.Sort(bad)
	return slices.Compact(bad)
}

// hasMembers reports whether the symbol is a type with methods or fields; what follows a variable's name is not ours.
func hasMembers(names map[string]bool, typ string) bool {
	for n := range names {
		if strings.HasPrefix(n, typ+".") {
			return true
		}
	}
	return false
}

// operators are the packages whose functions each need a runnable Example.
var operators = []string{"stream", "table"}

// noExample are the functions that need none, and why.
var noExample = map[string]string{
	"stream.New":          plumbing,
	"table.New":           plumbing,
	"table.Values":        plumbing,
	"table.RequireStored": plumbing,
	"table.Deleted":       plumbing,

	"table.Materialize":          plumbing,
	"table.MaterializeVersioned": plumbing,
	"table.StoreView":            plumbing,
}

const plumbing = "it is for writing operators, and every operator's Example runs it"

func exampleRule(files []*file) []string {
	var bad []string
	for _, dir := range operators {
		shown := make(map[string]bool)
		for _, f := range files {
			if f.dir() != dir || !f.isTest() || f.tree == nil {
				continue
			}
			for _, d := range f.tree.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(fn.Name.Name, "Example") {
					name, _, _ := strings.Cut(strings.TrimPrefix(fn.Name.Name, "Example"), "_")
					shown[name] = true
				}
			}
		}
		for _, f := range files {
			if f.dir() != dir || !f.library() {
				continue
			}
			for _, d := range f.tree.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok || fn.Recv != nil || !fn.Name.IsExported() || shown[fn.Name.Name] {
					continue
				}
				if noExample[dir+"."+fn.Name.Name] == "" {
					bad = append(bad, f.at(fn)+": "+dir+"."+fn.Name.Name+" has no Example")
				}
			}
		}
	}
	return bad
}

func TestDocumented(t *testing.T) { check(t, documentRule) }
func TestMentions(t *testing.T)   { check(t, mentionRule) }
func TestExamples(t *testing.T)   { check(t, exampleRule) }

func TestDocRules(t *testing.T) {
	catches(t, documentRule, 8, map[string]string{
		"stream/a.go": `// Package stream is documented.
package stream

// F is documented.
func F() {}

func G() {}

type T[K any] struct{}

func (*T[K]) M() {}

func (T[K]) hidden() {}

type hidden struct{}

func (hidden) M() {}

const C = 1

// A group.
const (
	D = 1
	E = 2
)

var V, W = 1, 2

var X = 1 // X is documented.

// I is an interface.
type I interface {
	N()
	O()
}

// J is an interface whose one method needs no comment of its own.
type J interface{ P() }
`,
		"stream/a_test.go": "package stream; func TestX() {}",
	})
	catches(t, documentRule, 1, map[string]string{"cmd/x/main.go": "package main"})
	catches(t, mentionRule, 4, map[string]string{
		"processor/a.go": `package processor
type Config struct { Brokers int }
func (Config) Validate() {}
func New() {}`,
		"README.md": "`processor.New` `processor.Config.Brokers` `processor.Config.Validate()` processor.Gone\n`other.Gone`" +
			"`processor.Old` `processor.Config.Gone`\n```go\nprocessor.New()\nprocessor.Lost()\n```\n```text\nprocessor.Text\n```\n",
		"docs/adr/1.md": "`processor.Old2`",
	})
	catches(t, exampleRule, 1, map[string]string{
		"stream/a.go":            "package stream; func Map() {}; func Filter() {}; func (T) M() {}; type T int; func small() {}",
		"stream/example_test.go": "package stream_test; func ExampleMap_values() {}",
	})
}

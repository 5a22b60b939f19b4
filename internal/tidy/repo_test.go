package tidy

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "tailrace.dev"

// file is a file of the repository, tracked by git or about to be.
type file struct {
	name string // slash-separated path from the root
	text []byte
	tree *ast.File // of Go files that parse
	fset *token.FileSet
}

func (f *file) dir() string  { return path.Dir(f.name) }
func (f *file) isGo() bool   { return strings.HasSuffix(f.name, ".go") }
func (f *file) isTest() bool { return strings.HasSuffix(f.name, "_test.go") }

// library reports whether the file is Go code that is neither a test nor a test's data.
func (f *file) library() bool { return f.tree != nil && !f.isTest() && !f.testdata() }

func (f *file) testdata() bool { return strings.Contains("/"+f.name, "/testdata/") }

// at is the position of a node for a complaint.
func (f *file) at(n ast.Node) string {
	p := f.fset.Position(n.Pos())
	return f.name + ":" + strconv.Itoa(p.Line)
}

func newFile(name string, text []byte) *file {
	f := &file{name: name, text: text, fset: token.NewFileSet()}
	if f.isGo() && !f.testdata() {
		if tree, err := parser.ParseFile(f.fset, name, text, parser.ParseComments); err == nil {
			f.tree = tree // the compiler complains about the others
		}
	}
	return f
}

// repo reads the repository once for all tests.
var repo = sync.OnceValues(func() ([]*file, error) {
	root := filepath.Join("..", "..")
	names, err := list(root)
	if err != nil {
		return nil, err
	}
	var files []*file
	for _, name := range names {
		full := filepath.Join(root, filepath.FromSlash(name))
		info, err := os.Lstat(full)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, and the removal not committed yet
		}
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			continue
		}
		text, err := os.ReadFile(full)
		if err != nil {
			return nil, err
		}
		files = append(files, newFile(name, text))
	}
	return files, nil
})

// list names the files that git tracks or would track. Without git, as in an unpacked archive, it walks.
func list(root string) ([]string, error) {
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	if out, err := cmd.Output(); err == nil {
		return strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 }), nil
	}
	var names []string
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && name != ".ci" && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if !d.IsDir() {
			names = append(names, name)
		}
		return nil
	})
	return names, err
}

// check runs a rule over the repository.
func check(t *testing.T, rule func([]*file) []string) {
	t.Helper()
	files, err := repo()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("the repository has no files")
	}
	for _, complaint := range rule(files) {
		t.Error(complaint)
	}
}

// catches tells a rule's own test whether the rule complains about the files exactly as often as it should.
func catches(t *testing.T, rule func([]*file) []string, want int, files map[string]string) {
	t.Helper()
	var fs []*file
	for name, text := range files {
		f := newFile(name, []byte(text))
		if f.isGo() && f.tree == nil && !f.testdata() {
			t.Fatalf("%s does not parse", name)
		}
		fs = append(fs, f)
	}
	if got := rule(fs); len(got) != want {
		t.Errorf("%d complaints instead of %d: %q", len(got), want, got)
	}
}

func lines(text []byte) int { return bytes.Count(text, []byte("\n")) }

package tidy

import (
	"bytes"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// maxLines is how long a Go file may be: above it a file has more than one idea.
const maxLines = 800

func lengthRule(files []*file) []string {
	var bad []string
	for _, f := range files {
		if n := lines(f.text); f.isGo() && !f.testdata() && n > maxLines {
			bad = append(bad, fmt.Sprintf("%s has %d lines: split it, at most %d", f.name, n, maxLines))
		}
	}
	return bad
}

// phrases are texts that a finished file does not have.
var phrases = []struct {
	pattern *regexp.Regexp
	tests   bool // tests may have it
	because string
}{
	{regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`), false, "finish it, or write an issue"},
	{regexp.MustCompile(`(\.\.|/work)/shared\b|/tmp/brief`), true, "it names a place outside of the repository"},
}

func phraseRule(files []*file) []string {
	var bad []string
	for _, f := range files {
		if f.dir() == "internal/tidy" || binary(f.text) {
			continue // this package has to name them
		}
		for _, p := range phrases {
			if p.tests && (f.isTest() || f.testdata()) {
				continue
			}
			if at := p.pattern.FindIndex(f.text); at != nil {
				line := 1 + bytes.Count(f.text[:at[0]], []byte("\n"))
				bad = append(bad, fmt.Sprintf("%s:%d: %q: %s", f.name, line, f.text[at[0]:at[1]], p.because))
			}
		}
	}
	return bad
}

// root is everything that may lie in the repository's root.
var root = []string{
	".ci", ".gitattributes", ".gitignore", ".golangci.yml", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md",
	"LICENSE", "Makefile", "README.md", "bench", "cli", "cmd", "docs", "examples", "go.mod", "go.sum", "internal", "processor", "serde",
	"state", "stream", "table",
}

func rootRule(files []*file) []string {
	var bad []string
	seen := make(map[string]bool)
	for _, f := range files {
		top, _, _ := strings.Cut(f.name, "/")
		if !seen[top] && !slices.Contains(root, top) {
			bad = append(bad, top+" does not belong in the root")
		}
		seen[top] = true
	}
	return bad
}

// pictures may be binary.
var pictures = []string{".png", ".jpg", ".gif", ".ico", ".woff2", ".webp"}

const maxBytes = 1 << 20

func binary(text []byte) bool { return bytes.IndexByte(text[:min(len(text), 8000)], 0) >= 0 }

func binaryRule(files []*file) []string {
	var bad []string
	for _, f := range files {
		switch {
		case len(f.text) > maxBytes:
			bad = append(bad, fmt.Sprintf("%s has %d bytes: at most %d", f.name, len(f.text), maxBytes))
		case binary(f.text) && !f.testdata() && !slices.Contains(pictures, path.Ext(f.name)):
			bad = append(bad, f.name+" is a binary file")
		}
	}
	return bad
}

func TestFileLength(t *testing.T) { check(t, lengthRule) }
func TestPhrases(t *testing.T)    { check(t, phraseRule) }
func TestRoot(t *testing.T)       { check(t, rootRule) }
func TestNoBinaries(t *testing.T) { check(t, binaryRule) }

func TestStyleRules(t *testing.T) {
	catches(t, lengthRule, 1, map[string]string{
		"stream/long.go":          "package stream\n" + strings.Repeat("\n", maxLines),
		"stream/ok.go":            "package stream\n",
		"stream/testdata/long.go": strings.Repeat("\n", 2*maxLines),
	})
	catches(t, phraseRule, 3, map[string]string{
		"stream/a.go":      "package stream // TODO",
		"README.md":        "see ../shared/x.md",
		"bench/b_test.go":  "package bench // ../shared/x.md is fine, FIXME is not",
		"docs/c.md":        "a shared/thing, TODOS",
		"internal/tidy/d":  "TODO",
		"stream/e_test.go": "package stream // ../shared/x.md",
	})
	catches(t, rootRule, 2, map[string]string{
		"STATUS.md": "", "coverage.out": "", "README.md": "", "docs/x.md": "", ".ci/run": "",
	})
	catches(t, binaryRule, 2, map[string]string{
		"bench/bench": "\x7fELF\x00", "docs/a.png": "\x89PNG\x00", "state/testdata/row": "\x00",
		"docs/big.txt": strings.Repeat("x", maxBytes+1),
	})
}

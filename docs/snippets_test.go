package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

var (
	Posts  = processor.NewTopic("posts", serde.String, serde.String) // by author: the tag of a post
	ByTag  = processor.NewRepartition("posts-by-tag", serde.String, serde.String)
	Counts = state.KeyValue("posts-per-tag", serde.String, serde.Int64)
	Trends = processor.NewTopic("trends", serde.String, serde.Int64)
)

func BuildTrends(b *processor.Builder) {
	posts := stream.From(b, Posts)
	tagged := stream.Rekey(posts, func(author, tag string) string { return tag })
	counts := stream.Count(stream.Group(stream.Repartition(tagged, ByTag)), Counts)
	table.To(counts, Trends)
}

func Example() {
	topology, err := processor.Build(BuildTrends)
	if err != nil {
		fmt.Println(err)
		return
	}
	d := processortest.New(processortest.Panics, topology)
	posts := processortest.Input(d, Posts)
	posts.Pipe("ann", "go")
	posts.Pipe("bob", "kafka")
	posts.Pipe("cy", "go")
	for _, r := range processortest.Output(d, Trends).Read() {
		fmt.Println(r.Key, r.Value)
	}
	for _, sub := range topology.SubTopologies() {
		fmt.Println("sub-topology", sub, "reads", topology.Sources("trends", sub))
	}
	// Output:
	// go 1
	// kafka 1
	// go 2
	// sub-topology posts reads [posts]
	// sub-topology posts-by-tag reads [trends-posts-by-tag-repartition]
}

var (
	goBlock      = regexp.MustCompile("(?s)\n```go\n(.*?)\n```")
	mermaidBlock = regexp.MustCompile("(?s)\n```mermaid\n(.*?)\n```")
)

// TestSnippets wants every block of Go in a page to stand in a Go file of the repository, where it is compiled.
func TestSnippets(t *testing.T) {
	var code strings.Builder
	for _, pattern := range []string{"*.go", "../stream/*.go", "../table/*.go", "../processor/*.go", "../examples/*/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			code.WriteString(unindented(string(text)))
		}
	}
	for _, m := range goBlock.FindAllStringSubmatch(pages(t), -1) {
		if !strings.Contains(code.String(), unindented(m[1])) {
			t.Errorf("no Go file has this snippet:\n%s", m[1])
		}
	}
}

// TestDiagram wants the drawing of the topology in the page to be what Topology.Mermaid draws.
func TestDiagram(t *testing.T) {
	topology, err := processor.Build(BuildTrends)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.TrimSpace(topology.Mermaid())
	for _, m := range mermaidBlock.FindAllStringSubmatch(pages(t), -1) {
		if m[1] == want {
			return
		}
	}
	t.Errorf("no page shows the topology as it is drawn now:\n%s", want)
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// TestLinks wants the files to be there that the pages point to.
func TestLinks(t *testing.T) {
	for _, pattern := range []string{"*.md", "adr/*.md", "../*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range link.FindAllStringSubmatch(string(text), -1) {
				if _, err := os.Stat(filepath.Join(filepath.Dir(f), m[1])); err != nil {
					t.Errorf("%s points to %s, which is not there", f, m[1])
				}
			}
		}
	}
}

func unindented(text string) string {
	var b strings.Builder
	for _, line := range strings.Split(text, "\n") {
		b.WriteString(strings.TrimSpace(line))
		b.WriteByte('\n')
	}
	return b.String()
}

// The input is read again from its start, after a crash, while the state stays: what is past its grace stays past it.
func Example_offsetsResetWithoutState() {
	topology, err := processor.Build(func(b *processor.Builder) {
		perWindow := stream.WindowBy(leftGroup(b), stream.Tumbling(10*ms).Grace(5*ms))
		stream.To(windowed(stream.Count(perWindow, Windows)), Results)
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := processortest.New(processortest.Panics, topology)
	in, out := processortest.Input(d, Lefts), processortest.Output(d, Results)
	for _, round := range []string{"first", "again"} {
		for _, at := range []int64{3, 9, 26} {
			in.PipeAt("a", "x", time.UnixMilli(at))
		}
		for _, r := range out.Read() {
			fmt.Println(round, r.Key, r.Value)
		}
		d.Crash()
	}
	// Output:
	// first 0/10 1
	// first 0/10 2
	// first 20/30 1
	// again 20/30 2
}

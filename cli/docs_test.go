package cli

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"tailrace.dev/processor"
)

const page = "../docs/cli.md"

// block is an example of the page: what happens before it, in a comment, and then a command line with its output.
var block = regexp.MustCompile("(?m)^(?:<!-- (.*) -->\n)?```console\n\\$ (\\S+) ?(.*)\n((?s:.*?))^```$") //nolint:gocritic // with (?m) it is a line's start

// TestPage runs the examples of the page and compares what they print. With -args -rewrite it puts it in.
func TestPage(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NO_COLOR", "1")
	s := newScene(t)
	t.Setenv(envBrokers, s.brokers[0])
	rewrite := flag.Lookup("rewrite") != nil && flag.Lookup("rewrite").Value.String() == "true"
	if rewrite {
		s.dir = "/var/tmp/words" // a path that looks well, and has its length in the tables
		t.Cleanup(func() { _ = os.RemoveAll(s.dir) })
	}
	same := func(text string) string {
		text = strings.ReplaceAll(text, "/var/tmp/words", "STATE")
		return strings.ReplaceAll(s.plain(text), "BROKER", "HOST")
	}
	found := 0
	out := block.ReplaceAllStringFunc(string(text), func(whole string) string {
		m := block.FindStringSubmatch(whole)
		for step := range strings.SplitSeq(m[1], ", ") {
			what, who, _ := strings.Cut(step, " ")
			switch what {
			case "":
			case "feed":
				s.feed(8)
			case "start":
				s.start(who)
			case "stop":
				s.stop(who)
			default:
				t.Fatalf("unknown step %q", step)
			}
		}
		root := Tailrace()
		if m[2] == "words" {
			root = Command(func() (*processor.App, error) { return s.app("one") })
		}
		name := root.Name()
		got := strings.ReplaceAll(execute(t.Context(), root, strings.Fields(m[3])), name, m[2])
		got = regexp.MustCompile(`exit code \d\n`).ReplaceAllString(got, "")
		found++
		if !rewrite && same(got) != same(m[4]) {
			t.Errorf("%s %s prints\n%s\nand the page says\n%s", m[2], m[3], got, m[4])
		}
		return strings.TrimSuffix(whole, m[4]+"```") + strings.ReplaceAll(got, s.brokers[0], "localhost:9092") + "```"
	})
	if found < 5 {
		t.Fatalf("the page has %d examples", found)
	}
	if rewrite {
		if err := os.WriteFile(page, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

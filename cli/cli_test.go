package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/embedded"
	"tailrace.dev/internal/engine"
	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// execute runs a command line and returns what it printed to both, and the exit code.
func execute(ctx context.Context, root *cobra.Command, args []string) string {
	var out, errs bytes.Buffer
	code := Execute(ctx, root, args, &out, &errs)
	if code != 0 {
		fmt.Fprintf(&errs, "exit code %d\n", code)
	}
	return out.String() + errs.String()
}

// TestHelp shows the help of each command, and what it says of command lines that are wrong.
func TestHelp(t *testing.T) {
	for _, name := range []string{envBrokers, envUser, envPassword, envToken} {
		t.Setenv(name, "")
	}
	for _, file := range []string{"help", "usage"} {
		datadriven.RunTest(t, "testdata/"+file, func(t *testing.T, d *datadriven.TestData) string {
			var root *cobra.Command
			switch d.Cmd {
			case "tailrace":
				root = Tailrace()
			case "inbox":
				root = Command(func() (*processor.App, error) { return nil, errors.New("the application cannot be made") })
				was := root.Name()
				var b strings.Builder
				for line := range strings.Lines(d.Input) {
					b.WriteString(execute(t.Context(), root, strings.Fields(line)))
				}
				return strings.ReplaceAll(b.String(), was, "inbox")
			default:
				t.Fatalf("unknown command %s", d.Cmd)
			}
			return execute(t.Context(), root, strings.Fields(d.Input))
		})
	}
}

var (
	words   = processor.NewTopic("words", serde.String, serde.String)
	byWord  = processor.NewRepartition("by-word", serde.String, serde.String)
	perWord = state.KeyValue("per-word", serde.String, serde.Int64)
	counts  = processor.NewTopic("counts", serde.String, serde.Int64)
)

// buildCount counts words.
func buildCount(b *processor.Builder) {
	keyed := stream.Rekey(stream.From(b, words), func(_, word string) string { return word })
	table.To(stream.Count(stream.Group(stream.Repartition(keyed, byWord)), perWord), counts)
}

// scene is a broker with an application that counts words.
type scene struct {
	t       *testing.T
	brokers []string
	dir     string
	cl      *kgo.Client
	members map[string]*member
	fed     int

	standbys int
}

type member struct {
	stop context.CancelFunc
	done chan error
}

func newScene(t *testing.T) *scene {
	t.Helper()
	b, err := embedded.Start(embedded.Options{Topics: []embedded.Topic{
		{Name: "words", Partitions: 2}, {Name: "counts", Partitions: 1},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	s := &scene{t: t, brokers: b.Addrs(), dir: t.TempDir(), cl: cl, members: map[string]*member{}}
	t.Cleanup(func() {
		for _, m := range s.members {
			m.stop()
			if err := <-m.done; err != nil {
				t.Log(err)
			}
		}
	})
	return s
}

func (s *scene) app(name string) (*processor.App, error) {
	topology, err := processor.Build(buildCount)
	if err != nil {
		return nil, err
	}
	return processor.New("words-app", topology, processor.Config{
		Brokers: s.brokers, StateDir: s.dir + "/" + name, InstanceID: name, LeaveOnStop: true,
		CommitInterval: 20 * time.Millisecond, SessionTimeout: 6 * time.Second, Standbys: s.standbys,
	})
}

func (s *scene) start(name string) string {
	a, err := s.app(name)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{cancel, make(chan error, 1)}
	s.members[name] = m
	go func() { m.done <- a.Run(ctx) }()
	return s.settled(true)
}

// settled waits until all members are there, all tasks run, and nothing is left to do.
func (s *scene) settled(noLag bool) string {
	deadline := time.Now().Add(30 * time.Second)
	for {
		var st struct {
			State   string
			Members []struct{ Active, Standby, Warmup int }
			Lag     int64
		}
		out := execute(s.t.Context(), Tailrace(),
			[]string{"status", "--app", "words-app", "-o", "json", "--brokers", strings.Join(s.brokers, ",")})
		err := json.Unmarshal([]byte(out), &st)
		active, standby, warmup := 0, 0, 0
		for _, m := range st.Members {
			active += m.Active
			standby += m.Standby
			warmup += m.Warmup
		}
		want := 0
		if len(s.members) > 0 {
			want = 4
		}
		if err == nil && len(s.members) == 1 {
			for name := range s.members {
				err = s.opened(name) // what it was given last may not be open yet
			}
		}
		wantStandbys := 2 * min(s.standbys, max(0, len(s.members)-1))
		if err == nil && len(st.Members) == len(s.members) && active == want &&
			warmup == 0 && standby == wantStandbys && (!noLag || st.Lag == 0) {
			return ""
		}
		for name, m := range s.members {
			select {
			case err := <-m.done:
				m.done <- err // for who waits for the end
				s.t.Fatalf("member %s ended: %v", name, err)
			default:
			}
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("not settled: %v\n%s", err, out)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// opened tells what a member that has all tasks has not opened.
func (s *scene) opened(name string) error {
	var errs []error
	for _, task := range []string{"by-word/0", "by-word/1", "words/0", "words/1"} {
		_, err := os.Stat(s.dir + "/" + name + "/words-app/" + task)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *scene) stop(name string) string {
	m := s.members[name]
	delete(s.members, name)
	m.stop()
	if err := <-m.done; err != nil && !errors.Is(err, engine.ErrResetUnfinished) && !errors.Is(err, context.Canceled) {
		s.t.Errorf("member %s: %v", name, err)
	}
	return s.settled(false)
}

func (s *scene) feed(n int) {
	var records []*kgo.Record
	for range n {
		word := []string{"mill", "race", "tail", "wheel"}[s.fed%4]
		records = append(records, &kgo.Record{
			Topic: "words", Partition: int32(s.fed % 2), Value: []byte(word), Key: []byte("k"),
			Timestamp: time.UnixMilli(1_750_000_000_000 + int64(s.fed)*1000),
		})
		s.fed++
	}
	if err := s.cl.ProduceSync(s.t.Context(), records...).FirstErr(); err != nil {
		s.t.Fatal(err)
	}
}

// counts reads what the application wrote: for each word the series of its counts.
func (s *scene) counts(want int) string {
	cl, err := kgo.NewClient(kgo.SeedBrokers(s.brokers...), kgo.ConsumeTopics("counts"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	series := map[string][]string{}
	for n := 0; n < want && ctx.Err() == nil; {
		for _, r := range cl.PollFetches(ctx).Records() {
			v, err := serde.Int64.Decode(r.Value)
			if err != nil {
				s.t.Fatal(err)
			}
			series[string(r.Key)] = append(series[string(r.Key)], strconv.FormatInt(v, 10))
			n++
		}
	}
	var lines []string
	for k, v := range series {
		lines = append(lines, k+" "+strings.Join(v, " ")+"\n")
	}
	sort.Strings(lines)
	return strings.Join(lines, "")
}

var (
	memberID = regexp.MustCompile(`\b(one|two)-[0-9a-f]{32}\b`)
	hostPort = regexp.MustCompile(`127\.0\.0\.1:\d+`)
	instant  = regexp.MustCompile(`"\d{4}-\d\d-\d\dT[^"]*Z"`)
	process  = regexp.MustCompile(`process \d+`)
	// The widths of columns depend on what was replaced, and the offsets of internal topics on how many transactions there were.
	spaces   = regexp.MustCompile(`(\S) {2,}`)
	internal = regexp.MustCompile(`(-repartition  )\d+  \d+  `)
	// Which of the members gets a task is not told in advance.
	holder   = regexp.MustCompile(`((?:active|standby)  )(?:one|two)  `)
	inJSONBy = regexp.MustCompile(`"active": "(?:one|two)-ID"`)
	copyLag  = regexp.MustCompile(`(standby  \w+  )(\d+|-)\n`)
	inJSON   = regexp.MustCompile(`(-repartition",\s+"partition": \d,\s+"committed": )\d+(,\s+"end": )\d+`)
)

// plain replaces what differs from run to run.
func (s *scene) plain(text string) string {
	text = strings.ReplaceAll(text, strings.Join(s.brokers, ","), "BROKER")
	text = strings.ReplaceAll(text, s.dir, "STATE")
	text = memberID.ReplaceAllString(text, "$1-ID")
	text = hostPort.ReplaceAllString(text, "HOST")
	text = process.ReplaceAllString(text, "process PID")
	text = instant.ReplaceAllString(text, `"TIME"`)
	text = spaces.ReplaceAllString(text, "$1  ")
	text = internal.ReplaceAllString(text, "${1}N  N  ")
	text = inJSONBy.ReplaceAllString(text, `"active": "MEMBER-ID"`)
	text = holder.ReplaceAllString(text, "${1}MEMBER  ")
	text = copyLag.ReplaceAllString(text, "${1}LAG\n")
	return inJSON.ReplaceAllString(text, "${1}N${2}N")
}

// TestScenes runs commands on a running application. An input of several lines is several command lines, of tailrace or,
// where they begin with "own", of the application's binary.
func TestScenes(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	datadriven.Walk(t, "testdata/scenes", func(t *testing.T, path string) {
		s := newScene(t)
		t.Setenv(envBrokers, strings.Join(s.brokers, ","))
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var n int
			var name string
			d.MaybeScanArgs(t, "n", &n)
			d.MaybeScanArgs(t, "member", &name)
			switch d.Cmd {
			case "standbys":
				s.standbys = n
				return ""
			case "start":
				return s.start(name)
			case "stop":
				return s.stop(name)
			case "feed":
				s.feed(n)
				return ""
			case "settle":
				return s.settled(true)
			case "counts":
				return s.counts(n)
			case "run":
				var b strings.Builder
				for line := range strings.Lines(d.Input) {
					args := strings.Fields(strings.ReplaceAll(line, "STATE", s.dir))
					if args[0] == "own" {
						root := Command(func() (*processor.App, error) { return s.app("one") })
						b.WriteString(strings.ReplaceAll(execute(t.Context(), root, args[1:]), root.Name()+": ", "words-app: "))
					} else {
						b.WriteString(execute(t.Context(), Tailrace(), args))
					}
				}
				return s.plain(b.String())
			}
			t.Fatalf("unknown command %s", d.Cmd)
			return ""
		})
	})
}

// TestWatch: JSON comes as a line each time until the end; a table is drawn over the one before.
func TestWatch(t *testing.T) {
	s := newScene(t)
	s.feed(4)
	s.start("one")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines := make(chan string, 100)
	w := writerFunc(func(p []byte) (int, error) {
		lines <- string(p)
		return len(p), nil
	})
	done := make(chan int, 1)
	go func() {
		done <- Execute(ctx, Tailrace(), []string{
			"status", "--app", "words-app", "--brokers", s.brokers[0], "--watch", "--interval", "100ms", "-o", "json",
		}, w, os.Stderr)
	}()
	for range 3 {
		if line := <-lines; strings.Count(line, "\n") != 1 || !json.Valid([]byte(line)) {
			t.Errorf("not a line of JSON: %s", line)
		}
	}
	cancel()
	if code := <-done; code != ExitOK {
		t.Errorf("exit code %d", code)
	}

	out := execute(t.Context(), Tailrace(), []string{
		"status", "--app", "words-app", "--brokers", s.brokers[0], "--watch",
	})
	if strings.Contains(out, "\x1b") || !strings.HasPrefix(out, "words-app") || strings.Count(out, "stable") != 1 {
		t.Errorf("on what is no terminal:\n%q", out)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"tailrace.dev/processor"
)

// process is a run of the program as a user starts it.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}

	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

func startProcess(t *testing.T, command ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(command[0], command[1:]...), done: make(chan struct{}), more: make(chan struct{}, 1)}
	out, in := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = in, in
	p.cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			p.mu.Lock()
			p.lines = append(p.lines, s.Text())
			p.mu.Unlock()
			select {
			case p.more <- struct{}{}:
			default:
			}
		}
	}()
	go func() {
		_ = p.cmd.Wait() // the exit code is looked at by end
		_ = in.Close()   // a pipe in memory
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has ended, most likely
		<-p.done
		if t.Failed() {
			t.Logf("%v printed:\n%s", p.cmd.Args, p.text())
		}
	})
	return p
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// waitFor returns the first group of the pattern in what the process printed.
func (p *process) waitFor(pattern string, timeout time.Duration) string {
	p.t.Helper()
	re, late := regexp.MustCompile(pattern), time.After(timeout)
	for {
		if m := re.FindStringSubmatch(p.text()); m != nil {
			return m[len(m)-1]
		}
		select {
		case <-p.more:
		case <-p.done:
			if m := re.FindStringSubmatch(p.text()); m != nil {
				return m[len(m)-1]
			}
			p.t.Fatalf("%v ended without printing %q", p.cmd.Args, pattern)
		case <-late:
			p.t.Fatalf("%v did not print %q in %v", p.cmd.Args, pattern, timeout)
		}
	}
}

func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	<-p.done
}

// end waits for the process to end by itself, or after the signal if there is one, and wants exit code 0.
func (p *process) end(sig os.Signal, timeout time.Duration) {
	p.t.Helper()
	if sig != nil {
		if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			p.t.Fatal(err)
		}
	}
	select {
	case <-p.done:
	case <-time.After(timeout):
		p.t.Fatalf("%v has not ended after %v", p.cmd.Args, timeout)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Fatalf("%v ended with %d", p.cmd.Args, code)
	}
}

// TestSecondMember starts the line that the first member prints, kills the first in the middle of its work, lets the
// second take over, and has a third run, with the state of the first, check everything.
func TestSecondMember(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute: builds the program and waits for a session to end")
	}
	b, err := processor.StartEmbedded(processor.EmbeddedConfig{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	secondMember(t, b.Addrs())
}

func secondMember(t *testing.T, brokers []string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "denormalizer")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	args := []string{
		program, "-brokers", strings.Join(brokers, ","), "-session", "6s", "-state", t.TempDir(), "-http", "127.0.0.1:0",
	}

	first := startProcess(t, append(args, "-events", "0", "-rate", "100")...)
	first.waitFor(`tasks of this member: 1 \(monolog/0\)`, 30*time.Second)
	line := first.waitFor(`(?m)^  (\S+ -member .*)$`, time.Second)
	second := startProcess(t, strings.Fields(line)...)
	second.waitFor("hot spare: it takes over 6s after", 30*time.Second)
	first.waitFor(`articles out [1-9]\d`, 30*time.Second)
	first.kill()
	second.waitFor(`tasks of this member: 1 \(monolog/0\)`, 60*time.Second)
	page := second.waitFor(`page +(http://\S+)/`, time.Second)
	// The monolog of a real cluster may be there already: take a version that none of its records has.
	version := strconv.FormatInt(time.Now().Unix(), 10)
	asset := `{"id":"byline/ada-abbot","version":` + version + `,"title":"Renamed By Test"}`
	if resp, body := do(t, "POST", page+"/assets", asset, "Content-Type", "application/json"); resp.StatusCode != 202 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	second.waitFor("processed [1-9]", 30*time.Second)

	third := startProcess(t, append(args, "-events", "300", "-rate", "300", "-once")...)
	third.waitFor(`the monolog has [1-9]\d\d+ records`, 30*time.Second)
	third.end(nil, 90*time.Second)
	third.waitFor(`computed again from the whole monolog, [1-9]\d+ of [1-9]\d+ published articles are equal`, time.Second)
	second.end(syscall.SIGINT, 30*time.Second)
}

// TestPartitionedMembers starts the line that the first member of the partitioned form prints, and wants the second to get
// a part of the work, and all to be right in the end.
func TestPartitionedMembers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds: builds the program")
	}
	b, err := processor.StartEmbedded(processor.EmbeddedConfig{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	program := filepath.Join(t.TempDir(), "denormalizer")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	first := startProcess(t, program, "-partitioned", "-brokers", strings.Join(b.Addrs(), ","), "-session", "6s",
		"-state", t.TempDir(), "-events", "3000", "-rate", "200", "-once")
	first.waitFor(`articles out [1-9]`, 30*time.Second)
	second := startProcess(t, strings.Fields(first.waitFor(`(?m)^  (\S+ -member .*)$`, time.Second))...)
	second.waitFor(`tasks of this member: [1-9]`, 30*time.Second)
	second.waitFor(`processed [1-9]`, 30*time.Second)
	second.kill()
	first.end(nil, 90*time.Second)
	first.waitFor(`from both topics, ([1-9]\d+) of ([1-9]\d+) published articles are equal`, time.Second)
}

func TestCommandLine(t *testing.T) {
	tests := []struct {
		args string
		code int
	}{
		{"-h", 0}, {"-nonsense", 2}, {"extra", 2}, {"-member", 2}, {"-brokers ,", 2}, {"-brokers a:1 -data d", 2},
		{"-rate 0", 2}, {"-events -1", 2}, {"-once -events 0", 2}, {"-session 1s", 2}, {"-member -brokers a:1 -rate 5", 2},
		{"-partitioned -http 127.0.0.1:0", 2},
	}
	for _, tt := range tests {
		if code := command(t.Context(), strings.Fields(tt.args), io.Discard, io.Discard); code != tt.code {
			t.Errorf("%s: exit code %d, want %d", tt.args, code, tt.code)
		}
	}
}

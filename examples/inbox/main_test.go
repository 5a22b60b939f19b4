package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, args := range []string{
		"", "-brokers a:1,b:2", "-member -brokers a:1", "-events 0 -rate 10", "-once", "-data d -state s", "-quiet -v",
	} {
		if _, err := parse(strings.Fields(args), io.Discard); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
	for _, args := range []string{
		"more", "-member", "-brokers=", "-brokers=,", "-brokers a:1 -data d", "-rate 0", "-events -1",
		"-once -events 0", "-member -brokers a:1 -rate 5", "-session 1s", "-nonsense",
	} {
		if _, err := parse(strings.Fields(args), io.Discard); err == nil {
			t.Errorf("%q passes", args)
		}
	}
}

func TestCommandLineErrors(t *testing.T) {
	var out, errs bytes.Buffer
	code := command(t.Context(), []string{"-rate", "0"}, &out, &errs)
	if code != 2 || !strings.HasPrefix(errs.String(), "inbox: -rate") {
		t.Errorf("%d %s", code, errs.String())
	}
	code = command(t.Context(), []string{"-h"}, &out, &errs)
	if code != 0 || !strings.Contains(errs.String(), "-brokers") {
		t.Errorf("%d %s", code, errs.String())
	}
	if out.Len() > 0 {
		t.Errorf("on stdout: %s", out.String())
	}
}

func TestListen(t *testing.T) {
	a, err := listen(":0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	if !loopbackListener(a) {
		t.Errorf("listens at %v", a.Addr())
	}
	b, err := listen(a.Addr().String(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	if c, err := listen(a.Addr().String(), false); err == nil {
		t.Errorf("a taken port was opened: %v, %v", a.Addr(), c.Close())
	}
}

// child is a process of this program whose output is watched.
type child struct {
	cmd  *exec.Cmd
	done chan error

	mu  sync.Mutex
	out strings.Builder
}

// spawn starts a command and kills it at the end of the test, if it still runs.
func spawn(t *testing.T, cmd *exec.Cmd) *child {
	t.Helper()
	c := &child{cmd: cmd, done: make(chan error, 1)}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		lines := bufio.NewScanner(pipe)
		for lines.Scan() {
			c.mu.Lock()
			c.out.WriteString(lines.Text() + "\n")
			c.mu.Unlock()
		}
		c.done <- cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails if it has ended
		if t.Failed() {
			t.Logf("%v:\n%s", cmd.Args, c.output())
		}
	})
	return c
}

func (c *child) output() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

// find waits for a line that matches, and returns its first group.
func (c *child) find(t *testing.T, within time.Duration, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if m := re.FindStringSubmatch(c.output()); m != nil {
			return m[len(m)-1]
		}
	}
	t.Fatalf("no %q within %v", pattern, within)
	return ""
}

func (c *child) end(t *testing.T, within time.Duration) {
	t.Helper()
	select {
	case err := <-c.done:
		if err != nil {
			t.Fatalf("ended with %v", err)
		}
	case <-time.After(within):
		t.Fatalf("still runs after %v", within)
	}
}

// TestMembers runs the program as its README says: one process, then the line that it prints for a second. The second
// gets half of the tasks and is killed without warning; all the same every counter is right in the end.
func TestMembers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute; run without -short")
	}
	bin := filepath.Join(t.TempDir(), "inbox")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// A context of its own: t.Context is cancelled before the clean-up has printed what the processes said.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	first := spawn(t, exec.CommandContext(ctx, bin,
		"-events", "3000", "-rate", "250", "-http", "127.0.0.1:0", "-session", "6s"))
	line := first.find(t, 30*time.Second, `(?m)^  (\S.* -member -brokers .*)$`)
	url := first.find(t, time.Second, `(?m)^page +(http://\S+)/$`)
	first.find(t, 30*time.Second, `tasks of this member: 8`)

	// exec, so that killing the shell's process kills the member.
	second := spawn(t, exec.CommandContext(ctx, "/bin/sh", "-c", "exec "+line))
	second.find(t, 30*time.Second, `tasks of this member: 4`)
	first.find(t, 30*time.Second, `tasks of this member: 4`)
	second.find(t, 30*time.Second, `processed [1-9]`)
	if err := second.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	postMail(ctx, t, url)

	out := first.find(t, 90*time.Second, `(?s)(check 1: .*check 2: [^\n]*\n)`)
	for _, check := range regexp.MustCompile(`(\d+) of (\d+)\n`).FindAllStringSubmatch(out, -1) {
		if check[1] != check[2] || check[1] == "0" {
			t.Error(out)
		}
	}
	first.find(t, 5*time.Second, `Ctrl-C ends`)
	var box userInbox
	getJSON(ctx, t, url+"/inbox/zz.test", &box)
	if box.Unread != 1 || len(box.Messages) != 1 || box.Messages[0].Subject != "by hand" {
		t.Errorf("inbox %+v", box)
	}
	if err := first.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	first.end(t, 20*time.Second)
	state := regexp.MustCompile(`(?m)^state +(\S+) `).FindStringSubmatch(first.output())
	if _, err := os.Stat(state[1]); !os.IsNotExist(err) {
		t.Errorf("temporary state is still there: %v", err)
	}
}

// TestStop: being stopped in the middle of the load is a clean end.
func TestStop(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a broker; run without -short")
	}
	var out, errs bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(4*time.Second, cancel)
	if code := command(ctx, []string{"-http", "127.0.0.1:0", "-quiet"}, &out, &errs); code != 0 {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
	if out.Len() > 0 {
		t.Errorf("-quiet printed %s", out.String())
	}
}

func postMail(ctx context.Context, t *testing.T, url string) {
	t.Helper()
	body := strings.NewReader(`{"kind":"sent","actor":"me","to":["zz.test"],"subject":"by hand"}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/events", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatal(resp.Status)
	}
}

func getJSON(ctx context.Context, t *testing.T, url string, v any) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		t.Fatal(err)
	}
}

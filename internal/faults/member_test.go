//go:build unix

package faults

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// member is a process that runs the application.
type member struct {
	t       *testing.T
	spec    childSpec
	cmd     *exec.Cmd
	stdin   io.Closer
	started time.Time
	done    chan struct{} // closed when the process has ended and everything it said was read

	mu    sync.Mutex
	lines []line
	log   bytes.Buffer
}

// line is something that a member said.
type line struct {
	at   time.Time
	word string
	text string
}

// transcripts counts how many members' transcripts a failed test has shown: those of the last tell enough.
var transcripts sync.Map // of *atomic.Int64 by the test's name

// spawn starts a member. It is killed at the end of the test if it is still there.
func spawn(t *testing.T, spec childSpec) *member {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	m := &member{t: t, spec: spec, cmd: exec.Command(exe), started: time.Now(), done: make(chan struct{})}
	m.cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	m.cmd.Stderr = (*memberLog)(m)
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.done)
		s := bufio.NewScanner(stdout)
		for s.Scan() {
			word, text, _ := strings.Cut(s.Text(), " ")
			m.mu.Lock()
			m.lines = append(m.lines, line{time.Now(), word, text})
			m.mu.Unlock()
		}
		_ = m.cmd.Wait() // how it ended is asked of ProcessState
	}()
	t.Cleanup(func() {
		m.kill()
		if shown, _ := transcripts.LoadOrStore(t.Name(), new(atomic.Int64)); t.Failed() && shown.(*atomic.Int64).Add(1) <= 3 {
			t.Logf("member %d:\n%s", m.cmd.Process.Pid, m.transcript())
		}
	})
	return m
}

// memberLog collects what the member logs.
type memberLog member

func (l *memberLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.log.Len() < 1<<20 {
		l.log.Write(p)
	}
	return len(p), nil
}

func (m *member) transcript() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	for _, l := range m.lines {
		b.WriteString(l.at.Format("15:04:05.000 ") + l.word + " " + l.text + "\n")
	}
	return b.String() + m.log.String()
}

func (m *member) signal(s syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Errorf("signal %v: %v", s, err)
	}
}

// kill ends the process with SIGKILL, unless it has ended.
func (m *member) kill() {
	_ = m.cmd.Process.Kill()
	<-m.done
}

// wait waits until the process ends by itself and returns what Run returned: "<nil>", the error's text, or "" after a
// kill.
func (m *member) wait(limit time.Duration) string {
	m.t.Helper()
	select {
	case <-m.done:
	case <-time.After(limit):
		m.t.Fatalf("the member did not end within %v", limit)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lines {
		if l.word == saysEnd {
			text, err := strconv.Unquote(l.text)
			if err != nil {
				m.t.Fatalf("line %q: %v", l.text, err)
			}
			return text
		}
	}
	return ""
}

// stop ends the member in good order.
func (m *member) stop() {
	m.t.Helper()
	// Before it says anything, a process that is asked to stop dies of the signal.
	until(m.t, time.Minute, "the member to start", func() bool { return m.ended() || len(m.said(saysState)) > 0 })
	m.signal(syscall.SIGTERM)
	if end := m.wait(30 * time.Second); end != "<nil>" {
		m.t.Errorf("stop: %s", end)
	}
}

func (m *member) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// running returns how long after its start the member first ran all its tasks; ok is false if it has not.
func (m *member) running() (after time.Duration, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lines {
		if l.word == saysState && l.text == "running" {
			return l.at.Sub(m.started), true
		}
	}
	return 0, false
}

func (m *member) waitRunning(limit time.Duration) {
	m.t.Helper()
	until(m.t, limit, "the member to run", func() bool {
		if m.ended() {
			m.t.Fatalf("the member ended: %s", m.transcript())
		}
		_, ok := m.running()
		return ok
	})
}

// said returns the texts of what the member said with a word.
func (m *member) said(word string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var texts []string
	for _, l := range m.lines {
		if l.word == word {
			texts = append(texts, l.text)
		}
	}
	return texts
}

// logged tells whether the member logged a text.
func (m *member) logged(text string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Contains(m.log.Bytes(), []byte(text))
}

// wiped tells whether the member dropped local state that it should have built on.
func (m *member) wiped() bool {
	return m.logged("dropping the local rows") || m.logged("local state is damaged")
}

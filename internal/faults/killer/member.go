//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// member is a place in the group: a state directory and the process that has it now.
type member struct {
	name  string
	state string
	log   string
	start func() *exec.Cmd

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
	// asked tells that the process's end is our doing.
	asked bool
	err   error // of a process that ended by itself
}

// stopPatience is how long a process that was asked to stop may take.
const stopPatience = 40 * time.Second

// lastCommit is how a process ends that could not commit when it was asked to stop, because the broker had just died or
// was away. It says so by its exit code, and what is lost is work, no records.
const lastCommit = "stopped without a last commit"

// up starts the member's process.
func (m *member) up() error {
	cmd := m.start()
	out, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	// It must not get the interrupt that ends this program: that one ends in good order, and kills its members.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	m.mu.Lock()
	m.cmd, m.done, m.asked = cmd, done, false
	m.mu.Unlock()
	go func() {
		defer close(done)
		err := cmd.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		if !m.asked {
			m.err = fmt.Errorf("member %s ended by itself: %w\n%s", m.name, orEnd(err), tail(m.log))
		}
	}()
	return nil
}

func orEnd(err error) error {
	if err == nil {
		return errors.New("exit code 0")
	}
	return err
}

// end makes the process end by a signal and waits until it has.
func (m *member) end(s syscall.Signal) error {
	m.mu.Lock()
	m.asked = true
	cmd, done := m.cmd, m.done
	m.mu.Unlock()
	if cmd == nil {
		return nil
	}
	_ = cmd.Process.Signal(s) // it may just have ended
	select {
	case <-done:
	case <-time.After(stopPatience):
		_ = cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to the log
		select {
		case <-done:
		case <-time.After(stopPatience):
			_ = cmd.Process.Kill()
			<-done
		}
		return fmt.Errorf("member %s still ran %v after %v\n%s", m.name, stopPatience, s, tail(m.log))
	}
	if code := cmd.ProcessState.ExitCode(); s == syscall.SIGTERM && code > 0 && !strings.Contains(tail(m.log), lastCommit) {
		return fmt.Errorf("member %s ended with code %d when asked to stop\n%s", m.name, code, tail(m.log))
	}
	return m.failed()
}

// failed returns how the process ended by itself, if it has.
func (m *member) failed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// tail returns the end of a log.
func tail(path string) string {
	const size = 6 << 10
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-size):]))
}

// complaints are lines of the members' logs that no run may have, whatever it did: state that was found to be wrong.
var complaints = []string{"dropping the local rows", "local state is damaged", "panic:", "fatal error:"}

// complained returns the first such line in the logs of a run.
func complained(dir string) error {
	return eachLog(dir, func(path, text string) error {
		for line := range strings.Lines(text) {
			for _, c := range complaints {
				if strings.Contains(line, c) {
					return fmt.Errorf("%s: %s", path, strings.TrimSpace(line))
				}
			}
		}
		return nil
	})
}

// said counts how often the logs of a run contain a text.
func said(dir, what string) (n int, err error) {
	err = eachLog(dir, func(_, text string) error {
		n += strings.Count(text, what)
		return nil
	})
	return n, err
}

// eachLog calls f with each log of a run, until it returns an error.
func eachLog(dir string, f func(path, text string) error) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return err
	}
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := f(path, string(b)); err != nil {
			return err
		}
	}
	return nil
}

package engine

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"tailrace.dev/internal/task"
	"tailrace.dev/state"
)

// TestOldDirectoriesAreRemoved lets directories of tasks that are not here grow old. Those of the member's own tasks stay,
// and so does what is not a task's; a restart does not make any younger.
func TestOldDirectoriesAreRemoved(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("clean"))
	r.settings.CleanupDelay = 10 * time.Minute
	var ahead atomic.Int64
	r.settings.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	var cleaned []task.ID
	r.settings.Events.Cleaned = func(id task.ID) { r.note(func() { cleaned = append(cleaned, id) }) }
	locked := filepath.Join(r.settings.StateDir, "was", "9")
	r.program.DestroyState = func(dir string) error {
		if dir == locked {
			return state.ErrLocked
		}
		return os.RemoveAll(dir)
	}
	exists := func(dir string) bool {
		_, err := os.Lstat(filepath.Join(r.settings.StateDir, dir))
		return err == nil
	}
	keep := []string{"in/0", "in/1", "in/x", "in/01", ".dot/1", "@global/store", "was/9", "link"}
	young := []string{"in/3"}
	old := []string{"in/7", "was/0", "was/1", "gone/0", "in/2.trash-ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
	age := func(dir string, by time.Duration) {
		path := filepath.Join(r.settings.StateDir, dir)
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-by)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range append(keep[:7:7], old...) {
		age(dir, time.Hour)
	}
	for _, dir := range young {
		age(dir, 5*time.Minute)
	}
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(r.settings.StateDir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(r.settings.StateDir, "in", "8")); err != nil {
		t.Fatal(err)
	}
	p := r.start(t)
	c.feed("in", 0, 100, 10)
	c.verifyCounts("out", 100)
	for _, dir := range append(old, young...) {
		if !exists(dir) {
			t.Errorf("%s was removed before the member was in the group for a while", dir)
		}
	}
	ahead.Store(int64(time.Minute))
	until(t, "the old directories to go", func() bool {
		for _, dir := range append(old, "gone") {
			if exists(dir) {
				return false
			}
		}
		return true
	})
	p.stop()
	p = r.start(t)
	until(t, "running", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.states[len(r.states)-1] == StateRunning
	})
	for _, dir := range young {
		if !exists(dir) {
			t.Errorf("%s was removed too early", dir)
		}
	}
	time.Sleep(100 * time.Millisecond) // the session has looked once
	ahead.Store(int64(6 * time.Minute))
	until(t, "the younger one to go", func() bool { return !exists("in/3") })
	ahead.Store(int64(time.Hour))
	time.Sleep(100 * time.Millisecond)
	for _, dir := range append(keep, "in/8") {
		if !exists(dir) {
			t.Errorf("%s was removed", dir)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
	c.feed("in", 100, 100, 10)
	c.verifyCounts("out", 200)
	p.stop()
	if len(cleaned) != 5 {
		t.Errorf("told of %v", cleaned)
	}
}

// TestMovedTaskIsForgotten moves a task to another member and removes its directory here, when the time has come.
func TestMovedTaskIsForgotten(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("forget"))
	var ahead atomic.Int64
	r.settings.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r.settings.CleanupDelay = 10 * time.Minute
	r.settings.WarmupLag = 1 << 40
	p1 := r.start(t, r.member(1))
	c.feed("in", 0, 100, 10)
	c.verifyCounts("out", 100)
	r2 := newRig(t, c, countProgram("forget"))
	r2.settings.WarmupLag = 1 << 40
	p2 := r2.start(t, r2.member(2))
	until(t, "the other member to have a task", func() bool { return len(p2.tasksOf()) == 1 && len(p1.tasksOf()) == 1 })
	dirs := func() (n int) {
		found, err := filepath.Glob(filepath.Join(p1.e.cfg.StateDir, "in", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	if n := dirs(); n != 2 {
		t.Errorf("%d directories right after the move", n)
	}
	ahead.Store(int64(time.Minute))
	time.Sleep(50 * time.Millisecond)
	ahead.Store(int64(20 * time.Minute))
	until(t, "the directory to go", func() bool { return dirs() == 1 })
	c.feed("in", 100, 100, 10)
	c.verifyCounts("out", 200)
	p2.stop()
	p1.stop()
}

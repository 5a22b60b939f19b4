package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"tailrace.dev/internal/task"
)

// lockFile guards a state directory against a second process; it holds the pid of the one that uses it.
const lockFile = ".lock"

// memberFile remembers the topology that this member last joined the group with.
const memberFile = ".member"

// openStateDir makes and locks the state directory. A second process with the same directory has the same identity:
// it must not come as far as the broker, where it would fence the first.
func (e *Engine) openStateDir() (unlock func(), err error) {
	if e.cfg.InMemory {
		return func() {}, nil
	}
	fail := func(err error) error {
		return &Error{Kind: ErrStateDir, Partition: -1, Detail: e.cfg.StateDir, Err: err}
	}
	if err := os.MkdirAll(e.cfg.StateDir, 0o700); err != nil {
		return nil, fail(err)
	}
	if info, err := os.Lstat(e.cfg.StateDir); err != nil || !info.IsDir() {
		return nil, fail(errors.Join(err, errors.New("not a directory")))
	}
	root, err := os.OpenRoot(e.cfg.StateDir)
	if err != nil {
		return nil, fail(err)
	}
	f, err := root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fail(errors.Join(err, root.Close()))
	}
	if err := tryLock(f); err != nil {
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0) // short: the file holds a few digits
		err = &Error{
			Kind: ErrStateLocked, Partition: -1,
			Detail: fmt.Sprintf("%s is used by process %s", e.cfg.StateDir, strings.TrimSpace(string(pid[:n]))),
			Hint:   "stop that process, or give this one its own state directory",
		}
		return nil, errors.Join(err, f.Close(), root.Close())
	}
	err = errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n"))
	if err != nil {
		return nil, fail(errors.Join(err, f.Close(), root.Close()))
	}
	e.root = root
	return func() {
		releaseLock(f)
		_ = f.Close()
		_ = root.Close()
	}, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// taskPath is the task's directory inside the state directory.
func taskPath(id task.ID) string { return path.Join(id.Sub, strconv.Itoa(int(id.Partition))) }

// taskDir makes the directory of a task, its own and nobody else's to read, and returns its absolute path.
func (e *Engine) taskDir(id task.ID) (string, error) {
	if e.cfg.InMemory {
		return "", nil
	}
	rel := taskPath(id)
	for _, dir := range []string{id.Sub, rel} {
		if err := e.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", e.taskDirError(id, err)
		}
		info, err := e.root.Lstat(dir)
		if err != nil {
			return "", e.taskDirError(id, err)
		}
		if !info.IsDir() {
			return "", e.taskDirError(id, fmt.Errorf("%s is not a directory (links are refused)", dir))
		}
		if info.Mode().Perm() != 0o700 {
			if err := e.root.Chmod(dir, 0o700); err != nil {
				return "", e.taskDirError(id, err)
			}
		}
	}
	return filepath.Join(e.cfg.StateDir, filepath.FromSlash(rel)), nil
}

// wipeTaskDir removes the state of one task, and nothing else.
func (e *Engine) wipeTaskDir(id task.ID) error {
	if e.cfg.InMemory {
		return nil
	}
	if err := e.root.RemoveAll(taskPath(id)); err != nil {
		return e.taskDirError(id, err)
	}
	return nil
}

func (e *Engine) taskDirError(id task.ID, err error) error {
	return &Error{Kind: ErrStateDir, Partition: -1, Detail: "task " + id.String(), Err: err}
}

// tasksOnDisk lists the tasks that have a directory here: what the assignment prefers to give to this process.
func (e *Engine) tasksOnDisk() []task.ID {
	if e.root == nil {
		return nil
	}
	var ids []task.ID
	for _, sub := range e.p.Subs {
		entries, err := fs.ReadDir(e.root.FS(), sub.Name)
		if err != nil {
			continue // not there: nothing on disk
		}
		for _, entry := range entries {
			if p, err := strconv.ParseInt(entry.Name(), 10, 32); err == nil && entry.IsDir() && p >= 0 {
				ids = append(ids, task.ID{Sub: sub.Name, Partition: int32(p)})
			}
		}
	}
	return ids
}

// joinedAs tells whether this member's last join was with the present topology. Without a directory to remember it in,
// it was not.
func (e *Engine) joinedAs(fingerprint string) bool {
	if e.root == nil {
		return false
	}
	b, err := e.root.ReadFile(memberFile)
	return err == nil && string(b) == fingerprint
}

func (e *Engine) rememberJoin(fingerprint string) error {
	if e.root == nil {
		return nil
	}
	return e.root.WriteFile(memberFile, []byte(fingerprint), 0o600)
}

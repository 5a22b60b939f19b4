package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailrace.dev/internal/task"
)

// localState is an application's state directory, seen from outside of the application.
type localState struct {
	dir  string // absolute
	root *os.Root
	lock *os.File
}

// openLocal opens the state directory of an application without making it. Nothing there, or no directory given, is nil.
func openLocal(dir string) (*localState, error) {
	if dir == "" {
		return nil, nil
	}
	fail := func(err error) error {
		return &Error{Kind: ErrStateDir, Partition: -1, Detail: dir, Err: err}
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fail(err)
	}
	info, err := os.Lstat(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fail(err)
	case !info.IsDir():
		return nil, fail(errors.New("not a directory (links are refused)"))
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fail(err)
	}
	return &localState{dir: abs, root: root}, nil
}

// hold takes the lock that a running application has on its directory.
func (l *localState) hold() error {
	f, err := l.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return &Error{Kind: ErrStateDir, Partition: -1, Detail: l.dir, Err: err}
	}
	if err := tryLock(f); err != nil {
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0) // short: the file holds a few digits
		return errors.Join(&Error{
			Kind: ErrStateLocked, Partition: -1,
			Detail: fmt.Sprintf("%s is used by process %s", l.dir, strings.TrimSpace(string(pid[:n]))),
			Hint:   "stop that process first",
		}, f.Close())
	}
	l.lock = f
	return nil
}

// holdWithin is hold for a process that is about to end.
func (l *localState) holdWithin(d time.Duration) error {
	deadline := time.Now().Add(d)
	for {
		err := l.hold()
		if err == nil || !errors.Is(err, ErrStateLocked) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(memberPause)
	}
}

func (l *localState) close() {
	if l == nil {
		return
	}
	if l.lock != nil {
		releaseLock(l.lock)
		_ = l.lock.Close() // nothing was written
	}
	_ = l.root.Close()
}

// tasks lists the directories of tasks, by sub-topology and partition. A link in the place of one is refused: what it
// points to is not the application's.
func (l *localState) tasks() ([]task.ID, error) {
	if l == nil {
		return nil, nil
	}
	var ids []task.ID
	subs, err := fs.ReadDir(l.root.FS(), ".")
	if err != nil {
		return nil, &Error{Kind: ErrStateDir, Partition: -1, Detail: l.dir, Err: err}
	}
	refused := func(rel string) error {
		return &Error{
			Kind: ErrStateDir, Partition: -1, Detail: filepath.Join(l.dir, rel), Err: errors.New("it is a link"),
			Hint: "links are not followed: look at where it points, and remove it",
		}
	}
	for _, sub := range subs {
		if strings.HasPrefix(sub.Name(), ".") || sub.Name() == globalDir {
			continue
		}
		if sub.Type()&fs.ModeSymlink != 0 {
			return nil, refused(sub.Name())
		}
		if !sub.IsDir() {
			continue
		}
		entries, err := fs.ReadDir(l.root.FS(), sub.Name())
		if err != nil {
			return nil, &Error{Kind: ErrStateDir, Partition: -1, Detail: filepath.Join(l.dir, sub.Name()), Err: err}
		}
		for _, e := range entries {
			p, err := strconv.ParseInt(e.Name(), 10, 32)
			if err != nil || p < 0 || strconv.FormatInt(p, 10) != e.Name() {
				continue
			}
			if e.Type()&fs.ModeSymlink != 0 {
				return nil, refused(filepath.Join(sub.Name(), e.Name()))
			}
			if e.IsDir() {
				ids = append(ids, task.ID{Sub: sub.Name(), Partition: int32(p)})
			}
		}
	}
	slices.SortFunc(ids, func(a, b task.ID) int {
		if a.Sub != b.Sub {
			return strings.Compare(a.Sub, b.Sub)
		}
		return int(a.Partition) - int(b.Partition)
	})
	return ids, nil
}

// remove removes the directory of a task, and that of its sub-topology when it was the last one.
func (l *localState) remove(id task.ID) error {
	if err := l.root.RemoveAll(taskPath(id)); err != nil {
		return &Error{Kind: ErrStateDir, Partition: -1, Detail: filepath.Join(l.dir, taskPath(id)), Err: err}
	}
	_ = l.root.Remove(id.Sub) // fails while there are others, which is right
	return nil
}

package badger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tailrace.dev/state"
)

const (
	// A child that is being started holds the files of its parent for an instant, so that a lock may look taken right
	// after it was released.
	lockAttempts = 10
	lockPause    = 30 * time.Millisecond
)

// openDirectory opens and locks the directory of a task. It makes the directory when create is set, and refuses one
// that is a symbolic link.
func openDirectory(dir string, create, noSync bool) (_ *directory, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("badger: %w", err)
	}
	if create {
		if err := os.MkdirAll(dir, dirPerm); err != nil {
			return nil, fmt.Errorf("badger: %w", err)
		}
	}
	info, err := os.Lstat(dir)
	switch {
	case err != nil:
		return nil, fmt.Errorf("badger: %w", err)
	case info.Mode()&fs.ModeSymlink != 0:
		return nil, fmt.Errorf("badger: %s is a symbolic link; the state directory must be a real one", dir)
	case !info.IsDir():
		return nil, fmt.Errorf("badger: %s is not a directory", dir)
	}
	d := &directory{path: dir, noSync: noSync}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.root, err = os.OpenRoot(dir); err != nil {
		return nil, fmt.Errorf("badger: %w", err)
	}
	if d.self, err = d.root.Open("."); err != nil {
		return nil, fmt.Errorf("badger: %w", err)
	}
	// Between the look and the opening the directory may have become a link.
	if opened, err := d.self.Stat(); err != nil || !os.SameFile(info, opened) {
		return nil, fmt.Errorf("badger: %s was replaced while it was opened (%w)", dir, errors.Join(err, fs.ErrInvalid))
	}
	if err := d.lock(); err != nil {
		return nil, err
	}
	if create && info.Mode().Perm() != dirPerm {
		if err := d.root.Chmod(".", dirPerm); err != nil {
			return nil, fmt.Errorf("badger: %w", err)
		}
	}
	return d, nil
}

// lock makes the directory this process's own, or says whose it is.
func (d *directory) lock() error {
	for attempt := 1; ; attempt++ {
		ok, err := tryLock(d.self)
		if err != nil {
			return fmt.Errorf("badger: lock %s: %w", d.path, err)
		}
		if ok {
			break
		}
		if attempt == lockAttempts {
			return fmt.Errorf("badger: %w: %s by %s", state.ErrLocked, d.path, d.owner())
		}
		time.Sleep(lockPause)
	}
	if !ownLock {
		return nil
	}
	// The number is for people; it is the lock that counts.
	f, err := d.root.OpenFile(lockFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, filePerm)
	if err != nil {
		return fmt.Errorf("badger: lock %s: %w", d.path, err)
	}
	_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("badger: lock %s: %w", d.path, err)
	}
	return nil
}

// owner names the process that has locked the directory.
func (d *directory) owner() string {
	b, err := d.root.ReadFile(lockFile)
	if err != nil {
		return "an unknown process"
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	switch {
	case err != nil:
		return "an unknown process"
	case pid == os.Getpid():
		return fmt.Sprintf("process %d, which is this one", pid)
	default:
		return fmt.Sprintf("process %d", pid)
	}
}

// close releases the lock.
func (d *directory) close() {
	if d.self != nil {
		unlock(d.self)
		_ = d.self.Close()
	}
	if d.root != nil {
		_ = d.root.Close()
	}
}

package embedded

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// ErrInUse is in the error of a broker whose directory another one uses.
var ErrInUse = errors.New("in use by another broker")

// errLocked says that another process, or another broker of this one, has the lock.
var errLocked = errors.New("locked")

// dirLock keeps two brokers out of one directory. The lock is the operating system's on an open file, so it goes with
// the process however that ends; what is written in the file only tells the next one whom to ask.
type dirLock struct{ f *os.File }

func lockDir(dir string) (*dirLock, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "LOCK")
	f, err := openLocked(path)
	switch {
	case errors.Is(err, errLocked):
		return nil, fmt.Errorf("embedded: directory %s is %w%s: connect to that one, stop it or "+
			"take another directory", dir, ErrInUse, owner(path))
	case err != nil:
		return nil, fmt.Errorf("embedded: lock directory %s: %w", dir, err)
	}
	return &dirLock{f}, nil
}

// owner is what the holder of the lock wrote into it, or nothing.
func owner(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(f, 256))
	if err != nil || len(text) == 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(text)) + ")"
}

// describe writes the process id and the brokers' addresses into the lock file.
func (l *dirLock) describe(addrs []string) error {
	if l == nil {
		return nil
	}
	text := fmt.Sprintf("process %d, %s\n", os.Getpid(), strings.Join(addrs, ","))
	if err := l.f.Truncate(0); err != nil {
		return fmt.Errorf("embedded: write %s: %w", l.f.Name(), err)
	}
	if _, err := l.f.WriteAt([]byte(text), 0); err != nil {
		return fmt.Errorf("embedded: write %s: %w", l.f.Name(), err)
	}
	return nil
}

// release gives the lock up. The file stays: removing it would race with a process that has it open already.
func (l *dirLock) release() error {
	if l == nil {
		return nil
	}
	if err := errors.Join(l.f.Truncate(0), l.f.Close()); err != nil {
		return fmt.Errorf("embedded: unlock: %w", err)
	}
	return nil
}

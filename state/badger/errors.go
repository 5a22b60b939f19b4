package badger

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	bdg "github.com/dgraph-io/badger/v4"

	"tailrace.dev/state"
)

// maxMessage bounds what is kept of a message of Badger's, in bytes.
const maxMessage = 300

// redacted is an error of Badger's without the dumps of keys and values that it appends to some, from their second
// line on.
type redacted struct{ err error }

func (e redacted) Error() string { return firstLine(e.err.Error()) }
func (e redacted) Unwrap() error { return e.err }

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if len(s) > maxMessage {
		s = s[:maxMessage] + "…"
	}
	return s
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("badger: %w: %w", state.ErrCorrupt, fmt.Errorf(format, args...))
}

func spaceError(why string) error {
	return fmt.Errorf("badger: %w: %s; free some space, or lower MinFreeBytes", state.ErrNoSpace, why)
}

// outOfSpace tells whether err says that a file cannot grow. Badger flattens some errors into text.
func outOfSpace(err error) bool {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EFBIG, errQuota} {
		if errors.Is(err, errno) || strings.Contains(err.Error(), errno.Error()) {
			return true
		}
	}
	return false
}

// environmental tells whether err comes from the world around the files, so that removing them would not help.
func environmental(err error) bool {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, bdg.ErrEncryptionKeyMismatch) ||
		errors.Is(err, bdg.ErrInvalidEncryptionKey) {
		return true
	}
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EACCES, syscall.EPERM, syscall.EROFS, syscall.EINTR,
	} {
		if errors.Is(err, errno) || strings.Contains(err.Error(), errno.Error()) {
			return true
		}
	}
	return false
}

// openError classifies an error of opening: whatever is not explained by the environment is damage.
func openError(dir string, err error) error {
	switch {
	case errors.Is(err, state.ErrCorrupt), errors.Is(err, state.ErrNoSpace), errors.Is(err, state.ErrLocked):
		return err
	case outOfSpace(err):
		return fmt.Errorf("badger: open %s: %w: %w", dir, state.ErrNoSpace, redacted{err})
	case environmental(err):
		return fmt.Errorf("badger: open %s: %w", dir, redacted{err})
	default:
		return corrupt("open %s: %w", dir, redacted{err})
	}
}

// ioError classifies an error of reading or writing an open database.
func ioError(op string, err error) error {
	switch {
	case errors.Is(err, bdg.ErrDBClosed), errors.Is(err, bdg.ErrBlockedWrites):
		return errClosed
	case outOfSpace(err):
		return fmt.Errorf("badger: %s: %w: %w", op, state.ErrNoSpace, redacted{err})
	default:
		return fmt.Errorf("badger: %s: %w", op, redacted{err})
	}
}

//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package embedded

import (
	"errors"
	"os"
)

// openLocked refuses: a directory without a lock could be ruined by a second process.
func openLocked(string) (*os.File, error) { return nil, errors.ErrUnsupported }

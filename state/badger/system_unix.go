//go:build linux || darwin

package badger

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// ownLock tells that the backend locks the directory itself, in the same way as Badger would, so that the checks before
// Badger opens are under the lock too.
const ownLock = true

const errQuota = syscall.EDQUOT

// tryLock takes the lock of a directory that all programs using Badger respect.
func tryLock(dir *os.File) (ok bool, err error) {
	err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// unlock gives the lock up before the directory is closed: a process that is being forked off at this moment has it
// open too, until it becomes another program.
func unlock(dir *os.File) { _ = syscall.Flock(int(dir.Fd()), syscall.LOCK_UN) }

func freeBytes(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// allocated returns how many bytes a file has on disk; Badger's logs are sparse.
func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

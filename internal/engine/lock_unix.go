//go:build unix

package engine

import (
	"os"
	"syscall"
)

// tryLock takes an exclusive lock that ends by releaseLock, or with the process.
func tryLock(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// releaseLock gives the lock up before the file is closed: a process that is being forked off at this moment has the file
// too, and with it the lock, until it becomes another program.
func releaseLock(f *os.File) { _ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }

//go:build !(linux || darwin)

package badger

import (
	"io/fs"
	"math"
	"os"
	"syscall"
)

// ownLock is false where the directory is locked by Badger alone.
const ownLock = false

const errQuota = syscall.ENOSPC

func tryLock(*os.File) (bool, error) { return true, nil }

func unlock(*os.File) {}

// freeBytes does not limit anything where the system is not asked.
func freeBytes(string) (uint64, error) { return math.MaxUint64, nil }

func allocated(info fs.FileInfo) int64 { return info.Size() }

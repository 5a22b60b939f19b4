//go:build !(linux || darwin || freebsd)

package badger

import (
	"io/fs"
	"os"
	"syscall"
)

// ownLock is false where the directory is locked by Badger alone.
const ownLock = false

const errQuota = syscall.ENOSPC

func tryLock(*os.File) (bool, error) { return true, nil }

func freeBytes(string) (uint64, error) { return noLimit, nil }

func allocated(info fs.FileInfo) int64 { return info.Size() }

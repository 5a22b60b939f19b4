//go:build !unix

package engine

import "os"

// tryLock does nothing here: the backends lock their own directories.
func tryLock(*os.File) error { return nil }

func releaseLock(*os.File) {}

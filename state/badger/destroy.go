package badger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// trashInfix is in the name that a directory has while it is removed.
const trashInfix = ".trash-"

// Destroy removes the directory of a task with all that is in it. It first gives it another name, beside the old one,
// so that a directory is there whole or not at all; what an earlier Destroy, ended early, has left is removed too. It
// returns an error that wraps state.ErrLocked when a process has the directory open, refuses a symbolic link, and is
// content when there is nothing. It never removes anything outside the parent directory of dir.
func Destroy(dir string) (err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("badger: destroy: %w", err)
	}
	parent, name := filepath.Split(dir)
	if name == "" {
		return fmt.Errorf("badger: destroy: %s has no parent", dir)
	}
	root, err := os.OpenRoot(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("badger: destroy %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if err := removeTrash(root, name); err != nil {
		return fmt.Errorf("badger: destroy %s: %w", dir, err)
	}
	if _, err := root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	d, err := openDirectory(dir, false, false)
	if err != nil {
		return fmt.Errorf("badger: destroy: %w", err)
	}
	defer d.close()
	trash := name + trashInfix + rand.Text()
	if err := root.Rename(name, trash); err != nil {
		return fmt.Errorf("badger: destroy %s: %w", dir, err)
	}
	if err := root.RemoveAll(trash); err != nil {
		return fmt.Errorf("badger: destroy %s: %w", dir, err)
	}
	return nil
}

// removeTrash removes what is left of a directory that was renamed.
func removeTrash(root *os.Root, name string) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name+trashInfix) {
			if err := root.RemoveAll(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

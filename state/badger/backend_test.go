package badger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"tailrace.dev/state"
	"tailrace.dev/state/statetest"
)

func TestConformance(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	statetest.Run(t, func(t testing.TB) (state.Backend, func() state.Backend) {
		dir := t.TempDir()
		b := mustOpen(t, dir, testOptions())
		return b, func() state.Backend {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			b = mustOpen(t, dir, testOptions())
			return b
		}
	})
}

// testOptions has what makes tests fast.
func testOptions() Options {
	return Options{MemTableBytes: minMemTableBytes, NoSync: true}
}

func mustOpen(t testing.TB, dir string, opts Options) *Backend {
	t.Helper()
	b, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func oneRow(id state.StoreID, key, value string) state.Write {
	return state.Write{Rows: []state.Row{{Store: id, Key: []byte(key), Value: []byte(value)}}}
}

func wantRow(t *testing.T, b *Backend, id state.StoreID, key, want string) {
	t.Helper()
	if got, err := b.Get(id, []byte(key)); err != nil || string(got) != want {
		t.Errorf("Get(%q) = %q, %v, want %q", key, got, err, want)
	}
}

// TestFreeSpace lets the disk fill up and empty again.
func TestFreeSpace(t *testing.T) {
	t.Parallel()
	free := uint64(math.MaxUint64)
	opts := testOptions()
	dir := t.TempDir()
	opts.FreeBytes = func(asked string) (uint64, error) {
		if asked != dir {
			t.Errorf("free space of %s was asked for", asked)
		}
		return free, nil
	}
	opts.MinFreeBytes = 100 << 20
	b := mustOpen(t, dir, opts)
	id, err := b.Register("store")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Write(oneRow(id, "a", "1")); err != nil {
		t.Fatal(err)
	}
	for _, few := range []uint64{0, 100<<20 - 1, 100 << 20} {
		free = few
		if err := b.Write(oneRow(id, "a", "2")); !errors.Is(err, state.ErrNoSpace) {
			t.Errorf("Write with %d bytes free: %v", few, err)
		}
		wantRow(t, b, id, "a", "1")
		if err := b.DropStore(id); few < 100<<20 && !errors.Is(err, state.ErrNoSpace) {
			t.Errorf("DropStore with %d bytes free: %v", few, err)
		}
		if few < 100<<20 {
			wantRow(t, b, id, "a", "1")
			continue
		}
	}
	free = 101 << 20
	if err := b.Write(oneRow(id, "a", "3")); err != nil {
		t.Errorf("Write when there was space again: %v", err)
	}
	wantRow(t, b, id, "a", "3")
	free = 1 << 20
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, opts); !errors.Is(err, state.ErrNoSpace) || errors.Is(err, state.ErrCorrupt) {
		t.Errorf("Open with 1 MB free: %v", err)
	}
	opts.FreeBytes = func(string) (uint64, error) { return 0, errors.New("no idea") }
	if _, err := Open(dir, opts); err == nil || !strings.Contains(err.Error(), "no idea") {
		t.Errorf("Open with unknown space: %v", err)
	}
	b = mustOpen(t, dir, testOptions())
	wantRow(t, b, id, "a", "3")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPermissions looks at all that is made, with the usual mask of the process.
func TestPermissions(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	dir := filepath.Join(top, "app", "sub", "0")
	b := mustOpen(t, dir, testOptions())
	id, err := b.Register("store")
	if err != nil {
		t.Fatal(err)
	}
	look := func() {
		t.Helper()
		for _, d := range []string{dir, filepath.Dir(dir)} {
			if info, err := os.Stat(d); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%s: %v, %v", d, info.Mode(), err)
			}
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
			}
		}
	}
	if err := b.Write(oneRow(id, "a", "1")); err != nil {
		t.Fatal(err)
	}
	look()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	look()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b = mustOpen(t, dir, testOptions())
	look()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSymlinks(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	target, link := filepath.Join(top, "target"), filepath.Join(top, "link")
	b := mustOpen(t, target, testOptions())
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"Open":    func() error { _, err := Open(link, testOptions()); return err }(),
		"Destroy": Destroy(link),
	} {
		if err == nil || errors.Is(err, state.ErrCorrupt) || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("%s of a symbolic link: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(target, guardFile)); err != nil {
		t.Errorf("the target of the link was touched: %v", err)
	}
	file := filepath.Join(top, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, testOptions()); err == nil || errors.Is(err, state.ErrCorrupt) {
		t.Errorf("Open of a file: %v", err)
	}
	// Links inside lead nowhere either.
	if err := os.Remove(filepath.Join(target, guardFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, filepath.Join(target, guardFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(target, testOptions()); err == nil {
		t.Error("Open followed a link out of the directory")
	}
}

func TestDestroy(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	dir := filepath.Join(top, "0")
	if err := Destroy(dir); err != nil {
		t.Errorf("Destroy of nothing: %v", err)
	}
	if err := Destroy(filepath.Join(top, "no", "parent")); err != nil {
		t.Errorf("Destroy of nothing in nothing: %v", err)
	}
	b := mustOpen(t, dir, testOptions())
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	neighbour := filepath.Join(top, "01")
	for _, d := range []string{neighbour, dir + trashInfix + "LEFT", filepath.Join(dir, "deep", "er")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(neighbour, "file")
	if err := os.WriteFile(outside, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "deep", "link")); err != nil {
		t.Fatal(err)
	}
	if err := Destroy(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(top)
	if err != nil || len(entries) != 1 || entries[0].Name() != "01" {
		t.Errorf("left: %v, %v", entries, err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

func TestEncryption(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-payload"
	opts := testOptions()
	opts.EncryptionKey = bytes.Repeat([]byte{7}, 32)
	dir := t.TempDir()
	b := mustOpen(t, dir, opts)
	id, err := b.Register("store")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := b.Write(roundOf(id, 500, secret, i)); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		b = mustOpen(t, dir, opts)
	}
	wantRow(t, b, id, "499", secret+"2")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(secret)) {
			t.Errorf("%s holds plain text", e.Name())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, key := range [][]byte{nil, bytes.Repeat([]byte{8}, 32), {1, 2, 3}} {
		wrong := opts
		wrong.EncryptionKey = key
		if _, err := Open(dir, wrong); err == nil || errors.Is(err, state.ErrCorrupt) {
			t.Errorf("Open with another key: %v", err)
		}
	}
	b = mustOpen(t, dir, opts)
	wantRow(t, b, id, "499", secret+"2")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func roundOf(id state.StoreID, keys int, value string, n int) state.Write {
	var w state.Write
	for i := range keys {
		w.Rows = append(w.Rows, oneRow(id, fmt.Sprint(i), fmt.Sprint(value, n)).Rows...)
	}
	return w
}

// TestLimits refuses what Badger could not store, before anything is written.
func TestLimits(t *testing.T) {
	t.Parallel()
	b := mustOpen(t, t.TempDir(), testOptions())
	id, err := b.Register("store")
	if err != nil {
		t.Fatal(err)
	}
	fits := strings.Repeat("k", maxKeyBytes)
	if err := b.Write(oneRow(id, fits, "v")); err != nil {
		t.Errorf("the longest key: %v", err)
	}
	wantRow(t, b, id, fits, "v")
	for name, w := range map[string]state.Write{
		"long key":    oneRow(id, fits+"k", "v"),
		"long value":  oneRow(id, "k", strings.Repeat("v", maxValueBytes+1)),
		"empty value": {Rows: []state.Row{{Store: id, Key: []byte("k"), Value: []byte{}}}},
	} {
		w.Rows = append(oneRow(id, "a", "1").Rows, w.Rows...)
		if err := b.Write(w); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	wantRow(t, b, id, "a", "")
	if row, err := b.Get(id, []byte(fits+"k")); row != nil || err != nil {
		t.Errorf("Get of a key that cannot be: %q, %v", row, err)
	}
	if err := b.Write(oneRow(id, "a", "1")); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLinksArePruned writes often and requires that what a write leaves behind for the guard does not add up.
func TestLinksArePruned(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 4 {
		b := mustOpen(t, dir, testOptions())
		id, err := b.Register("store")
		if err != nil {
			t.Fatal(err)
		}
		if left := b.last - b.pruned; left > 70 {
			t.Errorf("%d links when the directory was opened", left)
		}
		for i := range 50 {
			if err := b.Write(oneRow(id, "a", fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
		if len(b.links) > 70 {
			t.Errorf("%d links in memory", len(b.links))
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestValueLogIsCollected overwrites large rows and requires that the disk is given back.
func TestValueLogIsCollected(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("slow")
	}
	t.Parallel()
	dir := t.TempDir()
	value := strings.Repeat("0123456789abcdef", 80<<10) // 1.25 MB
	const rounds = 10
	n := 0
	for range rounds {
		b := mustOpen(t, dir, testOptions())
		id, err := b.Register("store")
		if err != nil {
			t.Fatal(err)
		}
		for range 14 {
			n++
			if err := b.Write(oneRow(id, fmt.Sprint(n%3), fmt.Sprint(n, value))); err != nil {
				t.Fatal(err)
			}
		}
		// Badger knows what is garbage from compactions, which come when they come.
		if err := b.db.Flatten(2); err != nil {
			t.Fatal(err)
		}
		b.writes = writesPerCollection - 1
		if err := b.Write(oneRow(id, "small", fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
		for i := n - 2; i <= n; i++ {
			wantRow(t, b, id, fmt.Sprint(i%3), fmt.Sprint(i, value))
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b := mustOpen(t, dir, testOptions())
	written := int64(n) * int64(len(value))
	if size := b.Size(); size > written/2 {
		t.Errorf("%d MB on disk after %d MB were written to three rows", size>>20, written>>20)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

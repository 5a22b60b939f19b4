//go:build unix

package faults

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestFault12PowerLoss kills a process in the middle of a flush and takes back, from the files as they are then, what
// the disk may not have had yet: each sector that changed since the flush began is there or is not, by chance. The
// task goes on from the flush before; it is not restored from the start, and its state is that of the changelog.
func TestFault12PowerLoss(t *testing.T) {
	t.Parallel()
	rounds := 6
	switch {
	case onKafka():
		rounds = 40
	case testing.Short():
		rounds = 2
	}
	c := newCluster(t, 1)
	f := c.feeder(200)
	dir := t.TempDir()
	f.send(400)
	stop := f.flow(1000)
	lost, failures := 0, 0
	for round := 0; failures < rounds; round++ {
		if round == 10*rounds {
			t.Fatalf("the process died in the middle of a flush %d times of %d", failures, round)
		}
		spec := c.spec(dir)
		spec.KillAt, spec.KillNth = "flush-mid", 2+rand.IntN(3)
		spec.Snapshot = filepath.Join(t.TempDir(), "before")
		m := spawn(t, spec)
		if end := m.wait(40 * time.Second); end != "" {
			t.Fatalf("the member ended with %s", end)
		}
		mustNotStartAfresh(t, m, round)
		rng := rand.New(rand.NewPCG(uint64(round), 12))
		n := losePower(t, filepath.Join(dir, c.app, c.in, "0"), filepath.Join(spec.Snapshot, c.app, c.in, "0"), rng)
		if lost += n; n > 0 {
			failures++
		}
	}
	m := spawn(t, c.spec(dir))
	m.waitRunning(30 * time.Second)
	stop()
	c.settle(30 * time.Second)
	m.stop()
	mustNotStartAfresh(t, m, rounds)
	c.mustBeExact(f)
	if n := c.mustMatchChangelog(t, dir); n != 1 {
		t.Errorf("state of %d tasks, want 1", n)
	}
	t.Logf("%d records, %d rounds, %d sectors lost", f.total, rounds, lost)
}

// mustNotStartAfresh requires that a member, but the first, built on what was on disk.
func mustNotStartAfresh(t *testing.T, m *member, round int) {
	t.Helper()
	if m.wiped() {
		t.Errorf("round %d: local state was wiped:\n%s", round, m.transcript())
	}
	for _, text := range m.said(saysRestored) {
		// task, store, from, to
		fields := strings.Fields(text)
		from, err := strconv.ParseInt(fields[len(fields)-2], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if round > 0 && from <= 0 {
			t.Errorf("round %d: all of the changelog was read: %s", round, text)
		}
	}
}

const sector = 512

// losePower makes the files of dir, which is as a process left it, what they may be after a loss of power, given what
// they were when all was on disk. It returns how many sectors were lost.
func losePower(t *testing.T, dir, before string, rng *rand.Rand) (lost int) {
	t.Helper()
	if durable(t, filepath.Join(dir, "GUARD"), filepath.Join(before, "GUARD")) {
		return 0 // it was written behind a sync of all else
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if ext := filepath.Ext(path); ext != ".mem" && ext != ".vlog" {
			continue // those are written through memory maps; of all others, changes are synced, or replace the whole file
		}
		old, err := os.Open(filepath.Join(before, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			old, err = os.Open(os.DevNull)
		}
		if err != nil {
			t.Fatal(err)
		}
		lost += loseSectors(t, path, old, rng)
		_ = old.Close()
	}
	return lost
}

// durable tells whether a small file is another than it was.
func durable(t *testing.T, path, before string) bool {
	t.Helper()
	is, err := os.ReadFile(path)
	was, err2 := os.ReadFile(before)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return !bytes.Equal(is, was)
}

// loseSectors takes back about half of the sectors of a file that differ from what they were.
func loseSectors(t *testing.T, path string, old *os.File, rng *rand.Rand) (lost int) {
	t.Helper()
	now, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := now.Close(); err != nil {
			t.Error(err)
		}
	}()
	is, was := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; at += int64(len(is)) {
		n, err := now.ReadAt(is, at)
		if n == 0 {
			return lost
		}
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		clear(was)
		if _, err := old.ReadAt(was, at); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if bytes.Equal(is[:n], was[:n]) {
			continue
		}
		for s := 0; s < n; s += sector {
			end := min(s+sector, n)
			if bytes.Equal(is[s:end], was[s:end]) || rng.IntN(2) == 0 {
				continue
			}
			lost++
			if _, err := now.WriteAt(was[s:end], at+int64(s)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// copyState copies a state directory, leaving out what is zero: most of a memory mapped file is. Files may vanish
// meanwhile.
func copyState(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		return copySparse(filepath.Join(to, rel), path)
	})
}

func copySparse(to, from string) (err error) {
	src, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	buf, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := src.ReadAt(buf, at)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := dst.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		if at += int64(n); err != nil {
			return dst.Truncate(at)
		}
	}
}

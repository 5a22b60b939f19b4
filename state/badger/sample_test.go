package badger

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"tailrace.dev/state"
)

// files is a directory in memory, without the zeros that Badger's logs end in.
type files map[string]file

type file struct {
	content []byte // up to the last byte that is not zero
	size    int64
}

// readFiles copies a directory at one moment, though Badger may be at work in it: nothing but Badger's background work
// changes it meanwhile, and that shows in the list of files and in the manifest.
func readFiles(t *testing.T, dir string) files {
	t.Helper()
	for range 100 {
		before, err := copyFiles(dir)
		if err == nil {
			time.Sleep(5 * time.Millisecond)
			after, err := copyFiles(dir)
			if err == nil && maps.EqualFunc(before, after, func(a, b file) bool {
				return a.size == b.size && bytes.Equal(a.content, b.content)
			}) {
				return after
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the directory does not come to rest")
	return nil
}

func copyFiles(dir string) (files, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	fs := files{}
	for _, e := range entries {
		f, err := readFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		fs[e.Name()] = f
	}
	return fs, nil
}

// readFile reads a file up to a megabyte of zeros, since Badger's logs are written from their start on and end in up to
// 128 MB of them.
func readFile(path string) (f file, err error) {
	in, err := os.Open(path)
	if err != nil {
		return f, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return f, err
	}
	chunk := make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(in, chunk)
		data := bytes.TrimRight(chunk[:n], "\x00")
		if len(data) > 0 {
			f.content = append(f.content, chunk[:n]...)
		}
		if len(data) == 0 || err != nil {
			break
		}
	}
	return file{content: bytes.TrimRight(f.content, "\x00"), size: info.Size()}, nil
}

func (fs files) write(t *testing.T, dir string) {
	t.Helper()
	for name, f := range fs {
		path := filepath.Join(dir, name)
		size := min(f.size, int64(len(f.content)))
		if err := os.WriteFile(path, f.content[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, f.size); err != nil {
			t.Fatal(err)
		}
	}
}

// with returns a copy with another file in it.
func (fs files) with(name string, f file) files {
	fs = maps.Clone(fs)
	fs[name] = f
	return fs
}

func (fs files) without(names ...string) files {
	fs = maps.Clone(fs)
	for _, name := range names {
		delete(fs, name)
	}
	return fs
}

func (fs files) names(ext string) []string {
	var names []string
	for name := range fs {
		if filepath.Ext(name) == ext {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// sample is a directory and what was acknowledged to be in it.
type sample struct {
	files files
	rows  map[string]string
	next  int64
}

// sampler writes a directory with several tables, a value log in use, and several stores.
type sampler struct {
	t    *testing.T
	dir  string
	b    *Backend
	id   state.StoreID
	rows map[string]string
	next int64
	rng  *rand.Rand
}

func newSampler(t *testing.T, opts Options) *sampler {
	s := &sampler{t: t, dir: t.TempDir(), rows: map[string]string{}, rng: rand.New(rand.NewPCG(5, 6))}
	for range 3 {
		s.open(opts)
		s.write(600, 100)
		s.write(1, 1100<<10)
		s.close()
	}
	s.open(opts)
	return s
}

func (s *sampler) open(opts Options) {
	s.t.Helper()
	s.b = mustOpen(s.t, s.dir, opts)
	var err error
	if s.id, err = s.b.Register("store"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sampler) close() {
	s.t.Helper()
	if err := s.b.Close(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sampler) write(n, size int) {
	s.t.Helper()
	s.next++
	w := state.Write{Positions: map[state.StoreID]state.Position{s.id: {Next: s.next}}}
	for i := range n {
		value := make([]byte, size)
		for j := range value {
			value[j] = byte(s.rng.Uint32())
		}
		key := fmt.Sprintf("%d-%d", s.rng.IntN(5000), i)
		s.rows[key] = string(value)
		w.Rows = append(w.Rows, state.Row{Store: s.id, Key: []byte(key), Value: value})
	}
	if err := s.b.Write(w); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sampler) sample() sample {
	return sample{files: readFiles(s.t, s.dir), rows: maps.Clone(s.rows), next: s.next}
}

// waitFlushed waits until a memtable more has become a table.
func (s *sampler) waitFlushed(tables int) {
	s.t.Helper()
	for range 1000 {
		if len(s.b.db.Tables()) > tables {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatal("no memtable was flushed")
}

// samples returns directories as a clean close and as a kill leave them.
func samples(t *testing.T, opts Options) map[string]sample {
	out := map[string]sample{}
	s := newSampler(t, opts)
	defer s.close()
	s.write(100, 100)
	s.close()
	out["closed"] = s.sample()
	s.open(opts)
	out["killed after opening"] = s.sample()
	s.write(100, 100)
	s.write(50, 100)
	out["killed"] = s.sample()
	tables := len(s.b.db.Tables())
	for len(s.b.dir.mustList(t).names(walExt)) < 2 && len(s.b.db.Tables()) == tables {
		s.write(10, 100_000)
	}
	s.waitFlushed(tables)
	// The guard file may be older than the new table.
	out["killed after a flush"] = s.sample()
	s.write(100, 100)
	out["killed, flushed and recorded"] = s.sample()
	return out
}

func (d *directory) mustList(t *testing.T) files {
	inv, err := d.list()
	if err != nil {
		t.Fatal(err)
	}
	fs := files{}
	for name := range inv.data {
		fs[name] = file{}
	}
	return fs
}

// check opens a directory and requires that it is found damaged, or that all is there.
func (s sample) check(t *testing.T, fs files, opts Options) (detected bool) {
	t.Helper()
	dir := t.TempDir()
	fs.write(t, dir)
	b, err := Open(dir, opts)
	if errors.Is(err, state.ErrCorrupt) {
		if _, err := Open(dir, opts); !errors.Is(err, state.ErrCorrupt) {
			t.Errorf("damage was found, and at the next opening not: %v", err)
		}
		return true
	}
	if err != nil {
		t.Errorf("Open: %v", err)
		return false
	}
	err = s.compare(b)
	if err != nil && !errors.Is(err, state.ErrCorrupt) {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	return err != nil
}

func (s sample) compare(b *Backend) error {
	id, err := b.Register("store")
	if err != nil {
		return err
	}
	if p, _, err := b.Position(id); err != nil || p.Next != s.next {
		return errors.Join(err, fmt.Errorf("the position is %v, not %d", p, s.next))
	}
	c := b.Scan(id, nil, nil, false)
	defer c.Close()
	n := 0
	for c.Next() {
		if want, ok := s.rows[string(c.Key())]; !ok || want != string(c.Value()) {
			return fmt.Errorf("the row %q is wrong", c.Key())
		}
		n++
	}
	if err := c.Err(); err != nil {
		return err
	}
	if n != len(s.rows) {
		return fmt.Errorf("%d rows of %d", n, len(s.rows))
	}
	return nil
}

// targets returns the files to damage: all, but of many alike the first and the last.
func (s sample) targets() []string {
	var names []string
	for _, ext := range []string{tableExt, walExt, valueLogExt} {
		alike := s.files.names(ext)
		if len(alike) > 2 {
			alike = []string{alike[0], alike[len(alike)-1]}
		}
		names = append(names, alike...)
	}
	return append(names, manifestFile, registryFile, discardFile, guardFile)
}

func (f file) flip(at, bit int) file {
	content := bytes.Clone(f.content)
	content[at] ^= 1 << bit
	return file{content, f.size}
}

func (f file) cut(n int) file {
	return file{f.content, int64(len(f.content) - n)}
}

// flushed returns what there is before and after a memtable becomes a table.
func (s *sampler) flushed() (before, after sample) {
	s.t.Helper()
	tables := len(s.b.db.Tables())
	s.write(60, 100_000)
	for {
		now := s.sample()
		if len(s.b.db.Tables()) > tables {
			break
		}
		before = now
		s.write(10, 100_000)
	}
	s.write(10, 100)
	return before, s.sample()
}

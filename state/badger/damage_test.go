package badger

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"tailrace.dev/state"
)

var damageRounds = flag.Int("damage.rounds", 2, "how many random places of each file to damage")

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

// TestDamage flips a bit in, cuts, and removes each kind of file, after a clean close and after a kill.
func TestDamage(t *testing.T) {
	for _, compress := range []bool{false, true} {
		opts := testOptions()
		opts.Compress = compress
		for name, s := range samples(t, opts) {
			t.Run(fmt.Sprintf("%s, compress=%v", name, compress), func(t *testing.T) {
				t.Parallel()
				if compress && testing.Short() {
					t.Skip("short")
				}
				if s.check(t, s.files, opts) {
					t.Fatal("whole files were found damaged")
				}
				damageAll(t, s, opts)
			})
		}
	}
}

func damageAll(t *testing.T, s sample, opts Options) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	type count struct{ tried, detected int }
	counts := map[string]*count{}
	try := func(kind, what string, fs files) bool {
		t.Helper()
		c := counts[kind]
		if c == nil {
			c = &count{}
			counts[kind] = c
		}
		c.tried++
		detected := s.check(t, fs, opts)
		if detected {
			c.detected++
		}
		if t.Failed() {
			t.Fatalf("%s: seed %d", what, seed)
		}
		return detected
	}
	for _, name := range s.targets() {
		f := s.files[name]
		kind := filepath.Ext(name)
		if kind == "" {
			kind = name
		}
		for range *damageRounds {
			if len(f.content) == 0 {
				break
			}
			at, bit := rng.IntN(len(f.content)), rng.IntN(8)
			try(kind, fmt.Sprintf("flip of bit %d of byte %d of %s", bit, at, name), s.files.with(name, f.flip(at, bit)))
			cut := int64(rng.IntN(len(f.content)))
			try(kind, fmt.Sprintf("cut of %s to %d", name, cut), s.files.with(name, file{f.content, cut}))
		}
		for _, cut := range []int64{20, 1, 0} {
			if end := int64(len(f.content)); cut < end {
				left := max(end-cut, 0)
				if cut == 0 {
					left = 0
				}
				try(kind, fmt.Sprintf("cut of %s to %d", name, left), s.files.with(name, file{f.content, left}))
			}
		}
		try(kind, "removal of "+name, s.files.without(name))
	}
	for name, c := range counts {
		t.Logf("%-12s %d of %d found damaged, the others complete", name, c.detected, c.tried)
	}

	must := func(what string, fs files) {
		t.Helper()
		if !try("several", what, fs) {
			t.Errorf("%s was not noticed", what)
		}
	}
	must("removal of MANIFEST", s.files.without(manifestFile))
	must("cut of MANIFEST", s.files.with(manifestFile, s.files[manifestFile].cut(20)))
	must("removal of GUARD", s.files.without(guardFile))
	must("removal of GUARD and MANIFEST", s.files.without(guardFile, manifestFile))
	must("removal of all tables", s.files.without(s.files.names(tableExt)...))
	must("removal of the value log", s.files.without(s.files.names(valueLogExt)...))
	if strings.HasPrefix(t.Name(), "TestDamage/killed,") {
		must("removal of all logs", s.files.without(s.files.names(walExt)...))
	}
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

// TestTornTail tears the end of the log off that was written last and never acknowledged.
func TestTornTail(t *testing.T) {
	t.Parallel()
	s := newSampler(t, testOptions())
	defer s.close()
	s.write(50, 100)
	before := s.sample()
	s.write(50, 100)
	after := s.sample()
	wals := after.files.names(walExt)
	wal := wals[len(wals)-1]
	whole := after.files[wal]
	written := len(before.files[wal].content)
	for _, end := range []int{written + 1, (written + len(whole.content)) / 2, len(whole.content) - 1} {
		torn := file{bytes.Clone(whole.content[:end]), whole.size}
		fs := after.files.with(wal, torn).with(guardFile, before.files[guardFile])
		if before.check(t, fs, testOptions()) {
			t.Errorf("a torn tail at %d was taken for damage", end)
		}
	}
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

// TestLostLog builds what a loss of power does to an older log when writes are not synced: the newest one is there,
// and the one before it lacks pages.
func TestLostLog(t *testing.T) {
	t.Parallel()
	s := newSampler(t, testOptions())
	defer s.close()
	before, after := s.flushed()
	// The tables of before, its log, and the newer log: as if the flush had not happened yet.
	oldLog, newLogs := before.files.names(walExt), after.files.names(walExt)
	if len(oldLog) != 1 || len(newLogs) == 0 || newLogs[0] == oldLog[0] {
		t.Fatalf("logs %v, then %v", oldLog, newLogs)
	}
	fs := before.files
	for _, name := range newLogs {
		fs = fs.with(name, after.files[name])
	}
	log := fs[oldLog[0]]
	for _, cut := range []int{1, len(log.content) / 2} {
		if !before.check(t, fs.with(oldLog[0], log.cut(cut)), testOptions()) {
			t.Errorf("a log that lost its last %d bytes was not noticed", cut)
		}
	}
}

// TestManifestTail loses the newest entry of the manifest, which names a table that the guard file does not know of
// yet, while the rows that were written after it are in the log.
func TestManifestTail(t *testing.T) {
	t.Parallel()
	s := newSampler(t, testOptions())
	defer s.close()
	before, after := s.flushed()
	fs := after.files.with(guardFile, before.files[guardFile])
	if after.check(t, fs, testOptions()) {
		t.Error("a table that is younger than the guard file was taken for damage")
	}
	tail := len(after.files[manifestFile].content) - len(before.files[manifestFile].content)
	if tail < 10 {
		t.Fatalf("the manifest grew by %d bytes", tail)
	}
	for _, cut := range []int{1, 10, tail} {
		if !after.check(t, fs.with(manifestFile, fs[manifestFile].cut(cut)), testOptions()) {
			t.Errorf("a manifest that lost its last %d bytes was not noticed", cut)
		}
	}
}

// TestOpeningMarker has marker files as crashes leave them.
func TestOpeningMarker(t *testing.T) {
	t.Parallel()
	s := newSampler(t, testOptions())
	s.close()
	whole := s.sample()
	marker := func(content string) files {
		return whole.files.with(openingFile, file{[]byte(content), int64(len(content))})
	}
	if whole.check(t, marker("attempt 2 fresh false\n"), testOptions()) {
		t.Error("two killed openings made healthy files count as damaged")
	}
	for _, content := range []string{"attempt 3 fresh false\n", "nonsense", ""} {
		if !whole.check(t, marker(content), testOptions()) {
			t.Errorf("the marker %q went unnoticed", content)
		}
	}

	// A first opening that was killed half way has nothing to lose.
	half := marker("attempt 1 fresh true\n").without(guardFile, manifestFile)
	empty := sample{rows: map[string]string{}}
	dir := t.TempDir()
	half.write(t, dir)
	b := mustOpen(t, dir, testOptions())
	id, err := b.Register("store")
	if err != nil {
		t.Fatal(err)
	}
	if p, ok, err := b.Position(id); ok || err != nil {
		t.Errorf("position %v, %v", p, err)
	}
	if err := empty.compare(b); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, openingFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the marker is left: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// TestSmallerMemTable opens, with small memtables, the log that large ones left.
func TestSmallerMemTable(t *testing.T) {
	t.Parallel()
	large := testOptions()
	large.MemTableBytes = maxMemTableBytes
	s := newSampler(t, large)
	defer s.close()
	for range 4 {
		s.write(50, 100_000)
	}
	killed := s.sample()
	if killed.check(t, killed.files, testOptions()) {
		t.Error("a log of large memtables was taken for damage")
	}
}

// TestDestroyAfterDamage is what the engine does.
func TestDestroyAfterDamage(t *testing.T) {
	t.Parallel()
	s := newSampler(t, testOptions())
	s.close()
	if err := os.Remove(filepath.Join(s.dir, manifestFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.dir, testOptions()); !errors.Is(err, state.ErrCorrupt) {
		t.Fatal(err)
	}
	if err := Destroy(s.dir); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, s.dir, testOptions())
	if len(b.Stores()) != 0 {
		t.Error("a new directory holds stores")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// TestNothingLeaks greps all that is logged, and all errors, for what rows hold.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-payload"
	core, logs := observer.New(zapcore.DebugLevel)
	opts := testOptions()
	opts.Logger = zap.New(core)
	dir := t.TempDir()
	b := mustOpen(t, dir, opts)
	id, err := b.Register("store")
	if err != nil {
		t.Fatal(err)
	}
	big := []byte(strings.Repeat(secret, 100_000))
	var texts []string
	note := func(err error) {
		if err == nil {
			t.Error("no error")
			return
		}
		texts = append(texts, err.Error())
	}
	if err := b.Write(state.Write{Rows: []state.Row{{Store: id, Key: []byte(secret), Value: big}}}); err != nil {
		t.Fatal(err)
	}
	note(b.Write(state.Write{Rows: []state.Row{{Store: id, Key: big, Value: big}}}))
	note(b.Write(state.Write{Rows: []state.Row{{Store: id, Key: []byte(secret), Value: bytes.Repeat(big, 50)}}}))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	logFiles, err := filepath.Glob(filepath.Join(dir, "*"+valueLogExt))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range logFiles {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(content) > 1000 {
			content[len(content)/2] ^= 1
			if err := os.WriteFile(name, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	b = mustOpen(t, dir, opts)
	_, err = b.Get(id, []byte(secret))
	note(err)
	if !errors.Is(err, state.ErrCorrupt) {
		t.Errorf("a damaged value read as %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if logs.Len() == 0 {
		t.Error("nothing was logged")
	}
	for _, e := range logs.All() {
		texts = append(texts, e.Message, fmt.Sprint(e.ContextMap()))
	}
	texts = append(texts,
		message("dump %v %q %+v %s", []any{big, big, struct{ v []byte }{big}, "one line\n" + secret}),
		message("failed\n"+secret, nil),
		redacted{errors.New("too large:\n" + secret)}.Error(),
		message("%v", []any{errors.New("too large:\n" + secret)}))
	for _, text := range texts {
		if strings.Contains(text, secret) || strings.Contains(text, fmt.Sprint([]byte(secret))[1:20]) ||
			strings.Contains(text, "73 33 63 72") || len(text) > 1000 {
			t.Errorf("leaked: %.200s", text)
		}
	}
}

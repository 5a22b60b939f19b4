package badger

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"tailrace.dev/state"
)

var damageRounds = flag.Int("damage.rounds", 2, "how many random places of each file to damage")

// TestDamage flips a bit in, cuts, and removes each kind of file, after a clean close and after a kill.
func TestDamage(t *testing.T) {
	for _, compress := range []bool{false, true} {
		if compress && (testing.Short() || raceDetector) {
			break
		}
		opts := testOptions()
		opts.Compress = compress
		for name, s := range samples(t, opts) {
			if compress && name != "killed" {
				continue // compression makes a difference to blocks of tables only
			}
			t.Run(fmt.Sprintf("%s, compress=%v", name, compress), func(t *testing.T) {
				t.Parallel()
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
	if raceDetector {
		return
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
	if whole.check(t, marker(fmt.Sprintf("attempt %d fresh false\n", maxOpenings-1)), testOptions()) {
		t.Error("a few killed openings made healthy files count as damaged")
	}
	for _, content := range []string{fmt.Sprintf("attempt %d fresh false\n", maxOpenings), "nonsense", ""} {
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
		if strings.Contains(text, secret) || strings.Contains(text, strings.Trim(fmt.Sprintf("%d", []byte(secret)), "[]")) ||
			strings.Contains(text, "73 33 63 72") || len(text) > 1000 {
			t.Errorf("leaked: %.200s", text)
		}
	}
}

//go:build unix

package faults

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/processor"
)

// TestFault25OtherStateFormat gives a member local state whose format is that of a later version, and then of an earlier:
// what a member finds after an upgrade, and after the way back. It says so, removes the state and builds it anew from
// the changelog; it misreads nothing.
func TestFault25OtherStateFormat(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]int{"later": 1, "earlier": -1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2)
			f := c.feeder(20)
			dir := t.TempDir()
			f.send(200)
			for range 2 {
				m := spawn(t, c.spec(dir))
				m.waitRunning(30 * time.Second)
				f.send(100)
				c.settle(30 * time.Second)
				m.stop()
				guards, err := filepath.Glob(filepath.Join(dir, c.app, c.in, "*", "GUARD"))
				if err != nil || len(guards) != 2 {
					t.Fatalf("%v: the files are %v", err, guards)
				}
				for _, path := range guards {
					otherVersion(t, path, by)
				}
				m = spawn(t, c.spec(dir))
				m.waitRunning(30 * time.Second)
				f.send(100)
				c.settle(30 * time.Second)
				if !m.logged("of another version") || !m.logged("local state is damaged") {
					t.Errorf("nothing was said of the version:\n%s", m.transcript())
				}
				m.stop()
			}
			c.mustBeExact(f)
			if n := c.mustMatchChangelog(t, dir); n != 2 {
				t.Errorf("state of %d tasks, want 2", n)
			}
		})
	}
}

// otherVersion changes the version in a guard file, which is the last byte of its magic, as a program of that version
// would have written it: with the right checksum.
func otherVersion(t *testing.T, path string, by int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(b, []byte("TRGUARD")) || len(b) < 12 {
		t.Fatalf("%s is not what this test knows", path)
	}
	b[7] = byte(int(b[7]) + by)
	body := b[:len(b)-4]
	binary.BigEndian.PutUint32(b[len(body):], crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestFault25OtherRowFormat puts a row of a later version into the changelog. The member that has to use it ends and says
// which format it met, instead of making something of its bytes.
func TestFault25OtherRowFormat(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	f := c.feeder(5)
	s := c.setup(t.TempDir(), nil)
	l := s.run(t)
	f.send(50)
	c.settle(30 * time.Second)
	l.stop()
	changelog := processor.ChangelogTopic(c.app, counts.Name())
	records, _ := c.readAll(changelog)
	var row *kgo.Record
	for _, r := range records[0] {
		if bytes.Contains(r.Key, []byte("key-0003")) {
			row = r
		}
	}
	if row == nil {
		t.Fatal("the changelog has no row of the key")
	}
	later := bytes.Clone(row.Value)
	later[0]++
	cl, err := kgo.NewClient(append(c.opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	put := func(value []byte) {
		t.Helper()
		r := &kgo.Record{Topic: changelog, Key: row.Key, Value: value, Headers: row.Headers}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	put(later)
	f.send(5)
	err = s.run(t).end(30 * time.Second)
	if err == nil || !strings.Contains(err.Error(), "row format 2") {
		t.Fatalf("ended with %v, want one that names the format", err)
	}
	t.Logf("ended with %v", err)
	// The later version writes it again as it was, on the way back.
	put(row.Value)
	l = s.run(t)
	c.settle(30 * time.Second)
	l.stop()
	c.mustBeExact(f)
}

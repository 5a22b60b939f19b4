//go:build unix

package faults

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestFault11DamagedState flips a bit in, cuts, and removes files of one task's local state, after a clean stop and
// after a kill. Damage that matters is noticed at the next start; then that task alone is wiped and restored. There is
// no second crash, the state is that of the changelog, and the counts go on as if nothing had been.
func TestFault11DamagedState(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"stopped", "killed"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 2)
			f := c.feeder(2000)
			dir := t.TempDir()
			m := spawn(t, c.spec(dir))
			f.send(4000)
			c.settle(30 * time.Second)
			kinds := map[string]bool{}
			rounds, detected, crashes := 0, 0, 0
			for {
				time.Sleep(250 * time.Millisecond) // let a flush happen
				if end == "killed" {
					m.kill()
				} else {
					m.stop()
				}
				if testing.Short() && rounds == 4 {
					break
				}
				what := damage(t, filepath.Join(dir, c.app, c.in, "0"), kinds)
				if what == "" {
					break
				}
				rounds++
				for try := 0; ; try++ {
					if try == 2 {
						t.Fatalf("%s: more than one crash", what)
					}
					m = spawn(t, c.spec(dir))
					f.send(200)
					if c.settled(m, 30*time.Second) {
						break
					}
					crashes++
					t.Logf("%s: ended: %s", what, m.transcript())
				}
				wiped := m.wiped()
				if wiped {
					detected++
				}
				if m.logged(`"task": "` + c.in + `/1"`) {
					t.Errorf("%s in task 0 touched task 1: %s", what, m.transcript())
				}
				t.Logf("%-40s wiped: %v", what, wiped)
			}
			c.mustMatchChangelog(t, dir)
			m = spawn(t, c.spec(dir))
			m.waitRunning(30 * time.Second)
			c.settle(30 * time.Second)
			m.stop()
			c.mustBeExact(f)
			c.mustMatchChangelog(t, dir)
			t.Logf("%d damages, %d noticed, %d crashes", rounds, detected, crashes)
			if detected == 0 {
				t.Error("no damage was noticed")
			}
		})
	}
}

// settled waits until the input is processed, and reports false when the member ends before that.
func (c *cluster) settled(m *member, limit time.Duration) bool {
	c.t.Helper()
	ok := false
	until(c.t, limit, "the committed offsets to reach the input's end", func() bool {
		ok = c.caughtUp()
		return ok || m.ended()
	})
	return ok
}

// damage does something to a file in dir that was not done to its kind before, and says what; "" when all was done.
func damage(t *testing.T, dir string, done map[string]bool) string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	for _, path := range files {
		name := filepath.Base(path)
		if strings.Contains(name, "LOCK") {
			continue
		}
		kind := filepath.Ext(name)
		if kind == "" {
			kind = name
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		used := len(text)
		for used > 0 && text[used-1] == 0 {
			used-- // logs are longer than what is in them
		}
		if used == 0 {
			continue
		}
		for _, how := range []string{"flip", "cut", "delete"} {
			if done[kind+how] {
				continue
			}
			done[kind+how] = true
			switch at := rand.IntN(used); how {
			case "flip":
				text[at] ^= 1 << rand.IntN(8)
				err = os.WriteFile(path, text, 0o600)
			case "cut":
				err = os.Truncate(path, int64(at))
			case "delete":
				err = os.Remove(path)
			}
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("%s %s (%d bytes used)", how, name, used)
		}
	}
	return ""
}

//go:build linux || darwin

package badger

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tailrace.dev/state"
)

// The test binary runs itself as another process, with the role in the environment.
const (
	roleEnv = "BADGER_TEST_ROLE"
	dirEnv  = "BADGER_TEST_DIR"
)

func TestMain(m *testing.M) {
	dir := os.Getenv(dirEnv)
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "write":
		childWrite(dir, 200)
	case "write split":
		childWrite(dir, 20_000)
	case "hold":
		b := childOpen(dir, testOptions())
		fmt.Println("ready")
		time.Sleep(time.Minute)
		_ = b.Close()
	case "limit open":
		childLimitOpen(dir)
	case "limit wal":
		childLimit(dir, 10<<20)
	case "limit table":
		childLimit(dir, 1<<20)
	}
	os.Exit(0)
}

func child(t *testing.T, role, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, dirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

func childOpen(dir string, opts Options) *Backend {
	b, err := Open(dir, opts)
	if err != nil {
		childFail("open: %v", err)
	}
	return b
}

func childFail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(3)
}

// childWrite writes the same keys again and again, each time the number of the round, and tells when a round is
// durable.
func childWrite(dir string, keys int) {
	b := childOpen(dir, Options{MemTableBytes: minMemTableBytes})
	id, err := b.Register("store")
	if err != nil {
		childFail("register: %v", err)
	}
	p, _, err := b.Position(id)
	if err != nil {
		childFail("position: %v", err)
	}
	for n := p.Next + 1; ; n++ {
		if err := b.Write(roundWrite(id, keys, n)); err != nil {
			childFail("write: %v", err)
		}
		fmt.Println(n)
	}
}

func roundWrite(id state.StoreID, keys int, n int64) state.Write {
	w := state.Write{Positions: map[state.StoreID]state.Position{id: {Next: n}}, Rows: make([]state.Row, keys)}
	for i := range w.Rows {
		w.Rows[i] = state.Row{
			Store: id,
			Key:   binary.BigEndian.AppendUint32(nil, uint32(i)),
			Value: binary.BigEndian.AppendUint64(make([]byte, 0, 48), uint64(n))[:48],
		}
	}
	return w
}

// TestKill kills a writing process at random moments, also while it opens, and requires each time that all rounds it
// had reported are there, and of the one after them a prefix.
func TestKill(t *testing.T) {
	kills := map[string]int{"write": 6, "write split": 4}
	if n, err := strconv.Atoi(os.Getenv("BADGER_TEST_KILLS")); err == nil {
		kills = map[string]int{"write": n, "write split": n}
	}
	for role, n := range kills {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			var acknowledged int64
			looked := true
			for range n {
				acknowledged = max(acknowledged, runAndKill(t, rng, role, dir))
				// Sometimes the next process meets what this one left; but being killed while opening, again and again,
				// counts as damage in the end.
				looked = !looked || rng.IntN(3) > 0
				if looked {
					checkRounds(t, dir, acknowledged)
				}
			}
			checkRounds(t, dir, acknowledged)
			if acknowledged == 0 {
				t.Error("no write was acknowledged; the test shows nothing")
			}
		})
	}
}

// runAndKill returns the last round that was reported.
func runAndKill(t *testing.T, rng *rand.Rand, role, dir string) (last int64) {
	t.Helper()
	cmd := child(t, role, dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := make(chan struct{})
	kill := func(after time.Duration) {
		time.AfterFunc(after, func() {
			_ = cmd.Process.Kill()
			close(killed)
		})
	}
	early := rng.IntN(4) == 0
	if early {
		kill(time.Duration(rng.IntN(60)) * time.Millisecond)
	}
	delay := time.Duration(rng.IntN(150)) * time.Millisecond
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		n, err := strconv.ParseInt(lines.Text(), 10, 64)
		if err != nil {
			t.Errorf("the child printed %q", lines.Text())
		}
		if last == 0 && !early {
			kill(delay)
		}
		last = n
	}
	if last > 0 || early {
		<-killed
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the child ended with %v before it was killed", err)
	}
	return last
}

func checkRounds(t *testing.T, dir string, acknowledged int64) {
	t.Helper()
	b, err := Open(dir, testOptions())
	if err != nil {
		t.Fatalf("after a kill: %v", err)
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	id, err := b.Register("store")
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := b.Position(id)
	if err != nil || p.Next < acknowledged {
		t.Fatalf("position %v, %v, though round %d was acknowledged", p, err, acknowledged)
	}
	c := b.Scan(id, nil, nil, false)
	defer c.Close()
	last, count := p.Next+1, 0
	for c.Next() {
		n := int64(binary.BigEndian.Uint64(c.Value()))
		if n > last || n < p.Next {
			t.Fatalf("row %d is of round %d, after one of %d and with the position %d", count, n, last, p.Next)
		}
		last = n
		count++
	}
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
	if p.Next > 0 && count != 200 && count != 20_000 {
		t.Fatalf("%d rows", count)
	}
}

// TestLocked has a second opener, in this process and in another one.
func TestLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	refused := func(pid int) {
		t.Helper()
		start := time.Now()
		_, err := Open(dir, testOptions())
		if !errors.Is(err, state.ErrLocked) || !strings.Contains(err.Error(), dir) ||
			!strings.Contains(err.Error(), fmt.Sprintf("process %d", pid)) {
			t.Errorf("second opener: %v", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("refusing took %v", took)
		}
		if err := Destroy(dir); !errors.Is(err, state.ErrLocked) {
			t.Errorf("Destroy of an open directory: %v", err)
		}
	}
	b := mustOpen(t, dir, testOptions())
	refused(os.Getpid())
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	cmd := child(t, "hold", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Errorf("the child said %q, %v", line, err)
	}
	refused(cmd.Process.Pid)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	b = mustOpen(t, dir, testOptions())
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func childSetLimit(bytes uint64) {
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: bytes, Max: 1 << 62}); err != nil {
		childFail("setrlimit: %v", err)
	}
}

// childLimitOpen opens where Badger cannot make its files.
func childLimitOpen(dir string) {
	childSetLimit(1 << 20)
	if _, err := Open(dir, testOptions()); !errors.Is(err, state.ErrNoSpace) || errors.Is(err, state.ErrCorrupt) {
		childFail("open with a limit on file sizes: %v", err)
	}
}

// childLimit writes on when files can no more grow over a limit.
func childLimit(dir string, limit uint64) {
	opts := testOptions()
	opts.closeTimeout = 300 * time.Millisecond
	b := childOpen(dir, opts)
	id, err := b.Register("store")
	if err != nil {
		childFail("register: %v", err)
	}
	childSetLimit(limit)
	n := int64(0)
	for err == nil && n < 200 {
		n++
		err = b.Write(roundWrite(id, 20_000, n))
	}
	if !errors.Is(err, state.ErrNoSpace) {
		childFail("write %d: %v", n, err)
	}
	if again := b.Write(roundWrite(id, 10, n)); !errors.Is(again, state.ErrNoSpace) {
		childFail("write after a failure: %v", again)
	}
	if _, err := b.Get(id, []byte("k")); !errors.Is(err, state.ErrNoSpace) {
		childFail("get after a failure: %v", err)
	}
	fmt.Println(n - 1)
	start := time.Now()
	err = b.Close()
	if took := time.Since(start); took > 10*time.Second {
		childFail("close took %v: %v", took, err)
	}
}

// TestFileSizeLimit lets the operating system refuse to let files grow, as on a full disk, and requires a clear error,
// no crash, and whole files afterwards.
func TestFileSizeLimit(t *testing.T) {
	t.Run("open", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		for range 2 {
			if out, err := child(t, "limit open", dir).Output(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			b := mustOpen(t, dir, testOptions())
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, role := range []string{"limit wal", "limit table"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			out, err := child(t, role, dir).Output()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			acknowledged, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			checkRounds(t, dir, acknowledged)
		})
	}
}

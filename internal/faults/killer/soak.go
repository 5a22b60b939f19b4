//go:build unix

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/kafkatest"
)

const (
	// soakMembers are the members of a soak; the first is left in peace, and shows whether anything grows.
	soakMembers = 3
	sampleEvery = 10 * time.Second
	// soakRetention keeps a long soak from filling the disk; what reads it is never that far behind.
	soakRetention = 10 * time.Minute
)

// soak runs for a long time what run does for a minute, with one member that nothing is done to. Its memory, goroutines,
// open files and disk must not grow, and the output is compared with the input as it comes.
func (o options) soak(ctx context.Context, b *kafkatest.Cluster, say func(string)) (err error) {
	o.members = soakMembers
	a, err := o.newAttempt(b, o.seed)
	if err != nil {
		return err
	}
	defer func() { a.close(err == nil) }()
	retention, segment := strconv.FormatInt(soakRetention.Milliseconds(), 10), strconv.Itoa(32<<20)
	configs := map[string]*string{"retention.ms": &retention, "segment.bytes": &segment}
	if err := a.makeTopics(ctx, configs); err != nil {
		return err
	}
	ledger := &ledger{in: map[string]uint64{}, out: map[string]uint64{}}
	followed, end := context.WithCancel(context.WithoutCancel(ctx))
	var followers sync.WaitGroup
	defer func() { end(); followers.Wait() }()
	for topic, note := range map[string]func(*kgo.Record){a.in: ledger.read, a.out: ledger.wrote} {
		cl, err := kgo.NewClient(kgo.SeedBrokers(o.brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
			kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		if err != nil {
			return err
		}
		followers.Go(func() {
			defer cl.Close()
			for followed.Err() == nil {
				cl.PollFetches(followed).EachRecord(note)
			}
		})
	}
	if err := a.startMembers(ctx); err != nil {
		return err
	}
	stop := flow(a.cl, a.in, o.rate, o.keys, a.rng)
	stopped := false
	defer func() {
		if !stopped {
			_ = stop() // it failed otherwise
		}
	}()
	samples, err := a.soakFor(ctx, ledger, say)
	if err != nil {
		return err
	}
	if err := a.catchUp(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	stopped = true
	if err := stop(); err != nil {
		return err
	}
	if err := a.settle(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	if err := complained(a.dir); err != nil {
		return err
	}
	a.result.records, err = ledger.compare(time.Minute)
	if err != nil {
		return err
	}
	say(a.result.String())
	report, err := growth(samples)
	say(report)
	return err
}

// soakFor kills members other than the first, and the broker, for as long as the soak is to last.
func (a *attempt) soakFor(ctx context.Context, l *ledger, say func(string)) (samples []sample, err error) {
	began, sampled, said := time.Now(), time.Time{}, time.Now()
	next := began
	for time.Since(began) < a.o.soakTime {
		select {
		case <-ctx.Done():
			return samples, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		if err := errors.Join(a.failed(), l.failed()); err != nil {
			return samples, err
		}
		if time.Since(sampled) >= sampleEvery {
			sampled = time.Now()
			s, err := a.members[0].sample()
			if err != nil {
				return samples, err
			}
			samples = append(samples, s)
		}
		if time.Since(said) > 10*time.Minute {
			said = time.Now()
			say(fmt.Sprintf("%v: %s, %d killed, %d times the broker", time.Since(began).Round(time.Second),
				samples[len(samples)-1], a.result.kills, a.result.bounces))
		}
		if time.Now().Before(next) {
			continue
		}
		if a.b != nil && a.o.bounce > 0 && a.one(2*a.o.bounce) {
			err = a.bounce()
		} else {
			err = a.kill(a.members[1+a.rng.IntN(len(a.members)-1)])
		}
		if err != nil {
			return samples, err
		}
		next = time.Now().Add(time.Duration(a.rng.Int64N(int64(5 * a.o.every))))
	}
	return samples, nil
}

// ledger compares output with input while they come.
type ledger struct {
	mu      sync.Mutex
	in, out map[string]uint64
	ins     int
	outs    int
	err     error
}

func (l *ledger) read(r *kgo.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.in[string(r.Key)]++
	l.ins++
}

func (l *ledger) wrote(r *kgo.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outs++
	key := string(r.Key)
	if l.err == nil && (len(r.Value) != 8 || binary.BigEndian.Uint64(r.Value) != l.out[key]+1) {
		l.err = fmt.Errorf("the output is wrong: %q at %d@%d is %x after %d", key, r.Partition, r.Offset, r.Value, l.out[key])
	}
	l.out[key]++
}

func (l *ledger) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// compare waits until everything was read, and tells whether it is the same.
func (l *ledger) compare(limit time.Duration) (records int, err error) {
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		l.mu.Lock()
		same := l.err == nil && l.ins == l.outs && len(l.in) == len(l.out)
		for key, n := range l.in {
			same = same && l.out[key] == n
		}
		records, err = l.ins, l.err
		if !same && err == nil && time.Now().After(deadline) {
			err = fmt.Errorf("%d outputs of %d keys for %d records of %d keys", l.outs, len(l.out), l.ins, len(l.in))
		}
		l.mu.Unlock()
		if same || err != nil {
			return records, err
		}
	}
}

// sample is what a process uses at a moment.
type sample struct {
	rss, disk  int64 // bytes
	files      int
	goroutines int
}

// String renders the sample.
func (s sample) String() string {
	return fmt.Sprintf("%d MiB of memory, %d MiB of disk, %d open files, %d goroutines", s.rss>>20, s.disk>>20, s.files,
		s.goroutines)
}

// sample looks at the member's process.
func (m *member) sample() (s sample, err error) {
	m.mu.Lock()
	proc := "/proc/" + strconv.Itoa(m.cmd.Process.Pid)
	m.mu.Unlock()
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(status)) {
		// Without the pages of files, which the system takes back when it needs them.
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return s, err
			}
			s.rss = kib << 10
		}
	}
	files, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return s, err
	}
	s.files = len(files)
	err = filepath.WalkDir(m.state, func(path string, _ fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil && syscall.Lstat(path, &st) == nil {
			s.disk += st.Blocks * 512
		}
		return nil // files come and go meanwhile
	})
	if err != nil {
		return s, err
	}
	const mark = `"goroutines":`
	log := tail(m.log)
	if i := strings.LastIndex(log, mark); i >= 0 {
		digits := log[i+len(mark):]
		digits = digits[:len(digits)-len(strings.TrimLeft(digits, "0123456789"))]
		s.goroutines, err = strconv.Atoi(digits)
	}
	return s, err
}

// growth compares how much was used early, after a fifth of the time, and at the end.
func growth(samples []sample) (string, error) {
	rest := samples[len(samples)/5:]
	quarter := len(rest) / 4
	if quarter < 3 {
		return "too short to tell whether anything grows", nil
	}
	early, late := middle(rest[:quarter]), middle(rest[len(rest)-quarter:])
	report := fmt.Sprintf("a member that nothing was done to: first %s; last %s", early, late)
	var grew []string
	for _, g := range []struct {
		what        string
		early, late int64
		slack       int64
	}{
		{"memory", early.rss, late.rss, 32 << 20}, {"disk", early.disk, late.disk, 64 << 20},
		{"open files", int64(early.files), int64(late.files), 10},
		{"goroutines", int64(early.goroutines), int64(late.goroutines), 20},
	} {
		if g.late > g.early*6/5+g.slack {
			grew = append(grew, g.what)
		}
	}
	if len(grew) > 0 {
		return report, fmt.Errorf("it grows: %s", strings.Join(grew, ", "))
	}
	return report, nil
}

// middle returns the medians.
func middle(samples []sample) sample {
	of := func(f func(sample) int64) int64 {
		v := make([]int64, len(samples))
		for i, s := range samples {
			v[i] = f(s)
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return sample{
		rss: of(func(s sample) int64 { return s.rss }), disk: of(func(s sample) int64 { return s.disk }),
		files:      int(of(func(s sample) int64 { return int64(s.files) })),
		goroutines: int(of(func(s sample) int64 { return int64(s.goroutines) })),
	}
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	valueBytes     = 100
	partitions     = 4
	pollInterval   = 20 * time.Millisecond
	stopTimeout    = 30 * time.Second
	warmUpFraction = 10 // the steady rate is taken from the first tenth of the input on
)

// result is what a measurement prints.
type result struct {
	Workload string `json:"workload"`
	EOS      bool   `json:"eos"`
	Records  int64  `json:"records"`
	// WallS is from the start of the process until the group had committed the whole input.
	WallS float64 `json:"wall_s"`
	// SteadyPerS is in records a second, from the first tenth of the input to its end.
	SteadyPerS float64 `json:"steady_per_s"`
	// CPUS is user and system time of the whole process.
	CPUS          float64 `json:"cpu_s"`
	CPUSPerMillon float64 `json:"cpu_s_per_million"`
	MaxRSSMiB     float64 `json:"max_rss_mib"`
	Outputs       int64   `json:"outputs,omitempty"` // with check=true: the records found in the output
}

// measurement is what run=… was asked for.
type measurement struct {
	brokers, workloads []string
	eos                []bool
	events, keys       int
	threads, commit    int
	repeat             int
	check              bool
	limit              time.Duration

	client *kgo.Client
	admin  *kadm.Client
	input  string
	dir    string
}

// measure runs workloads as processes of their own, one after the other.
func measure(ctx context.Context, a *arguments) (err error) {
	m := measurement{
		workloads: a.list("run", ""), brokers: a.list("brokers", "127.0.0.1:9092"), events: a.number("events", 2_000_000),
		keys: a.number("keys", 100_000), threads: a.number("threads", 2), commit: a.number("commit", 100),
		repeat: a.number("repeat", 1), check: a.flag("check", false),
		limit: time.Duration(a.number("limit", 300)) * time.Second,
	}
	for _, s := range a.list("eos", "false,true") {
		b, err := strconv.ParseBool(s)
		if err != nil {
			a.fail("eos=%s: want true, false or both with a comma", s)
		}
		m.eos = append(m.eos, b)
	}
	for _, w := range m.workloads {
		if workloads[w] == nil {
			a.fail("run=%s is not known", w)
		}
	}
	if m.events < 1 || m.keys < 1 {
		a.fail("events and keys must be at least 1")
	}
	if err := a.finish(); err != nil {
		return err
	}
	m.client, err = kgo.NewClient(
		kgo.SeedBrokers(m.brokers...), kgo.ProducerLinger(pollInterval), kgo.MaxBufferedRecords(100_000),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
	)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer m.client.Close()
	m.admin = kadm.NewClient(m.client)
	if m.dir, err = os.MkdirTemp("", "tailrace-bench"); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(m.dir)) }()
	run := strconv.FormatInt(time.Now().UnixMilli(), 36)
	m.input = "bench-" + run + "-events"
	defer m.deleteTopics("bench-" + run)
	if err := m.fill(ctx); err != nil {
		return err
	}
	for range m.repeat {
		for _, w := range m.workloads {
			for _, eos := range m.eos {
				app := fmt.Sprintf("bench-%s-%s-%d", run, w, time.Now().UnixMilli())
				if err := m.once(ctx, app, w, eos); err != nil {
					return fmt.Errorf("bench: %s: %w", w, err)
				}
			}
		}
	}
	return nil
}

// fill writes the input: random keys, values of a hundred letters, times a tenth of a millisecond apart.
func (m *measurement) fill(ctx context.Context) error {
	if err := m.createTopic(ctx, m.input); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 2))
	letters := make([]byte, 64<<10)
	for i := range letters {
		letters[i] = 'a' + byte(rng.IntN(26))
	}
	start := time.Now().Add(-time.Duration(m.events) * 100 * time.Microsecond)
	var failed kgo.FirstErrPromise
	for i := range m.events {
		at := rng.IntN(len(letters) - valueBytes)
		m.client.Produce(ctx, &kgo.Record{
			Topic: m.input, Key: fmt.Appendf(nil, "k%07d", rng.IntN(m.keys)), Value: letters[at : at+valueBytes],
			Timestamp: start.Add(time.Duration(i) * 100 * time.Microsecond),
		}, failed.Promise())
	}
	if err := failed.Err(); err != nil {
		return fmt.Errorf("bench: fill %s: %w", m.input, err)
	}
	return nil
}

func (m *measurement) createTopic(ctx context.Context, name string) error {
	_, err := m.admin.CreateTopic(ctx, partitions, -1, nil, name)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("bench: create topic %s: %w", name, err)
	}
	return nil
}

// deleteTopics removes what a measurement has made.
func (m *measurement) deleteTopics(prefix string) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	topics, err := m.admin.ListTopics(ctx)
	if err == nil {
		names := slices.DeleteFunc(topics.Names(), func(n string) bool { return !strings.HasPrefix(n, prefix) })
		_, err = m.admin.DeleteTopics(ctx, names...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: topics are left behind:", err)
	}
}

// once measures one run of one workload.
func (m *measurement) once(ctx context.Context, app, workload string, eos bool) error {
	out := app + "-out"
	if err := m.createTopic(ctx, out); err != nil {
		return err
	}
	defer m.deleteTopics(app)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	stateDir := filepath.Join(m.dir, app)
	cmd := exec.Command(self, "workload="+workload, "brokers="+strings.Join(m.brokers, ","), "app="+app,
		"state="+stateDir, "in="+m.input, "out="+out, fmt.Sprintf("eos=%v", eos), fmt.Sprintf("threads=%d", m.threads),
		fmt.Sprintf("commit=%d", m.commit), "cache=0")
	logFile, err := os.Create(stateDir + ".log")
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	r := result{Workload: workload, EOS: eos}
	steadyFrom, steadyAt, last, err := m.follow(ctx, app, began, &r, exited)
	if err != nil {
		if errors.Is(err, errExited) {
			return fmt.Errorf("%w:\n%s", err, tail(logFile.Name()))
		}
		_ = cmd.Process.Kill()
		<-exited //nolint:errcheck // it was killed, and how it took that does not matter
		return err
	}
	if err := stop(cmd, exited); err != nil {
		return fmt.Errorf("stopping: %w:\n%s", err, tail(logFile.Name()))
	}
	usage, _ := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	r.WallS = last.Sub(began).Seconds()
	r.SteadyPerS = float64(r.Records-steadyAt) / last.Sub(steadyFrom).Seconds()
	r.CPUS = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	r.CPUSPerMillon = r.CPUS / float64(r.Records) * 1e6
	if usage != nil {
		r.MaxRSSMiB = float64(usage.Maxrss) / 1024
	}
	if m.check {
		if r.Outputs, err = m.checkOutput(ctx, out, workload); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

var errExited = errors.New("the process ended early")

// follow waits until the group has committed the whole input.
func (m *measurement) follow(
	ctx context.Context, app string, began time.Time, r *result, exited <-chan error,
) (steadyFrom time.Time, steadyAt int64, last time.Time, err error) {
	ctx, cancel := context.WithDeadline(ctx, began.Add(m.limit))
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for r.Records < int64(m.events) {
		select {
		case <-ctx.Done():
			return steadyFrom, 0, last, fmt.Errorf("%d of %d records after %v: %w", r.Records, m.events,
				time.Since(began).Round(time.Second), ctx.Err())
		case err := <-exited:
			return steadyFrom, 0, last, fmt.Errorf("%w: %w", errExited, err)
		case <-tick.C:
		}
		offsets, err := m.admin.FetchOffsets(ctx, app)
		if err != nil {
			continue // the coordinator is not there yet
		}
		var sum int64
		offsets.Each(func(o kadm.OffsetResponse) {
			if o.Topic == m.input {
				sum += max(o.At, 0)
			}
		})
		if sum <= r.Records {
			continue
		}
		r.Records, last = sum, time.Now()
		if steadyAt == 0 && sum >= int64(m.events)/warmUpFraction {
			steadyAt, steadyFrom = sum, last
		}
	}
	return steadyFrom, steadyAt, last, nil
}

// stop ends the process as an operator would.
func stop(cmd *exec.Cmd, exited <-chan error) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-exited:
		return err
	case <-time.After(stopTimeout):
		_ = cmd.Process.Kill()
		<-exited //nolint:errcheck // it was killed, and how it took that does not matter
		return fmt.Errorf("still running %v after SIGTERM", stopTimeout)
	}
}

// tail returns the end of a log.
func tail(path string) string {
	const bytes = 4 << 10
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-bytes):])
}

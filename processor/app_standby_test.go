package processor_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"tailrace.dev/processor"
)

// TestFollowedTopicStandby keeps copies of a table that has no changelog: they follow the topic that the table is of, up
// to what is committed, and take over without reading it again.
func TestFollowedTopicStandby(t *testing.T) {
	t.Parallel()
	brokers := followBroker(t)
	config := func(n int) processor.Config {
		return processor.Config{
			Brokers: brokers, StateDir: t.TempDir(), InstanceID: fmt.Sprint("m", n), TransactionalID: fmt.Sprint("shop-m", n),
			CommitInterval: 20 * time.Millisecond, FlushInterval: 50 * time.Millisecond, Standbys: 1, LeaveOnStop: true,
		}
	}
	var restored, done atomic.Int64
	two := config(2)
	two.Events.RestoreDone = func(_ processor.TaskID, _ string, records int64, _ time.Duration) {
		restored.Add(records)
		done.Add(1)
	}
	stopOne := run(t, pricing(t), config(1))
	prices, want, asked := []string{}, map[string]string{}, []string{}
	answers := map[string]string{}
	for i := range 200 {
		item := fmt.Sprint("item-", i)
		prices = append(prices, item, "0", item, fmt.Sprint(i))
		want[item] = fmt.Sprint(i)
		if i%10 == 0 {
			asked = append(asked, item, "a")
			answers[item] = "a=" + fmt.Sprint(i)
		}
	}
	produce(t, brokers, "prices", prices...)
	await(t, brokers, "seen", want)
	app, err := processor.New("shop", pricing(t), two)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	running := func(role processor.Role) (n int) {
		for _, ts := range app.Status().Tasks {
			if ts.Role == role && ts.State == processor.TaskRunning {
				n++
			}
		}
		return n
	}
	eventually(t, "copies and tasks at the second member", func() bool {
		return running(processor.RoleActive) > 0 && running(processor.RoleActive)+running(processor.RoleStandby) == 3
	})
	produce(t, brokers, "prices", "late", "17", "late", "18")
	want["late"] = "18"
	await(t, brokers, "seen", want)
	adm := admin(t, brokers)
	eventually(t, "the copies to have all that is committed", func() bool {
		offsets, err := adm.FetchOffsets(t.Context(), "shop")
		if err != nil {
			return false
		}
		for _, ts := range app.Status().Tasks {
			o, ok := offsets.Lookup("prices", ts.Task.Partition)
			if ts.Role == processor.RoleStandby && (!ok || len(ts.Restores) != 1 || ts.Restores[0].At < o.At) {
				return false
			}
		}
		return true
	})
	restored.Store(0)
	stopOne()
	eventually(t, "all tasks at the second member", func() bool { return running(processor.RoleActive) == 3 })
	if n := restored.Load(); n != 0 {
		t.Errorf("restored %d records", n)
	}
	produce(t, brokers, "asked", asked...)
	await(t, brokers, "answers", answers)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

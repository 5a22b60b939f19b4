//go:build unix

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// flow writes records to a topic at a rate until stop is called, which waits for the last to be acknowledged. A broker
// that is away is waited for.
func flow(cl *kgo.Client, topic string, rate, keys int, rng *rand.Rand) (stop func() error) {
	end, done := make(chan struct{}), make(chan struct{})
	var failed kgo.FirstErrPromise
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		began, n := time.Now(), 0
		value := make([]byte, 100)
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			// While the broker is away nothing is sent; what was due meanwhile is not made up for.
			if due := int(time.Since(began).Seconds()*float64(rate)) - n; due > rate/2 {
				n += due - rate/2
			}
			for due := int(time.Since(began).Seconds()*float64(rate)) - n; due > 0; due-- {
				n++
				r := &kgo.Record{Topic: topic, Key: fmt.Appendf(nil, "k%06d", rng.IntN(keys)), Value: value}
				cl.Produce(context.Background(), r, failed.Promise())
			}
		}
	}()
	return func() error {
		close(end)
		<-done
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := cl.Flush(ctx); err != nil {
			return fmt.Errorf("write the input: %w", err)
		}
		return failed.Err()
	}
}

// reached tells whether the group has committed offsets for all of the given ends.
func reached(ctx context.Context, adm *kadm.Client, group string, ends kadm.ListedOffsets) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	committed, err := adm.FetchOffsets(ctx, group)
	if err != nil {
		return false
	}
	all := true
	ends.Each(func(end kadm.ListedOffset) {
		at, ok := committed.Lookup(end.Topic, end.Partition)
		if end.Offset > 0 && (!ok || at.Err != nil || at.At < end.Offset) {
			all = false
		}
	})
	return all
}

// lagAllowed is by how long the committed offsets may be behind for a group to be caught up while input flows: a few
// commit intervals.
const lagAllowed = 500 * time.Millisecond

// caughtUp waits until what the input held some moment ago is committed, and returns when.
func caughtUp(ctx context.Context, adm *kadm.Client, group, in string, watch func() error) (time.Time, error) {
	for ctx.Err() == nil {
		asked := time.Now()
		ends, err := listEnds(ctx, adm, in)
		if err != nil {
			continue
		}
		for time.Since(asked) < lagAllowed && ctx.Err() == nil {
			if reached(ctx, adm, group, ends) {
				return time.Now(), nil
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := watch(); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, fmt.Errorf("not caught up: %w: %s", ctx.Err(), lags(adm, group, in))
}

func listEnds(ctx context.Context, adm *kadm.Client, topic string) (kadm.ListedOffsets, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	return ends, err
}

// lags says what a group that does not catch up has not processed.
func lags(adm *kadm.Client, group, in string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ends, err := listEnds(ctx, adm, in)
	if err != nil {
		return err.Error()
	}
	committed, err := adm.FetchOffsets(ctx, group)
	if err != nil {
		return err.Error()
	}
	s := ""
	for _, end := range ends.Offsets().Sorted() {
		at, _ := committed.Lookup(in, end.Partition)
		s += fmt.Sprintf("partition %d: %d of %d; ", end.Partition, at.At, end.At)
	}
	return s
}

// read reads a topic, committed, up to its last stable offset and calls f with each record.
func read(ctx context.Context, brokers []string, adm *kadm.Client, topic string, f func(r *kgo.Record)) error {
	ends, err := adm.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list the ends of %s: %w", topic, err)
	}
	from, left := map[int32]kgo.Offset{}, map[int32]int64{}
	for p, o := range ends[topic] {
		if o.Offset > 0 {
			from[p], left[p] = kgo.NewOffset().AtStart(), o.Offset
		}
	}
	if len(left) == 0 {
		return nil
	}
	// Transaction markers own offsets: with them the end can be seen.
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))
	if err != nil {
		return err
	}
	defer cl.Close()
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return fmt.Errorf("read %s, %d partitions to go: %w", topic, len(left), err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, ok := left[r.Partition]
			if !ok {
				return
			}
			if r.Offset >= end-1 {
				delete(left, r.Partition)
			}
			if r.Offset < end && !r.Attrs.IsControl() {
				f(r)
			}
		})
	}
	return nil
}

// verify compares output and input: each key must have exactly 1, 2, 3 … n in order. It returns how many records there
// are.
func verify(ctx context.Context, brokers []string, adm *kadm.Client, in, out string) (records int, err error) {
	want, got := map[string]uint64{}, map[string]uint64{}
	if err := read(ctx, brokers, adm, in, func(r *kgo.Record) { want[string(r.Key)]++; records++ }); err != nil {
		return 0, err
	}
	wrong, example := 0, ""
	note := func(format string, args ...any) {
		if wrong++; wrong == 1 {
			example = fmt.Sprintf(format, args...)
		}
	}
	outputs := 0
	err = read(ctx, brokers, adm, out, func(r *kgo.Record) {
		outputs++
		key := string(r.Key)
		if len(r.Value) != 8 {
			note("%q at %d@%d has the value %x", key, r.Partition, r.Offset, r.Value)
			return
		}
		n := binary.BigEndian.Uint64(r.Value)
		if n != got[key]+1 {
			note("%q at %d@%d is %d after %d", key, r.Partition, r.Offset, n, got[key])
		}
		got[key] = n
	})
	if err != nil {
		return 0, err
	}
	for key, n := range want {
		if got[key] != n {
			note("%q ends at %d, want %d", key, got[key], n)
		}
	}
	if len(got) != len(want) || outputs != records {
		note("%d records of %d keys for %d of %d", outputs, len(got), records, len(want))
	}
	if wrong > 0 {
		return records, fmt.Errorf("the output is wrong in %d places, the first: %s", wrong, example)
	}
	return records, nil
}

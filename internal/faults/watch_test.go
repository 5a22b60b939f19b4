//go:build unix

package faults

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// resumed waits until what the input holds now is committed, and returns how long after a moment that was.
func (c *cluster) resumed(since time.Time, limit time.Duration) time.Duration {
	c.t.Helper()
	var ends kadm.ListedOffsets
	until(c.t, limit, "the input's end", func() bool {
		var err error
		ends, err = c.adm.ListEndOffsets(c.t.Context(), c.in)
		return err == nil && ends.Error() == nil
	})
	until(c.t, limit, "the input up to now to be processed", func() bool {
		committed, err := c.adm.FetchOffsets(c.t.Context(), c.app)
		if err != nil {
			return false
		}
		for p, end := range ends[c.in] {
			if at, ok := committed.Lookup(c.in, p); end.Offset > 0 && (!ok || at.Err != nil || at.At < end.Offset) {
				return false
			}
		}
		return true
	})
	return time.Since(since)
}

// watcher looks at the committed offsets all the time, and notes for how long each partition's did not move. There must
// be input in each.
type watcher struct {
	end  func()
	done chan struct{}

	mu    sync.Mutex
	at    map[int32]int64
	moved map[int32]time.Time
	most  map[int32]time.Duration
}

// watch starts a watcher, with a client of its own, for the requests of one client to a broker wait for each other.
func (c *cluster) watch() *watcher {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{
		end: cancel, done: make(chan struct{}),
		at: map[int32]int64{}, moved: map[int32]time.Time{}, most: map[int32]time.Duration{},
	}
	adm, err := kadm.NewOptClient(c.opts...)
	if err != nil {
		c.t.Fatal(err)
	}
	go func() {
		defer close(w.done)
		defer adm.Close()
		for ctx.Err() == nil {
			if offsets, err := adm.FetchOffsets(ctx, c.app); err == nil {
				w.note(offsets, c.in)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	c.t.Cleanup(func() { cancel(); <-w.done })
	return w
}

func (w *watcher) note(offsets kadm.OffsetResponses, topic string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for p, o := range offsets[topic] {
		was, known := w.at[p]
		if known && o.At == was {
			w.most[p] = max(w.most[p], now.Sub(w.moved[p]))
			continue
		}
		if known {
			w.most[p] = max(w.most[p], now.Sub(w.moved[p]))
		}
		w.at[p], w.moved[p] = o.At, now
	}
}

// reset forgets the pauses so far, and returns them.
func (w *watcher) reset() map[int32]time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.most
	w.most = map[int32]time.Duration{}
	return was
}

// longest returns the longest of the pauses of some partitions.
func longest(pauses map[int32]time.Duration, of []int32) time.Duration {
	var most time.Duration
	for _, p := range of {
		most = max(most, pauses[p])
	}
	return most.Round(time.Millisecond)
}

// owners returns which partitions of the input each member of the group has, by its client's id in the group, in order.
func (c *cluster) owners() map[string][]int32 {
	c.t.Helper()
	group, err := c.adm.DescribeGroups(c.t.Context(), c.app)
	if err != nil {
		c.t.Fatal(err)
	}
	owners := map[string][]int32{}
	for _, m := range group[c.app].Members {
		name := m.MemberID
		if m.InstanceID != nil {
			name = *m.InstanceID
		}
		owners[name] = nil
		if a, ok := m.Assigned.AsConsumer(); ok {
			for _, t := range a.Topics {
				if t.Topic == c.in {
					owners[name] = append(owners[name], t.Partitions...)
				}
			}
		}
		slices.Sort(owners[name])
	}
	return owners
}

// waitMembers waits until the group is stable with so many members that have all partitions between them, and have been
// told so.
func (c *cluster) waitMembers(members, partitions int, limit time.Duration) map[string][]int32 {
	c.t.Helper()
	var owners map[string][]int32
	seen := ""
	defer func() {
		if c.t.Failed() {
			c.t.Logf("last seen: %s", seen)
		}
	}()
	until(c.t, limit, fmt.Sprintf("%d members with %d partitions", members, partitions), func() bool {
		group, err := c.adm.DescribeGroups(c.t.Context(), c.app)
		if err != nil {
			return false
		}
		d := group[c.app]
		seen = fmt.Sprintf("%s, %d members", d.State, len(d.Members))
		if d.State != "Stable" || len(d.Members) != members {
			return false
		}
		owners = c.owners()
		n := 0
		for _, ps := range owners {
			n += len(ps)
		}
		seen = fmt.Sprintf("%s, %v", d.State, owners)
		return len(owners) == members && n == partitions
	})
	return owners
}

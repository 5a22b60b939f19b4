package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
)

// view is what the HTTP side reads: the two derived topics, kept in memory. It is a cache in the good sense: it
// follows the topics from their beginning, is never written by anything else, and can be thrown away and made again.
// Its size is that of the newest inbox of each user.
//
// It is safe for concurrent use.
type view struct {
	cl    *kgo.Client
	log   *zap.Logger
	epoch string // identifies the topics, so that positions of deleted ones are not taken for theirs

	mu       sync.RWMutex
	rows     map[string]*row
	at       cursor
	watchers map[*watcher]struct{}
	newest   string // whose inbox changed last

	changes atomic.Int64
	broken  atomic.Int64
}

// row is what the view has of one user. A row is not changed once it is made: readers keep it as long as they like.
type row struct {
	user   string
	inbox  Inbox
	unread int64
	seen   [2]position // in each of followed
}

// position is the place of a record in a topic.
type position struct {
	partition int32
	offset    int64
	ok        bool
}

// followed are the topics of the view, in the order of cursor and row.seen.
func followed() [2]string { return [2]string{Inboxes.Name(), UnreadCounts.Name()} }

// openView makes a view of the topics, which must exist. Nothing is read before follow.
func openView(ctx context.Context, brokers []string, log *zap.Logger) (*view, error) {
	names := followed()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(names[:]...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// The ends of transactions are records too, and only by seeing them is it known that the end was reached.
		kgo.KeepControlRecords())
	if err != nil {
		return nil, fmt.Errorf("view: %w", err)
	}
	topics, err := lookUp(ctx, cl, names[:])
	if err != nil {
		cl.Close()
		return nil, fmt.Errorf("view: look up the derived topics: %w", err)
	}
	v := &view{
		cl: cl, log: log, rows: make(map[string]*row), watchers: make(map[*watcher]struct{}),
	}
	h := fnv.New32a()
	for i, name := range names {
		t := topics[name]
		_, _ = h.Write(t.ID[:]) // a hash cannot fail
		v.at[i] = make([]int64, len(t.Partitions))
	}
	v.epoch = fmt.Sprintf("%08x", h.Sum32())
	return v, nil
}

// lookUpTimeout is how long a topic that was just created may be unknown to some brokers of a cluster.
const lookUpTimeout = 15 * time.Second

// lookUp returns the metadata of topics that exist.
func lookUp(ctx context.Context, cl *kgo.Client, names []string) (kadm.TopicDetails, error) {
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	for {
		topics, err := kadm.NewClient(cl).ListTopics(ctx, names...)
		if err == nil {
			err = topics.Error()
		}
		if !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return topics, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (v *view) close() { v.cl.Close() }

// follow reads the topics until ctx is cancelled.
func (v *view) follow(ctx context.Context) error {
	for {
		fs := v.cl.PollFetches(ctx)
		if ctx.Err() != nil || fs.IsClientClosed() {
			return nil
		}
		fs.EachError(func(topic string, p int32, err error) {
			// The client goes on by itself after what passes; the rest is seen as a view that stands still.
			if !errors.Is(err, context.Canceled) {
				v.log.Warn("following failed", zap.String("topic", topic), zap.Int32("partition", p), zap.Error(err))
			}
		})
		v.take(fs)
	}
}

// take applies what one poll returned, and tells the watchers once.
func (v *view) take(fs kgo.Fetches) {
	v.mu.Lock()
	defer v.mu.Unlock()
	changed := make(map[string]bool)
	names := followed()
	fs.EachRecord(func(r *kgo.Record) {
		which := slices.Index(names[:], r.Topic)
		if which < 0 || int(r.Partition) >= len(v.at[which]) {
			return
		}
		v.at[which][r.Partition] = r.Offset + 1
		if r.Attrs.IsControl() {
			return
		}
		user, err := v.apply(which, r)
		if err != nil {
			v.broken.Add(1)
			v.log.Warn("record of a derived topic left out", zap.String("topic", r.Topic),
				zap.Int32("partition", r.Partition), zap.Int64("offset", r.Offset), zap.Error(err))
			return
		}
		changed[user] = true
		v.changes.Add(1)
	})
	for w := range v.watchers {
		w.mark(changed)
	}
}

// apply replaces the row that a record changes.
func (v *view) apply(which int, r *kgo.Record) (user string, err error) {
	if user, err = Inboxes.Key().Decode(r.Key); err != nil {
		return "", err
	}
	next := &row{user: user}
	if old := v.rows[user]; old != nil {
		*next = *old
	}
	next.seen[which] = position{r.Partition, r.Offset, true}
	switch {
	case which == 0 && r.Value == nil:
		next.inbox = Inbox{}
	case which == 0:
		if next.inbox, err = Inboxes.Value().Decode(r.Value); err != nil {
			return "", err
		}
		v.newest = user
	case r.Value == nil:
		next.unread = 0
	default:
		if next.unread, err = UnreadCounts.Value().Decode(r.Value); err != nil {
			return "", err
		}
	}
	v.rows[user] = next
	return user, nil
}

// row returns what is known of a user; an unknown one has an empty row, since nobody has written to them yet.
func (v *view) row(user string) *row {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if r := v.rows[user]; r != nil {
		return r
	}
	return &row{user: user}
}

// all returns the rows of all users, those with the most unread messages first.
func (v *view) all() []*row {
	v.mu.RLock()
	rows := make([]*row, 0, len(v.rows))
	for _, r := range v.rows {
		rows = append(rows, r)
	}
	v.mu.RUnlock()
	slices.SortFunc(rows, byUnread)
	return rows
}

// last returns the row whose inbox changed last, or nil.
func (v *view) last() *row {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.rows[v.newest]
}

// behind returns how many offsets the view is behind the ends of its topics, those of records that are not yet decided
// included.
func (v *view) behind(ctx context.Context) (int64, error) {
	names := followed()
	ends, err := kadm.NewClient(v.cl).ListEndOffsets(ctx, names[:]...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("view: find the ends of the derived topics: %w", err)
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	var n int64
	for i, name := range names {
		for p, at := range v.at[i] {
			if o, ok := ends.Lookup(name, int32(p)); ok {
				n += max(0, o.Offset-at)
			}
		}
	}
	return n, nil
}

// watcher collects which rows changed, for one reader. It holds at most one entry for each user.
type watcher struct {
	only string // one user, or all if empty
	wake chan struct{}

	mu    sync.Mutex
	dirty map[string]bool
}

// watch registers a watcher and returns the positions that it starts after. unwatch ends it.
func (v *view) watch(only string) (*watcher, cursor) {
	w := &watcher{only: only, wake: make(chan struct{}, 1), dirty: make(map[string]bool)}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.watchers[w] = struct{}{}
	return w, v.at.clone()
}

func (v *view) unwatch(w *watcher) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.watchers, w)
}

func (w *watcher) mark(users map[string]bool) {
	w.mu.Lock()
	for u := range users {
		if w.only == "" || w.only == u {
			w.dirty[u] = true
		}
	}
	some := len(w.dirty) > 0
	w.mu.Unlock()
	if some {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// changed returns the newest rows of the users who changed since the last call, and the positions up to which they
// are complete.
func (v *view) changed(w *watcher) ([]*row, cursor) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	w.mu.Lock()
	users := w.dirty
	w.dirty = make(map[string]bool)
	w.mu.Unlock()
	rows := make([]*row, 0, len(users))
	for u := range users {
		if r := v.rows[u]; r != nil {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, byUnread)
	return rows, v.at.clone()
}

// since returns the rows that changed after the given positions.
func (v *view) since(c cursor, only string) []*row {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var rows []*row
	for u, r := range v.rows {
		if (only == "" || only == u) && c.before(r) {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, byUnread)
	return rows
}

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
)

const (
	// maxStandbyBytes bounds what all copies of a session have received and not written.
	maxStandbyBytes = 32 << 20
	// recordOverhead is what a record takes in memory besides its key and value.
	recordOverhead = 200
	// standbyPollRecords bounds what is taken from the client at a time, above the bound.
	standbyPollRecords = 10_000

	// tailTick is how often the committed offsets of followed inputs are asked for; the ends of changelogs are asked for
	// every tailEndTicks of it.
	tailTick     = time.Second
	tailEndTicks = 5
)

// tailer fetches for all copies of a session, with one client that is in no group. It is made with the first copy.
type tailer struct {
	s    *session
	done sync.WaitGroup
	room chan struct{} // what was received has been written

	mu     sync.Mutex
	cl     *kgo.Client // nil: not made yet
	tails  map[topicPartition]*tail
	bytes  int64 // received and not written
	closed bool
}

// tail is a partition that a copy follows.
type tail struct {
	c         *standby
	topic     string
	partition int32
	stores    []*storeRun // of the copy's goroutine
	followed  bool        // an input, to be read up to the committed offset
	refreshed int64       // of the copy's goroutine: when its positions were last written as true, Unix milliseconds

	// Guarded by the tailer's lock.
	next    int64 // first offset that was not received
	limit   int64 // first offset that must not be received
	parked  bool  // not fetched, for it has come to the limit
	end     int64 // of what is committed, as far as known
	trueAt  int64 // when all that was committed had been received, Unix milliseconds; 0: not known since the last look
	records []*kgo.Record
	bytes   int64
	since   time.Time // when the first of them came
	err     error
}

func newTailer(s *session) *tailer {
	return &tailer{s: s, room: make(chan struct{}, 1), tails: map[topicPartition]*tail{}}
}

// add begins to fetch.
func (f *tailer) add(tails []*tail) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errClosed
	}
	if f.cl == nil {
		opts := append(f.s.e.baseOpts(), f.s.e.fetchOpts()...)
		cl, err := kgo.NewClient(append(opts, kgo.ClientID(f.s.e.p.App+"-standby"))...)
		if err != nil {
			return fmt.Errorf("engine: make the client: %w", err)
		}
		f.cl = cl
		f.done.Go(f.poll)
		f.done.Go(f.watch)
	}
	for _, tl := range tails {
		f.tails[topicPartition{tl.topic, tl.partition}] = tl
		tl.parked = true
		f.unpark(tl)
	}
	return nil
}

var errClosed = errors.New("engine: the session has ended")

// unpark begins to fetch a partition that may be read on. The caller holds mu.
func (f *tailer) unpark(tl *tail) {
	if !tl.parked || tl.next >= tl.limit {
		return
	}
	tl.parked = false
	f.cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{
		tl.topic: {tl.partition: kgo.NewOffset().At(tl.next)},
	})
}

// park ends the fetching of a partition. The caller holds mu.
func (f *tailer) park(tl *tail) {
	if tl.parked {
		return
	}
	tl.parked = true
	f.cl.RemoveConsumePartitions(map[string][]int32{tl.topic: {tl.partition}})
}

// remove ends the fetching, and drops what was not taken.
func (f *tailer) remove(tails []*tail) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, tl := range tails {
		if tp := (topicPartition{tl.topic, tl.partition}); f.tails[tp] == tl {
			delete(f.tails, tp)
			f.park(tl)
		}
		f.bytes -= tl.bytes
		tl.records, tl.bytes = nil, 0
	}
	f.signalRoom()
}

func (f *tailer) signalRoom() {
	select {
	case f.room <- struct{}{}:
	default:
	}
}

// poll receives until the session ends.
func (f *tailer) poll() {
	for f.waitRoom() {
		fetches := f.cl.PollRecords(f.s.ctx, standbyPollRecords)
		if f.s.ctx.Err() != nil {
			return
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) { f.receive(p.Topic, &p.FetchPartition) })
	}
}

// waitRoom waits until less than the bound is waiting to be written; false when the session ends.
func (f *tailer) waitRoom() bool {
	for {
		f.mu.Lock()
		full := f.bytes >= maxStandbyBytes
		if full {
			for _, tl := range f.tails {
				tl.c.wakeUp()
			}
		}
		f.mu.Unlock()
		if !full {
			return f.s.ctx.Err() == nil
		}
		select {
		case <-f.room:
		case <-f.s.ctx.Done():
			return false
		}
	}
}

// receive keeps what was fetched of a partition for its copy.
func (f *tailer) receive(topic string, p *kgo.FetchPartition) {
	f.mu.Lock()
	defer f.mu.Unlock()
	tl := f.tails[topicPartition{topic, p.Partition}]
	if tl == nil {
		return
	}
	if p.Err != nil && !errors.Is(p.Err, context.Canceled) && !errors.Is(p.Err, context.DeadlineExceeded) {
		tl.err = p.Err
		tl.c.wakeUp()
	}
	if p.LastStableOffset >= 0 && len(p.Records) > 0 {
		tl.end = p.LastStableOffset
	}
	before := tl.bytes
	for _, r := range p.Records {
		if r.Offset < tl.next {
			continue
		}
		if r.Offset >= tl.limit {
			f.park(tl)
			break
		}
		if len(tl.records) == 0 {
			tl.since = time.Now()
			tl.c.wakeUp()
		}
		tl.records = append(tl.records, r)
		tl.bytes += int64(len(r.Key)+len(r.Value)) + recordOverhead
		tl.next = r.Offset + 1
	}
	f.bytes += tl.bytes - before
	if tl.bytes >= standbyWriteBytes {
		tl.c.wakeUp()
	}
}

// taken is what a copy has to write.
type taken struct {
	records []*kgo.Record
	bytes   int64 // for release
	trueAt  int64 // if not 0, when all that was committed was among what the copy had, Unix milliseconds
	err     error // of fetching
}

// take returns what is due to be written, or all of it, and after how long to ask again. The copy calls release when it
// has written it.
func (f *tailer) take(tl *tail, all bool) (taken, time.Duration) {
	age := min(standbyWriteAge, f.s.e.cfg.FlushInterval)
	f.mu.Lock()
	defer f.mu.Unlock()
	if tl.err != nil && !all {
		return taken{err: tl.err}, 0
	}
	wait := refreshInterval
	if len(tl.records) > 0 {
		waited := time.Since(tl.since)
		if !all && tl.bytes < standbyWriteBytes && waited < age && f.bytes < maxStandbyBytes/2 {
			return taken{}, age - waited
		}
	}
	got := taken{records: tl.records, bytes: tl.bytes, trueAt: tl.trueAt}
	tl.records, tl.bytes, tl.trueAt = nil, 0, 0
	return got, wait
}

// release says that what was taken is written.
func (f *tailer) release(bytes int64) {
	if bytes == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes -= bytes
	f.signalRoom()
}

// progress sums up how far partitions are received. The end is that of what may be read.
func (f *tailer) progress(tails []*tail) (position, end, lag int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, tl := range tails {
		e := max(tl.next, min(tl.end, tl.limit))
		position += tl.next
		end += e
		lag += e - tl.next
	}
	return position, end, lag
}

// watch asks now and then where the partitions end, until the session ends: no fetch tells of a partition that is idle.
func (f *tailer) watch() {
	for n := 1; sleep(f.s.ctx, tailTick); n++ {
		if err := f.look(n%tailEndTicks == 0); err != nil && f.s.ctx.Err() == nil {
			f.s.log.Debug("cannot ask how far standbys are behind", zap.Error(err))
		}
	}
}

func (f *tailer) look(ends bool) error {
	topics, inputs := map[string]bool{}, map[string]bool{}
	f.mu.Lock()
	for tp, tl := range f.tails {
		topics[tp.topic] = true
		if tl.followed {
			inputs[tp.topic] = true
		}
	}
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(f.s.ctx, adminTimeout)
	defer cancel()
	var errs []error
	if len(inputs) > 0 {
		errs = append(errs, f.lookAtCommitted(ctx, inputs))
	}
	if ends && len(topics) > 0 {
		errs = append(errs, f.lookAtEnds(ctx, topics))
	}
	return errors.Join(errs...)
}

// lookAtCommitted moves the limits of inputs on.
func (f *tailer) lookAtCommitted(ctx context.Context, topics map[string]bool) error {
	offsets, err := f.s.committedOffsets(ctx, keysOf(topics))
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for tp, tl := range f.tails {
		if o, ok := offsets.Lookup(tp.topic, tp.partition); ok && tl.followed && o.At >= 0 {
			// An offset that was set back means another state than the copy's; what becomes active finds that out.
			tl.limit = max(tl.limit, o.At)
			f.unpark(tl)
		}
	}
	return nil
}

// lookAtEnds notes the ends of what is committed, and what has been received to there.
func (f *tailer) lookAtEnds(ctx context.Context, topics map[string]bool) error {
	wall := f.s.e.wallMillis() // before the question: what is deleted after it is behind the answer
	ends, err := f.s.adm.ListCommittedOffsets(ctx, keysOf(topics)...)
	if err != nil {
		return fmt.Errorf("engine: list changelog ends: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for tp, tl := range f.tails {
		end, ok := ends.Lookup(tp.topic, tp.partition)
		if !ok || end.Err != nil {
			continue
		}
		tl.end = end.Offset
		if tl.next >= end.Offset {
			tl.trueAt = wall
		}
		tl.c.wakeUp()
	}
	return nil
}

func keysOf(set map[string]bool) []string {
	keys := make([]string, 0, len(set))
	for k := range maps.Keys(set) {
		keys = append(keys, k)
	}
	return keys
}

// close ends the client. The session's context must have ended.
func (f *tailer) close() {
	f.mu.Lock()
	f.closed = true
	cl := f.cl
	f.mu.Unlock()
	if cl == nil {
		return
	}
	cl.Close()
	f.done.Wait()
}

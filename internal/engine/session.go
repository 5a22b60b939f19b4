package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"tailrace.dev/internal/task"
)

// session is one life of the group member: from making its client to closing it. What it holds in memory is worth
// nothing to the next session.
//
// One goroutine, that of run, owns everything that is not said to be shared. Workers run tasks; to touch a task's
// machine, run first pauses them all. Other goroutines hand it functions through post, which it calls with the workers
// paused.
type session struct {
	e        *Engine
	log      *zap.Logger
	ctx      context.Context // ends with the session, not with Run's context
	cancel   context.CancelFunc
	patience context.Context // bounds commits: ends a while after Run's context, or with the session
	giveUp   context.CancelFunc

	plain  *kgo.Client // administration and barriers
	adm    *kadm.Client
	cl     *kgo.Client // group member, consumer, producer
	layout *layout
	cut    context.CancelFunc // makes requests of cl that wait fail

	memberID   string // that all present tasks were assigned to
	joined     bool
	announcing bool // asked for a rebalance because this member is another than it was, and not through it yet
	tasks      map[task.ID]*taskRun
	inputs     map[string][]*input       // by topic and partition; nil where the task is not ours
	closing    map[task.ID]chan struct{} // tasks on their way out; closed when their directory is free
	starts     chan struct{}             // limits how many tasks restore at once
	workers    sync.WaitGroup
	async      sync.WaitGroup // the other goroutines of the session

	given      []*taskRun // of handleFetches, kept for its memory
	bars       []bar
	unresolved unresolved
	runq       chan *taskRun
	tokens     chan struct{} // a worker holds one while it runs a task; pause takes them all
	pausing    atomic.Bool   // shared: asks workers to end their slice

	failure   atomic.Pointer[error] // shared: the first error of a task
	sendError atomic.Pointer[sendFailure]
	produced  atomic.Int64 // shared: records handed to the producer since the last commit
	wanted    atomic.Bool  // shared: commit before the interval is over

	uncommitted atomic.Int64 // shared: bytes of rows of the batches in progress
	unflushed   atomic.Int64 // shared: bytes of committed rows that are not on disk
	flushes     chan struct{}

	fetchedMu   sync.Mutex
	fetchedMeta map[topicPartition]string // shared: metadata of offsets that were just fetched

	postMu sync.Mutex
	posted []func() error

	wakeMu     sync.Mutex
	woken      bool
	pollCancel context.CancelFunc

	calls     *callPool
	standbys  *standbys
	group     membership
	commits   int
	aborts    int // in a row
	inTxn     bool
	lastTxn   time.Time // when one was committed
	crashed   bool
	leaving   bool // give up the member's place at the end
	nextPurge time.Time
	nextCheck time.Time
	nextLag   time.Time
	purging   atomic.Bool // shared
	checking  atomic.Bool // shared
	cleaning  atomic.Bool // shared

	unsticking atomic.Bool // shared

	firstClean, nextClean time.Time   // by the wall clock of the settings
	lagging               atomic.Bool // shared
}

// sendFailure is the first record of a transaction that could not be produced.
type sendFailure struct {
	err   error
	topic string
	key   []byte
	size  int
}

const (
	maxParallelStarts = 8
	maxAbortsInPlace  = 3 // in a row, then the session is rebuilt
	maxFlushes        = 2
	leaveTimeout      = 3 * time.Second
	stopPatience      = 5 * time.Second // for a commit, once a stop is asked for
)

func newSession(e *Engine) *session {
	s := &session{
		e: e, log: e.log,
		tasks:       map[task.ID]*taskRun{},
		inputs:      map[string][]*input{},
		closing:     map[task.ID]chan struct{}{},
		fetchedMeta: map[topicPartition]string{},
		starts:      make(chan struct{}, maxParallelStarts),
		tokens:      make(chan struct{}, e.cfg.Workers),
		flushes:     make(chan struct{}, maxFlushes),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.patience, s.giveUp = context.WithCancel(s.ctx)
	s.calls = newCallPool(s, e.cfg.MaxCalls)
	s.standbys = newStandbys(s)
	e.board.live(s)
	return s
}

// run lives the session. It returns nil when ctx ended and everything was committed and closed.
func (s *session) run(ctx context.Context) error {
	defer s.cancel()
	err := s.open(ctx)
	if err == nil {
		err = s.notFenced(s.loop(ctx))
	}
	s.leaving = s.e.leaves(ctx)
	if errors.Is(err, ErrCrash) {
		s.crashed = true
	}
	return s.close(err)
}

// open makes the clients and prepares everything up to the first poll.
func (s *session) open(ctx context.Context) error {
	var err error
	if s.plain, err = kgo.NewClient(s.e.plainOpts()...); err != nil {
		return fmt.Errorf("engine: make the client: %w", err)
	}
	s.e.warnOfOpenCredentials(s.plain)
	s.adm = kadm.NewClient(s.plain)
	if s.layout, err = s.prepareTopics(ctx); err != nil {
		return ignoreEnd(ctx, err)
	}
	total := 0
	for i, sub := range s.e.p.Subs {
		total += int(s.layout.tasks[i])
		for _, src := range sub.Sources {
			s.inputs[src.Topic] = make([]*input, s.layout.tasks[i])
		}
	}
	s.runq = make(chan *taskRun, 4*total+64) // a task is in it once; retired ones may linger
	if s.e.cfg.ExactlyOnce {
		if err := s.settleFormer(ctx); err != nil {
			return ignoreEnd(ctx, err)
		}
	}
	life, cut := context.WithCancel(context.Background())
	s.cut = cut
	if s.cl, err = kgo.NewClient(append(s.memberOpts(), kgo.WithContext(life))...); err != nil {
		return fmt.Errorf("engine: make the client: %w", err)
	}
	close(s.group.made)
	s.e.board.member(s.cl)
	if s.e.cfg.ExactlyOnce {
		if err := s.fenceFormerSelf(ctx); err != nil {
			return ignoreEnd(ctx, err)
		}
		if err := s.begin(); err != nil {
			return err
		}
	}
	for range s.e.cfg.Workers {
		s.workers.Add(1)
		go s.work()
	}
	now := time.Now()
	s.nextPurge, s.nextCheck = now.Add(s.e.cfg.PurgeInterval), now.Add(s.e.cfg.TopicCheck)
	return nil
}

// fenceFormerSelf asks for the producer id at once. That aborts what a former life of this process left open, and no
// request of that life can commit any more.
func (s *session) fenceFormerSelf(ctx context.Context) error {
	idCtx, cancel := context.WithTimeout(ctx, 2*adminTimeout)
	defer cancel()
	if _, _, err := s.cl.ProducerID(idCtx); err != nil {
		if err := authError(err, "", "use the transactional id "+s.e.cfg.TransactionalID); err != nil {
			return err
		}
		return rebuild("get a producer id: %w", err)
	}
	return nil
}

// ignoreEnd turns an error that only says that ctx ended into a clean end.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, ErrCrash) {
		return errEnded
	}
	return err
}

// errEnded says that Run's context ended before the session had anything to commit.
var errEnded = errors.New("engine: ended")

// loop polls, and runs a cycle (commit, rebalance, flush) at each interval, until ctx ends.
func (s *session) loop(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.wake()
		if sleep(s.ctx, stopPatience) {
			s.giveUp() // whatever it is that does not end; it counts as a crash
		}
	})
	defer stop()
	next := time.Now().Add(s.e.cfg.CommitInterval)
	for {
		s.e.beat()
		if ctx.Err() != nil {
			return s.stop()
		}
		if err := s.failed(); err != nil {
			return s.abandon(err)
		}
		now := time.Now()
		if s.wanted.Load() || !now.Before(next) {
			s.wanted.Store(false)
			if err := s.cycle(); err != nil {
				return s.abandon(err)
			}
			next = time.Now().Add(s.e.cfg.CommitInterval)
		}
		if err := s.runPosted(); err != nil {
			return s.abandon(err)
		}
		s.housekeep(now)
		until := s.runTimers(next)
		if s.full() {
			s.waitWoken(until)
			continue
		}
		if err := s.poll(until); err != nil {
			return s.abandon(err)
		}
	}
}

// failed returns what a task or a callback reported.
func (s *session) failed() error {
	if p := s.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// fail reports the first error of the session from any goroutine.
func (s *session) fail(err error) {
	if s.failure.CompareAndSwap(nil, &err) {
		s.wake()
	}
}

// post hands f to the session's goroutine, which calls it with the workers paused.
func (s *session) post(f func() error) {
	s.postMu.Lock()
	s.posted = append(s.posted, f)
	s.postMu.Unlock()
	s.wake()
}

// runPosted calls what was posted, pausing the workers if there is anything.
func (s *session) runPosted() error {
	s.postMu.Lock()
	n := len(s.posted)
	s.postMu.Unlock()
	if n == 0 {
		return nil
	}
	if err := s.pause(); err != nil {
		return err
	}
	defer s.resume()
	return s.callPosted()
}

// callPosted calls what was posted. The workers must be paused.
func (s *session) callPosted() error {
	for {
		s.postMu.Lock()
		fns := s.posted
		s.posted = nil
		s.postMu.Unlock()
		if len(fns) == 0 {
			return nil
		}
		for _, f := range fns {
			if err := f(); err != nil {
				return err
			}
		}
	}
}

// wake makes the loop go round: it ends a poll or a wait that is under way, or else the next one.
func (s *session) wake() {
	s.wakeMu.Lock()
	defer s.wakeMu.Unlock()
	s.woken = true
	if s.pollCancel != nil {
		s.pollCancel()
	}
}

// requestCommit asks for a cycle now, from any goroutine.
func (s *session) requestCommit() {
	if !s.wanted.Swap(true) {
		s.wake()
	}
}

// untilWoken returns a context that ends at the deadline or by wake.
func (s *session) untilWoken(until time.Time) (context.Context, func()) {
	ctx, cancel := context.WithDeadline(s.ctx, until)
	s.wakeMu.Lock()
	if s.woken {
		cancel()
	} else {
		s.pollCancel = cancel
	}
	s.wakeMu.Unlock()
	return ctx, func() {
		s.wakeMu.Lock()
		s.woken, s.pollCancel = false, nil
		s.wakeMu.Unlock()
		cancel()
	}
}

func (s *session) waitWoken(until time.Time) {
	ctx, done := s.untilWoken(until)
	<-ctx.Done()
	done()
}

// pause waits until no worker runs a task. It gives up when a worker does not come back, which is when it is blocked in
// a producer whose broker is away: only closing the client frees it.
func (s *session) pause() error {
	s.pausing.Store(true)
	limit := time.NewTimer(max(2*s.e.cfg.TransactionTimeout, 30*time.Second))
	defer limit.Stop()
	for i := range cap(s.tokens) {
		select {
		case s.tokens <- struct{}{}:
			continue
		case <-limit.C:
		case <-s.patience.Done():
		}
		for range i {
			<-s.tokens
		}
		s.pausing.Store(false)
		return rebuild("a worker is stuck; it may wait for a broker that is away")
	}
	return nil
}

func (s *session) resume() {
	s.pausing.Store(false)
	for range cap(s.tokens) {
		<-s.tokens
	}
}

// cycle commits what the tasks computed, lets a waiting rebalance happen, and starts flushes.
func (s *session) cycle() error {
	if err := s.pause(); err != nil {
		return err
	}
	defer s.resume()
	if err := s.commit(); err != nil {
		return err
	}
	if err := s.reachedBar(); err != nil {
		return err
	}
	if err := s.allowRebalance(); err != nil {
		return err
	}
	return s.flushDue()
}

// stop ends the session cleanly: the last commit, then the flushes of close.
func (s *session) stop() error {
	s.e.setState(StateStopping)
	s.calls.stop()
	if err := s.failed(); err != nil {
		return s.abandon(err)
	}
	if err := s.pause(); err != nil {
		return err
	}
	defer s.resume()
	if err := s.commit(); err != nil {
		return s.abandon(err)
	}
	if s.aborts > 0 {
		return rebuild("the last commit was refused")
	}
	return nil
}

// abandon ends the session for an error: what is uncommitted is aborted where that is possible, so that others need
// not wait for the transaction to time out.
func (s *session) abandon(err error) error {
	var again *rebuildError
	if errors.Is(err, ErrCrash) || errors.As(err, &again) {
		return err
	}
	if s.inTxn {
		ctx, cancel := context.WithTimeout(s.ctx, s.commitTimeout())
		defer cancel()
		if aborted := s.abortTransaction(ctx); aborted != nil {
			s.log.Warn("the transaction will be aborted by its timeout", zap.Error(aborted))
		}
	}
	return err
}

// close ends everything that the session started. After a crash or for a rebuild nothing is flushed or left; after all
// else the tasks' committed rows go to disk.
func (s *session) close(err error) error {
	var again *rebuildError
	drop := s.crashed || errors.As(err, &again)
	if !drop && err != nil && !errors.Is(err, errEnded) {
		s.e.setState(StateStopping)
	}
	s.cancel()
	var left error // why the client could not leave the group, if it could not
	if s.cl != nil {
		s.cl.AllowRebalance()
		// Closing does this too, but would wait for a coordinator that is away, and in a rebalance for the other members.
		ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
		if id, _ := s.cl.GroupMetadata(); id != "" {
			s.memberID = id
		}
		left = s.cl.LeaveGroupContext(ctx) // a static member leaves only if it owes the group a join
		cancel()
		s.cut()
		s.cl.Close() // frees workers that wait in the producer
		// Closing polls once more, which would hold up its own goroutine that leaves the group, if that comes late.
		s.cl.AllowRebalance()
	}
	s.workers.Wait()
	for _, t := range s.tasks {
		s.retire(t, !drop)
	}
	s.async.Wait()
	s.standbys.close()
	s.calls.wait(s.log)
	// Whatever was posted and not called belongs to tasks that are closed by now.
	if s.plain != nil {
		if s.cl != nil && !s.crashed {
			s.leave(left == nil, s.leaving && !drop)
		}
		s.plain.Close()
	}
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// leave takes this member out of the group: a static one for good, if that is wanted, and another one if its client has
// not left.
func (s *session) leave(left, forGood bool) {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = s.e.p.App
	m := kmsg.NewLeaveGroupRequestMember()
	switch {
	case s.e.cfg.InstanceID == "" && !left && s.memberID != "":
		m.MemberID = s.memberID
	case s.e.cfg.InstanceID != "" && forGood:
		m.InstanceID = &s.e.cfg.InstanceID
	default:
		return
	}
	m.Reason = kmsg.StringPtr("the session ended")
	req.Members = append(req.Members, m)
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	resp, err := req.RequestWith(ctx, s.plain)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err == nil && len(resp.Members) > 0 {
		err = kerr.ErrorForCode(resp.Members[0].ErrorCode)
	}
	if err != nil && !errors.Is(err, kerr.UnknownMemberID) { // it is out
		s.log.Warn("could not leave the group; its place is kept until the session times out", zap.Error(err))
	}
}

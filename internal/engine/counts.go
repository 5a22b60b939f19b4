package engine

import (
	"time"

	"tailrace.dev/internal/task"
)

// counted adds a commit to what the metrics show.
func (s *session) counted(info *CommitInfo, began time.Time) {
	info.Took = time.Since(began)
	b := &s.e.board
	b.commits.Add(1)
	b.processed.Add(int64(info.Processed))
	b.outputs.Add(int64(info.Outputs))
	b.changes.Add(int64(info.Changes))
	s.e.metrics.commitSeconds.Observe(info.Took.Seconds())
}

// countFlush adds a flush, and sees how large the task's state is by now.
func (s *session) countFlush(t *taskRun, rows int, took time.Duration) {
	s.e.metrics.flushSeconds.Observe(took.Seconds())
	s.e.metrics.flushedRows.Add(float64(rows))
	t.view.bytes.Store(t.backend.Size())
}

// countDrops sees what the operators of a task have left out since the last time. What they left out of records that are
// taken back is not counted: it comes again with them.
func (t *taskRun) countDrops(committed bool) {
	counter, ok := t.machine.(task.DropCounter)
	if !ok {
		return
	}
	names := t.s.e.p.DropReasons
	if t.drops == nil {
		t.drops = make([]int64, len(names))
	}
	for i, n := range counter.Drops() {
		if i >= len(names) {
			return
		}
		if n > t.drops[i] && committed {
			t.s.e.metrics.dropped.WithLabelValues(names[i]).Add(float64(n - t.drops[i]))
		}
		t.drops[i] = n
	}
}

// target returns the offset behind the last one that a restore of the store has to read, its barrier left out.
func (st *storeRun) target() int64 {
	if st.spec.Source != "" {
		return st.barrier + 1
	}
	return st.barrier
}

// inFlight returns how many calls are under way.
func (p *callPool) inFlight() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running
}

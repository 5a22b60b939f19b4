package processor

import "container/heap"

// scheduled says when to look at the head of a lane. It may be out of date: the row decides.
type scheduled struct {
	due    int64
	number int64
	lane   string
}

// schedule orders the heads of the lanes of an operator by the time that they wait for.
type schedule struct {
	// ready are those whose time has come; before seen they were looked at, and need a call.
	ready []scheduled
	seen  int
	later scheduleHeap
}

func (s *schedule) add(e scheduled, now int64) {
	if e.due <= now {
		s.ready = append(s.ready, e)
		return
	}
	heap.Push(&s.later, e)
}

// advance moves those whose time has come.
func (s *schedule) advance(now int64) {
	for len(s.later) > 0 && s.later[0].due <= now {
		e, _ := heap.Pop(&s.later).(scheduled)
		s.ready = append(s.ready, e)
	}
}

// next returns the next time that comes, or 0.
func (s *schedule) next() int64 {
	if len(s.later) == 0 {
		return 0
	}
	return s.later[0].due
}

// keep replaces those that are ready.
func (s *schedule) keep(ready []scheduled, seen int) {
	clear(s.ready[min(len(ready), len(s.ready)):])
	s.ready, s.seen = ready, seen
}

type scheduleHeap []scheduled

func (h scheduleHeap) Len() int { return len(h) }
func (h scheduleHeap) Less(i, j int) bool {
	if h[i].due != h[j].due {
		return h[i].due < h[j].due
	}
	return h[i].number < h[j].number
}
func (h scheduleHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *scheduleHeap) Push(x any) {
	if e, ok := x.(scheduled); ok {
		*h = append(*h, e)
	}
}

// Pop implements heap.Interface.
func (h *scheduleHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = scheduled{}
	*h = old[:len(old)-1]
	return e
}

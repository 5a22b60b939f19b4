package engine

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace.dev/internal/task"
)

func (p *process) status() Status { return p.e.Status() }

func TestStatusOfARun(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 2)
	c.feed("in", 0, 400, 20)
	r := newRig(t, c, countProgram("status"))
	p := r.start(t)
	until(t, "the process to be ready", func() bool { return p.status().Ready })
	until(t, "all to be committed", func() bool { return p.status().Processed == 400 })
	var s Status
	until(t, "the lag to go", func() bool {
		s = p.status()
		lag, known := s.Lag()
		return known && lag == 0
	})
	if s.State != StateRunning || !s.Live || !s.Joined || s.Member == "" || s.Generation < 0 || s.Error != "" {
		t.Errorf("status %+v", s)
	}
	if s.Outputs != 400 || s.Commits == 0 || s.Changes == 0 || s.BrokersSeen.IsZero() {
		t.Errorf("counts %+v", s)
	}
	if len(s.Tasks) != 2 {
		t.Fatalf("tasks %+v", s.Tasks)
	}
	for i, ts := range s.Tasks {
		if int(ts.Task.Partition) != i || ts.Role != RoleActive || ts.State != TaskRunning || len(ts.Inputs) != 1 {
			t.Errorf("task %+v", ts)
		}
		if in := ts.Inputs[0]; in.Committed != in.End || in.End == 0 {
			t.Errorf("input %+v", in)
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back Status
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back.Tasks, s.Tasks) || !strings.Contains(string(b), `"role":"active"`) ||
		!strings.Contains(string(b), `"state":"running"`) {
		t.Errorf("%s", b)
	}
	p.stop()
	if s := p.status(); s.State != StateStopped || s.Live || s.Ready || len(s.Tasks) != 0 {
		t.Errorf("after the end: %+v", s)
	}
}

// TestRestoreProgress shows that a restore is measured in offsets: it comes to the end although markers and barriers
// hold no row, and rows are counted without these.
func TestRestoreProgress(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 1)
	c.topic("out", 1)
	r := newRig(t, c, countProgram("progress"))
	p := r.start(t)
	total := 0
	for range 10 { // each commit leaves a marker
		c.feed("in", total, 20, 10)
		total += 20
		until(t, "the commit", func() bool { return p.status().Processed == int64(total) })
	}
	changes := p.status().Changes
	p.stop()
	if err := os.RemoveAll(r.settings.StateDir); err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	var seen []RestoreProgress
	var done int64
	p = r.start(t, func(s *Settings) {
		s.Events.Restoring = func(rp RestoreProgress) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, rp)
		}
		s.Events.RestoreDone = func(_ task.ID, _ string, records int64, _ time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			done = records
		}
	})
	until(t, "the process to be ready", func() bool { return p.status().Ready })
	mu.Lock()
	defer mu.Unlock()
	if done != changes {
		t.Errorf("%d rows restored, want %d: what was written", done, changes)
	}
	if len(seen) == 0 {
		t.Fatal("no progress was told")
	}
	last := seen[len(seen)-1]
	if last.At != last.To || last.Fraction() != 1 || last.Remaining() != 0 || last.To < changes+10 {
		t.Errorf("the restore ends at %+v", last)
	}
	for i := 1; i < len(seen); i++ {
		if seen[i].At < seen[i-1].At || seen[i].To != last.To {
			t.Errorf("progress goes from %+v to %+v", seen[i-1], seen[i])
		}
	}
	ts := p.status().Tasks[0]
	if len(ts.Restores) != 1 || !ts.Restores[0].Done || ts.Restores[0].Records != changes || ts.Restores[0].Rate <= 0 {
		t.Errorf("task %+v", ts)
	}
}

func TestProgressArithmetic(t *testing.T) {
	p := RestoreProgress{From: 100, At: 150, To: 200, Rate: 25}
	eta, ok := p.ETA()
	if p.Remaining() != 50 || p.Fraction() != 0.5 || !ok || eta != 2*time.Second {
		t.Errorf("%d %v %v %v", p.Remaining(), p.Fraction(), eta, ok)
	}
	b, err := json.Marshal(p)
	if err != nil || !strings.Contains(string(b), `"etaSeconds":2}`) {
		t.Errorf("%s %v", b, err)
	}
	p.Rate = 0
	if _, ok := p.ETA(); ok {
		t.Error("an ETA without a rate")
	}
	if p = (RestoreProgress{From: 7, At: 7, To: 7}); p.Fraction() != 1 {
		t.Error("nothing to read is not done")
	}
	p = RestoreProgress{To: 1 << 62, Rate: 1e-3}
	if eta, ok := p.ETA(); !ok || eta <= 0 {
		t.Errorf("eta %v", eta)
	}
}

func TestRateOverAWindow(t *testing.T) {
	v := &storeView{task: &taskView{}}
	v.moved(5, 1) // before it began: nothing
	v.begin(0, 1000)
	now := v.began
	v.mu.Lock()
	v.marks = []rateMark{{now.Add(-10 * time.Second), 100}, {now, 900}}
	v.at = 900
	v.mu.Unlock()
	p, ok := v.progress(now)
	if !ok || p.Rate != 80 {
		t.Errorf("rate %v", p.Rate)
	}
	for i := range 200 {
		v.mu.Lock()
		for j := range v.marks { // as if a second had passed
			v.marks[j].when = v.marks[j].when.Add(-time.Second)
		}
		v.mu.Unlock()
		v.moved(int64(900+i/2), 0)
	}
	if n := len(v.marks); n > int(rateWindow/rateStep)+2 {
		t.Errorf("%d marks are kept", n)
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	e := &Engine{cfg: &Settings{ReadyLag: 10, TransactionTimeout: 10 * time.Second}}
	ready := func() Status {
		return Status{
			State: StateRunning, Joined: true, BrokersSeen: time.Now(),
			Tasks: []TaskStatus{
				{Task: task.ID{Sub: "a"}, State: TaskRunning, Inputs: []InputStatus{{Topic: "a", Committed: 3, End: 5, Lag: 2}}},
				{Task: task.ID{Sub: "b"}, Role: RoleStandby, State: TaskRestoring},
			},
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*Status)
		want   string // "": ready
	}{
		{"ready", func(*Status) {}, ""},
		{"no tasks", func(s *Status) { s.Tasks = nil }, ""},
		{"not started", func(s *Status) { s.State = "" }, "not been started"},
		{"rebuilding", func(s *Status) { s.State = StateRebuilding }, "rebuilding"},
		{"ended", func(s *Status) { s.State, s.Error = StateStopped, "no brokers" }, "no brokers"},
		{"not joined", func(s *Status) { s.Joined = false }, "group"},
		{"lag", func(s *Status) { s.Tasks[0].Inputs[0].Lag = 11 }, "11 offsets behind"},
		{"lag not known", func(s *Status) { s.Tasks[0].Inputs[0].Lag = -1 }, "not known"},
		{"silence", func(s *Status) { s.BrokersSeen = time.Now().Add(-time.Minute) }, "not answered for 1m"},
		{"never seen", func(s *Status) { s.BrokersSeen = time.Time{} }, "have not told"},
		{"waiting", func(s *Status) { s.Tasks[0].State = TaskWaiting }, "task a/0 is waiting"},
		{"restoring", func(s *Status) {
			s.State, s.Tasks[0].State = StateRestoring, TaskRestoring
			s.Tasks[0].Restores = []RestoreProgress{{Task: task.ID{Sub: "a"}, Store: "counts", To: 100, At: 25, Rate: 25}}
		}, "task a/0 restores store counts: 25.0 %, about 3s left"},
		{"global", func(s *Status) {
			s.State, s.Globals = StateStarting, []GlobalStatus{{Store: "g", Remaining: 7}}
		}, "global table g has 7"},
		{"many", func(s *Status) {
			for i := range 100 {
				s.Tasks = append(s.Tasks, TaskStatus{Task: task.ID{Sub: "x", Partition: int32(i)}})
			}
		}, "and 80 more"},
	} {
		s := ready()
		tt.change(&s)
		why := e.missing(&s)
		if tt.want == "" && len(why) > 0 || tt.want != "" && !strings.Contains(strings.Join(why, "; "), tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, why, tt.want)
		}
	}
	s := ready()
	if e.stuck(&s) != "" {
		t.Errorf("stuck: %s", e.stuck(&s))
	}
	s.Idle = time.Hour
	if !strings.Contains(e.stuck(&s), "1h") {
		t.Errorf("not stuck: %s", e.stuck(&s))
	}
}

// wire is a network that can be cut.
type wire struct {
	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

func (w *wire) dial(ctx context.Context, network, host string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return nil, errors.New("the network is cut")
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, host)
	if err == nil {
		w.conns = append(w.conns, conn)
	}
	return conn, err
}

func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	for _, conn := range w.conns {
		_ = conn.Close()
	}
	w.conns = nil
}

// TestHealthOverAnOutage takes the brokers away and gives them back: the process is not stuck meanwhile, and not ready.
func TestHealthOverAnOutage(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.topic("in", 2)
	c.topic("out", 2)
	r := newRig(t, c, countProgram("outage"))
	w := new(wire)
	w.set(true)
	r.settings.Kafka = append(r.settings.Kafka, kgo.Dialer(w.dial))
	p := r.start(t)
	until(t, "the start to wait", func() bool { return p.status().State == StateStarting })
	if s := p.status(); !s.Live || s.Ready || len(s.Missing) == 0 {
		t.Errorf("without brokers at the start: %+v", s)
	}
	w.set(false)
	until(t, "the process to be ready", func() bool { return p.status().Ready })
	w.set(true)
	until(t, "the process to be ready no more", func() bool { return !p.status().Ready })
	if s := p.status(); !s.Live || s.Stuck != "" ||
		!slices.ContainsFunc(s.Missing, func(m string) bool { return strings.Contains(m, "brokers") || strings.Contains(m, "it is") }) {
		t.Errorf("without brokers: live %v %q, missing %q", s.Live, s.Stuck, s.Missing)
	}
	w.set(false)
	until(t, "the process to be ready again", func() bool { return p.status().Ready })
	p.cancel()
	if err := p.wait(); err != nil && !errors.Is(err, ErrUncommitted) { // it may just learn that it was expelled meanwhile
		t.Error(err)
	}
}

func TestStatusTellsTheError(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	r := newRig(t, c, countProgram("missing")) // and so are its topics
	p := r.start(t)
	if err := p.wait(); !errors.Is(err, ErrMissingTopic) {
		t.Fatal(err)
	}
	if s := p.status(); s.Live || s.Ready || !strings.Contains(s.Error, "topic") || !strings.Contains(s.Stuck, "error") {
		t.Errorf("%+v", s)
	}
}

func TestRolesOfCopies(t *testing.T) {
	var b board
	var told []string
	b.events = &Events{Standby: func(id task.ID, state string) { told = append(told, id.String()+" "+state) }}
	sub := &Sub{Name: "a", Sources: []Source{{Topic: "a"}}, Stores: []Store{{Name: "s", Changelog: "c"}}}
	active := b.show(task.ID{Sub: "a"}, RoleActive, sub)
	copied := b.show(task.ID{Sub: "a", Partition: 1}, RoleStandby, sub)
	role := func(v *taskView) Role { return v.status(time.Now()).Role }
	b.ordered(map[task.ID]bool{active.id: true, copied.id: true})
	if role(active) != RoleActive || role(copied) != RoleWarmup {
		t.Errorf("roles %v %v", role(active), role(copied))
	}
	b.ordered(map[task.ID]bool{copied.id: false})
	if role(copied) != RoleStandby {
		t.Errorf("role %v", role(copied))
	}
	copied.setState(TaskRestoring)
	copied.setState(TaskRestoring)
	copied.setState(TaskRunning)
	copied.setFailure(errors.New("no disk"))
	if s := copied.status(time.Now()); s.Failure != "no disk" || s.State != TaskRunning {
		t.Errorf("status %+v", s)
	}
	active.setState(TaskRunning)
	b.hide(copied)
	b.hide(copied)
	b.hide(active)
	if want := []string{"a/1 waiting", "a/1 restoring", "a/1 running", "a/1 ended"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

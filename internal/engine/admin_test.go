package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func openAdmin(t *testing.T, c *cluster) *Admin {
	t.Helper()
	a, err := OpenAdmin(t.Context(), AdminSettings{Brokers: c.addrs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// twoMembers runs an application as two members with disks of their own until all of total records are counted, stops
// them, and returns how to start them again.
func twoMembers(t *testing.T, c *cluster, app string, total int) (rigs [2]*rig, start func() [2]*process) {
	t.Helper()
	c.topic("in", 4)
	c.topic("out", 1)
	for i := range rigs {
		rigs[i] = newRig(t, c, countProgram(app))
		rigs[i].settings.LeaveOnStop = true
		if i > 0 {
			rigs[i].settings.StateDir = filepath.Join(t.TempDir(), rigs[i].program.App)
		}
	}
	start = func() [2]*process {
		var ps [2]*process
		for i, r := range rigs {
			ps[i] = r.start(t, func(s *Settings) {
				s.InstanceID += "-" + strconv.Itoa(i)
				s.TransactionalID = s.InstanceID
			})
		}
		return ps
	}
	ps := start()
	until(t, "both members to have tasks", func() bool {
		return len(ps[0].e.Status().Tasks) == 2 && len(ps[1].e.Status().Tasks) == 2
	})
	c.feed("in", 0, total, 25)
	until(t, "all to be counted", func() bool { return c.committed(app, "in") == int64(total) })
	ps[0].stop()
	ps[1].stop()
	return rigs, start
}

// countedAgain checks that the outputs after the first ones count from 1 again.
func countedAgain(t *testing.T, c *cluster, before, total int) {
	t.Helper()
	got := c.read("out", before+total)[before:]
	last := map[string]int{}
	for _, r := range got {
		n, err := strconv.Atoi(string(r.Value))
		if err != nil || n != last[string(r.Key)]+1 {
			t.Fatalf("key %s: %s after %d", r.Key, r.Value, last[string(r.Key)])
		}
		last[string(r.Key)] = n
	}
	if len(got) != total {
		t.Errorf("%d outputs after the reset, want %d", len(got), total)
	}
}

// TestResetFreshRun: after a reset on one machine, all members give what a first run gives, although the other still
// has its rows on disk.
func TestResetFreshRun(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const total = 500
	rigs, start := twoMembers(t, c, "again", total)
	a := openAdmin(t, c)
	spec := ResetSpec{App: rigs[0].program.App, StateDir: rigs[0].settings.StateDir}
	plan, err := a.PlanReset(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{c.ns + "again-counts-changelog"}; !slices.Equal(plan.Delete, want) || len(plan.Offsets) != 4 || len(plan.Tasks) == 0 {
		t.Fatalf("%+v", plan)
	}
	if err := a.Reset(t.Context(), plan, ResetOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(spec.StateDir, plan.Tasks[0])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", plan.Tasks[0], err)
	}
	ps := start()
	countedAgain(t, c, total, total)
	ps[0].stop()
	ps[1].stop()
}

// TestResetAfterCrash ends a reset before each of its steps. No member starts then, and a second run completes it.
func TestResetAfterCrash(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const total = 200
	rigs, start := twoMembers(t, c, "crash", total)
	a := openAdmin(t, c)
	spec := ResetSpec{App: rigs[0].program.App, StateDir: rigs[0].settings.StateDir}
	broken := errors.New("broken off")
	for i, step := range []string{StepMark, StepMembers, StepTopics, StepState, StepOffsets, StepDone} {
		a.at = func(at string) error {
			if at == step {
				return broken
			}
			return nil
		}
		plan, err := a.PlanReset(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Reset(t.Context(), plan, ResetOptions{}); !errors.Is(err, broken) {
			t.Fatalf("%s: %v", step, err)
		}
		if step != StepMark {
			_ = isKind(t, rigs[0].start(t).wait(), ErrResetUnfinished)
		}
		a.at = nil
		if plan, err = a.PlanReset(t.Context(), spec); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		if plan.Unfinished != (step != StepMark) {
			t.Errorf("%s: the plan says unfinished: %v", step, plan.Unfinished)
		}
		if err := a.Reset(t.Context(), plan, ResetOptions{}); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		ps := start()
		countedAgain(t, c, (i+1)*total, total)
		until(t, "the offsets to be committed", func() bool { return c.committed("crash", "in") == total })
		ps[0].stop()
		ps[1].stop()
	}
}

// TestResetForce resets an application whose members run: without force it is refused and nothing changes, with it they
// stop.
func TestResetForce(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const total = 200
	rigs, start := twoMembers(t, c, "force", total)
	ps := start()
	until(t, "both members to have tasks", func() bool {
		return len(ps[0].e.Status().Tasks) == 2 && len(ps[1].e.Status().Tasks) == 2
	})
	a := openAdmin(t, c)
	plan, err := a.PlanReset(t.Context(), ResetSpec{App: rigs[0].program.App, StateDir: rigs[0].settings.StateDir})
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Members) != 2 || plan.InUse == "" {
		t.Errorf("%d members, in use: %q", len(plan.Members), plan.InUse)
	}
	_ = isKind(t, a.Reset(t.Context(), plan, ResetOptions{}), ErrMembersRun)
	rec, err := a.recorded(t.Context(), plan.App)
	if err != nil || rec.mark != nil {
		t.Fatalf("a refused reset left a record: %+v, %v", rec.mark, err)
	}
	if err := a.Reset(t.Context(), plan, ResetOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	for _, p := range ps {
		// It was told to stop while the reset ran, unless it came back after it.
		select {
		case <-p.done:
			_ = isKind(t, p.wait(), ErrResetUnfinished)
		default:
			p.cancel()
			if err := p.wait(); err != nil && !errors.Is(err, ErrUncommitted) && !errors.Is(err, ErrResetUnfinished) &&
				!errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}
	again := start()
	countedAgain(t, c, total, total)
	again[0].stop()
	again[1].stop()
}

// TestResetTargets: each kind of target, on some of the partitions.
func TestResetTargets(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const total = 200
	rigs, _ := twoMembers(t, c, "targets", total)
	a := openAdmin(t, c)
	app, in := rigs[0].program.App, c.ns+"in"
	plan := func(to ResetTarget, only map[string][]int32) []OffsetReset {
		t.Helper()
		p, err := a.PlanReset(t.Context(), ResetSpec{App: app, To: to, Only: only})
		if err != nil {
			t.Fatal(err)
		}
		return p.Offsets
	}
	for _, o := range plan(ResetTarget{Kind: ResetEarliest}, nil) {
		if o.To != 0 || o.From == nil || *o.From != o.End {
			t.Errorf("earliest: %+v", o)
		}
	}
	for _, o := range plan(ResetTarget{Kind: ResetLatest}, nil) {
		if o.To != o.End || o.End == 0 {
			t.Errorf("latest: %+v", o)
		}
	}
	got := plan(ResetTarget{Kind: ResetOffset, Offset: 3}, map[string][]int32{in: {2, 0, 2}})
	if len(got) != 2 || got[0].Partition != 0 || got[1].Partition != 2 || got[0].To != 3 {
		t.Errorf("offset: %+v", got)
	}
	for _, o := range plan(ResetTarget{Kind: ResetOffset, Offset: 1 << 40}, nil) {
		if o.To != o.End {
			t.Errorf("offset past the end: %+v", o)
		}
	}
	sum := int64(0)
	for _, o := range plan(ResetTarget{Kind: ResetTime, Time: feedEpoch.Add(150 * time.Millisecond)}, nil) {
		sum += o.End - o.To
	}
	if sum != 50 {
		t.Errorf("%d records from the middle on, want 50", sum)
	}
	for _, o := range plan(ResetTarget{Kind: ResetTime, Time: feedEpoch.Add(time.Hour)}, nil) {
		if o.To != o.End {
			t.Errorf("a time after all records: %+v", o)
		}
	}
	_, err := a.PlanReset(t.Context(), ResetSpec{App: app, Only: map[string][]int32{c.ns + "out": nil}})
	_ = isKind(t, err, ErrBadReset)
	_, err = a.PlanReset(t.Context(), ResetSpec{App: app, Only: map[string][]int32{in: {9}}})
	_ = isKind(t, err, ErrBadReset)
	_, err = a.PlanReset(t.Context(), ResetSpec{App: c.ns + "nobody"})
	_ = isKind(t, err, ErrUnknownApp)
}

// TestResetState: only directories of tasks are removed, and links are refused.
func TestResetState(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"in/0", "in/1", "other/7", "@global/table", "notes/old", "in/x"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l, err := openLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	ids, err := l.tasks()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, id := range ids {
		got = append(got, id.String())
		if err := l.remove(id); err != nil {
			t.Error(err)
		}
	}
	if want := "in/0 in/1 other/7"; strings.Join(got, " ") != want {
		t.Errorf("tasks %v, want %s", got, want)
	}
	for name, want := range map[string]bool{"in/x": true, "in/0": false, "other": false, "@global/table": true, "notes/old": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: there %v, want %v", name, err == nil, want)
		}
	}
	for _, link := range []string{"in/3", "linked"} {
		if err := os.Symlink(t.TempDir(), filepath.Join(dir, link)); err != nil {
			t.Skip(err)
		}
		if _, err := l.tasks(); !errors.Is(err, ErrStateDir) {
			t.Errorf("%s: a link passes: %v", link, err)
		}
		if err := os.Remove(filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(t.TempDir(), "app")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := openLocal(link); !errors.Is(err, ErrStateDir) {
		t.Errorf("a link to a state directory passes: %v", err)
	}
}

// TestGroupStatus: what the cluster tells of an application, running and stopped.
func TestGroupStatus(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const total = 100
	rigs, start := twoMembers(t, c, "shown", total)
	a := openAdmin(t, c)
	app := rigs[0].program.App
	st, err := a.Status(t.Context(), app, nil)
	if err != nil {
		t.Fatal(err)
	}
	if st.State != GroupEmpty || len(st.Tasks) != 4 || st.Lag != 0 || len(st.Members) != 0 || st.Tasks[0].Stores != 1 {
		t.Errorf("stopped: %+v", st)
	}
	c.feed("in", total, 60, 25)
	if st, err = a.Status(t.Context(), app, nil); err != nil || st.Lag != 60 {
		t.Errorf("behind: %+v, %v", st, err)
	}
	ps := start()
	until(t, "the members and their tasks", func() bool {
		st, err = a.Status(t.Context(), app, nil)
		return err == nil && st.State == GroupStable && len(st.Members) == 2 && st.Lag == 0 &&
			st.Members[0].Active == 2 && st.Members[1].Active == 2
	})
	if m := st.Members[0]; m.Instance != app+"-1-0" || m.TransactionalID != app+"-1-0" || m.Fingerprint == "" || m.Host == "" {
		t.Errorf("%+v", m)
	}
	for _, task := range st.Tasks {
		if task.Active == "" {
			t.Errorf("nobody runs %s", task.Name)
		}
	}
	ps[0].stop()
	ps[1].stop()
	_, err = a.Status(t.Context(), c.ns+"nobody", nil)
	_ = isKind(t, err, ErrUnknownApp)
}

func TestUnreachable(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := OpenAdmin(ctx, AdminSettings{Brokers: []string{"127.0.0.1:1"}, Timeout: 500 * time.Millisecond})
	_ = isKind(t, err, ErrUnreachable)
}

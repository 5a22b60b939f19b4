package processor_test

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

// errBad is what the operators of these tests fail with.
var errBad = errors.New("bad value")

// spoiler writes to stores, forwards, schedules and drops, and then fails at records whose value says how.
type spoiler struct {
	latest *state.KeyValueStore[string, string]
	lists  *state.KeyValueStore[string, []string]
	timers int
}

func (p *spoiler) Init(c *processor.Context[string, string]) (err error) {
	if p.latest, err = Latest.Open(c); err != nil {
		return err
	}
	p.lists, err = Lists.Open(c)
	return err
}

func (p *spoiler) Process(c *processor.Context[string, string], r processor.Record[string, string]) error {
	if err := p.latest.Set(r.Key, r.Value); err != nil {
		return err
	}
	list, _, _, err := p.lists.Take(r.Key)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		list[0] = r.Value // in place
	}
	if strings.HasPrefix(r.Value, "bad before") {
		return errBad
	}
	if err := p.lists.Give(r.Key, append(list, r.Value), r.Time.UnixMilli()); err != nil {
		return err
	}
	tick := func(time.Time) error { p.timers++; return nil }
	if _, err := c.Schedule(processor.StreamTime, time.Hour, tick); err != nil {
		return err
	}
	c.Drop(processor.DropLate)
	if err := c.Forward(r); err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(r.Value, "bad panic"):
		panic(fmt.Errorf("panicking: %w", errBad))
	case strings.HasPrefix(r.Value, "bad"):
		return errBad
	}
	return nil
}

// spoiled runs the spoiler over a limited topic: a value of more than 20 bytes cannot be decoded, one of more than 15
// cannot be encoded.
func spoiled(p *spoiler) func(*processor.Builder) {
	short := func(n int) serde.Serde[string] { return serde.WithLimit(serde.String, n) }
	in := processor.NewTopic("in", serde.String, short(20))
	out := processor.NewTopic("out", serde.String, short(15))
	return func(b *processor.Builder) {
		s := stream.From(b, in)
		stream.Count(stream.Group(s), Counts) // comes first, so that it has written by the time that the other fails
		stream.To(stream.Process(s, func() processor.Processor[string, string, string, string] { return p },
			Latest, Lists), out)
	}
}

var badValues = map[string]error{
	"bad":                                 processor.ErrProcess,
	"bad before give":                     processor.ErrProcess,
	"bad panic":                           processor.ErrPanic,
	"not encodable xx":                    processor.ErrProcess,
	"not decodable, as it is much too so": processor.ErrDecode,
}

func TestFailIsAnErrorThatSaysWhere(t *testing.T) {
	for value, kind := range badValues {
		task := newTask(t, build(t, spoiled(&spoiler{})), processor.TaskOptions{})
		enqueue(task, "in", rec(41, 1, "k", "good"), rec(42, 2, "k", value))
		n, _, err := task.Step(10, 0)
		if n != 1 || !errors.Is(err, kind) {
			t.Errorf("%q: %d records, %v", value, n, err)
			continue
		}
		if decode := errors.Is(kind, processor.ErrDecode); errors.Is(err, processor.ErrDecode) != decode ||
			errors.Is(err, processor.ErrProcess) == decode {
			t.Errorf("%q: %v is of two kinds", value, err)
		}
		if strings.HasPrefix(value, "bad") && !errors.Is(err, errBad) {
			t.Errorf("%q: the cause is lost: %v", value, err)
		}
		if strings.HasPrefix(value, "not") && !errors.Is(err, serde.ErrTooLarge) {
			t.Errorf("%q: the serde's error is lost: %v", value, err)
		}
		var e *processor.TaskError
		if !errors.As(err, &e) || e.Topic != "in" || e.Partition != 3 || e.Offset != 42 ||
			e.Task != (processor.TaskID{Sub: "in", Partition: 3}) {
			t.Fatalf("%q: %+v", value, e)
		}
		operator := "process-2 (processor/policy_test.go:"
		switch value {
		case "not encodable xx":
			operator = "sink out (processor/policy_test.go:"
		case "not decodable, as it is much too so":
			operator = "source in (processor/policy_test.go:"
		}
		for _, s := range []string{"task in/3: ", "record in[3]@42: ", operator, "or set Config.On"} {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%q: %v\ndoes not say %q", value, err, s)
			}
		}
	}
}

// snapshot is everything of a task that a record can change.
type snapshot struct {
	latest, lists map[string]string
	counts        map[string]string
	taken         string
	time          string
	late          int64
	timers        int
}

func look(t *testing.T, task *processor.Task, p *spoiler) snapshot {
	t.Helper()
	at, ok := task.StreamTime()
	s := snapshot{
		latest: rows(t, task, Latest), lists: rows(t, task, Lists), counts: rows(t, task, Counts),
		time: fmt.Sprint(at.UnixMilli(), ok), late: task.Dropped(processor.DropLate), timers: p.timers,
	}
	// What Take hands out comes from the object cache, if it is there.
	lists := openStore(t, task, Lists)
	list, _, _, err := lists.Take("k")
	if err != nil {
		t.Fatal(err)
	}
	s.taken = fmt.Sprint(list)
	return s
}

func (s snapshot) equal(o snapshot) bool {
	return maps.Equal(s.latest, o.latest) && maps.Equal(s.lists, o.lists) && maps.Equal(s.counts, o.counts) &&
		s.taken == o.taken && s.time == o.time && s.late == o.late && s.timers == o.timers
}

func rows[V any](t *testing.T, task *processor.Task, spec *state.KeyValueSpec[string, V]) map[string]string {
	t.Helper()
	m := make(map[string]string)
	for row, err := range openStore(t, task, spec).All() {
		if err != nil {
			t.Fatal(err)
		}
		m[row.Key] = fmt.Sprint(row.Value, row.Time.UnixMilli())
	}
	return m
}

// Whatever a record did until it failed, nothing of it remains; what was there before does, whether it is committed,
// and whether it is on disk, or not.
func TestNothingOfASkippedRecordRemains(t *testing.T) {
	for value := range badValues {
		for _, before := range []string{"nothing", "uncommitted", "committed", "flushed"} {
			t.Run(value+"/"+before, func(t *testing.T) {
				var skipped []*processor.TaskError
				p := &spoiler{}
				task := newTask(t, build(t, spoiled(p)), processor.TaskOptions{
					OnDecodeError: processor.Skip(), OnProcessError: processor.Skip(),
					OnSkipped: func(e *processor.TaskError) { skipped = append(skipped, e) },
				})
				if before != "nothing" {
					enqueue(task, "in", rec(0, 1, "k", "one"), rec(1, 2, "k", "two"))
					step(t, task, 0)
				}
				if before == "committed" || before == "flushed" {
					task.Boundary()
					task.Commit([]state.Position{{Next: 1}, {Next: 1}, {Next: 1}}, 1)
				}
				if before == "flushed" {
					f := task.Layers().Freeze()
					if err := f.Run(); err != nil {
						t.Fatal(err)
					}
					task.Layers().Done(f)
				}
				outputs(task)
				was := look(t, task, p)
				enqueue(task, "in", rec(2, 99_000_000, "k", value), rec(3, 99_000_000, "other", value))
				if n, _ := step(t, task, 0); n != 2 {
					t.Fatalf("%d records", n)
				}
				if now := look(t, task, p); !was.equal(now) {
					t.Errorf("before %+v\n after %+v", was, now)
				}
				want(t, "outputs", outputs(task), nil)
				if task.Dropped(processor.DropFailed) != 2 || len(skipped) != 2 || skipped[1].Offset != 3 {
					t.Errorf("%d failed, skipped %v", task.Dropped(processor.DropFailed), skipped)
				}
				enqueue(task, "in", rec(4, 3, "k", "three"))
				step(t, task, 0)
				want(t, "outputs", outputs(task), []string{"k=three@3"})
				wantList := "[three two three]3"
				if before == "nothing" {
					wantList = "[three]3"
				}
				if got := rows(t, task, Lists)["k"]; strings.ReplaceAll(got, " 3", "3") != wantList && got != wantList {
					t.Errorf("list %s, want %s", got, wantList)
				}
			})
		}
	}
}

func TestDeadLetterKeepsTheRecordAsItWas(t *testing.T) {
	task := newTask(t, build(t, spoiled(&spoiler{})), processor.TaskOptions{
		OnDecodeError: processor.DeadLetter("undecodable"), OnProcessError: processor.DeadLetter("unprocessable"),
	})
	var offset int64
	for value, kind := range badValues {
		r := rec(offset, 77, "k", value)
		r.Headers = []processor.Header{{Key: "trace", Value: []byte("1")}, {Key: "trace", Value: []byte("2")}}
		enqueue(task, "in", rec(offset, 1, "k", "good"), r)
		step(t, task, 0)
		out := task.Outputs()
		if len(out) != 2 {
			t.Fatalf("%q: %d outputs, want that of the good record and the dead letter", value, len(out))
		}
		d := out[1]
		topic, name := "unprocessable", "process"
		switch {
		case errors.Is(kind, processor.ErrDecode):
			topic, name = "undecodable", "decode"
		case errors.Is(kind, processor.ErrPanic):
			name = "panic"
		}
		if d.Topic != topic || string(d.Key) != "k" || string(d.Value) != value || d.TimeMillis != 77 || d.Partition >= 0 {
			t.Errorf("%q: %+v", value, d)
		}
		if len(d.Headers) != 8 || string(d.Headers[0].Value) != "1" || string(d.Headers[1].Value) != "2" {
			t.Fatalf("%q: headers %+v", value, d.Headers)
		}
		h := make(map[string]string)
		for _, x := range d.Headers {
			h[x.Key] = string(x.Value)
		}
		if h[processor.DeadLetterKind] != name || h[processor.DeadLetterTopic] != "in" ||
			h[processor.DeadLetterPartition] != "3" || h[processor.DeadLetterOffset] != fmt.Sprint(offset) ||
			!strings.Contains(h[processor.DeadLetterOperator], "processor/policy_test.go:") ||
			h[processor.DeadLetterMessage] == "" {
			t.Errorf("%q: headers %q", value, h)
		}
		if len(r.Headers) != 2 {
			t.Errorf("%q: the record's own headers changed", value)
		}
		offset++
	}
	if len(task.Boundary().Changes) != 3 {
		t.Error("dead letters left changes")
	}
}

// A record without key or value is one as a dead letter, too.
func TestDeadLetterKeepsAbsence(t *testing.T) {
	task := newTask(t, build(t, func(b *processor.Builder) {
		stream.FilterRecord(stream.From(b, P1), func(processor.Record[string, string]) bool { panic("always") })
	}), processor.TaskOptions{OnProcessError: processor.DeadLetter("dead")})
	enqueue(task, "p1", processor.RawRecord{Offset: 1, TimeMillis: 5})
	step(t, task, 0)
	if d := task.Outputs()[0]; d.Key != nil || d.Value != nil || len(d.Headers) != 6 {
		t.Fatalf("%+v", d)
	}
}

func TestDeadLetterMessageIsBounded(t *testing.T) {
	task := newTask(t, build(t, func(b *processor.Builder) {
		stream.Map(stream.From(b, P1), func(_, v string) string { panic(strings.Repeat(v, 10_000)) })
	}), processor.TaskOptions{OnProcessError: processor.DeadLetter("dead")})
	enqueue(task, "p1", rec(0, 0, "k", "long"))
	step(t, task, 0)
	for _, h := range task.Outputs()[0].Headers {
		if len(h.Value) > 5<<10 {
			t.Errorf("header %s has %d bytes", h.Key, len(h.Value))
		}
	}
}

// unreadable is a backend whose reads fail once it is told to.
type unreadable struct {
	*memory.Backend
	err error
}

func (u *unreadable) Get(id state.StoreID, key []byte) ([]byte, error) {
	if u.err != nil {
		return nil, u.err
	}
	return u.Backend.Get(id, key)
}

// A disk that cannot be read is not the record's fault, and would fail every record.
func TestBackendErrorIsFatalUnderAnyPolicy(t *testing.T) {
	boom := errors.New("input/output error")
	declare := map[string]func(b *processor.Builder){
		"returned": func(b *processor.Builder) { stream.Count(stream.Group(stream.From(b, P1)), Counts) },
		"kept by a processor": func(b *processor.Builder) {
			stream.Process(stream.From(b, P1), func() processor.Processor[string, string, string, string] {
				return &careless{}
			}, Latest)
		},
	}
	for name, declare := range declare {
		backend := &unreadable{Backend: memory.New()}
		task := newTaskOver(t, build(t, declare), backend, processor.TaskOptions{OnProcessError: processor.Skip()})
		backend.err = boom
		enqueue(task, "p1", rec(0, 1, "k", "v"))
		if n, _, err := task.Step(1, 0); n != 0 || !errors.Is(err, boom) {
			t.Errorf("%s: %d records, %v", name, n, err)
		}
		backend.err = nil
		if err := task.Abort(nil, "", 0); err != nil {
			t.Fatal(err)
		}
		enqueue(task, "p1", rec(0, 1, "k", "v"))
		if n, _, err := task.Step(1, 0); n != 1 || err != nil {
			t.Errorf("%s: after the disk is back: %d records, %v", name, n, err)
		}
	}
}

// careless drops the errors of its store.
type careless struct {
	latest *state.KeyValueStore[string, string]
}

func (p *careless) Init(c *processor.Context[string, string]) (err error) {
	p.latest, err = Latest.Open(c)
	return err
}

func (p *careless) Process(_ *processor.Context[string, string], r processor.Record[string, string]) error {
	_, _, _ = p.latest.Get(r.Key)
	return nil
}

func TestKeyedProcessorMustKeepTheKey(t *testing.T) {
	declare := func(b *processor.Builder) {
		s := stream.ProcessValues(stream.From(b, P1), func() processor.Processor[string, string, string, string] {
			return processor.ProcessorFunc[string, string, string, string](
				func(c *processor.Context[string, string], r processor.Record[string, string]) error {
					return c.Forward(processor.WithKey(r, strings.ToLower(r.Key)))
				})
		})
		table.To(stream.Count(stream.Group(s), Counts), Numbers)
	}
	task := newTask(t, build(t, declare), processor.TaskOptions{})
	enqueue(task, "p1", rec(0, 1, "same", "v"), rec(1, 1, "Other", "v"))
	if n, _, err := task.Step(2, 0); n != 1 || !errors.Is(err, processor.ErrKeyChanged) {
		t.Fatal(n, err)
	}
}

func TestPoliciesAreNamed(t *testing.T) {
	for want, p := range map[string]processor.ErrorPolicy{
		"fail": {}, "skip": processor.Skip(), "dead letter to dead": processor.DeadLetter("dead"),
	} {
		if p.String() != want {
			t.Errorf("%q, want %q", p, want)
		}
	}
	if processor.Fail() != (processor.ErrorPolicy{}) {
		t.Error("the zero policy is not Fail")
	}
}

package stream_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/state"
	"tailrace.dev/stream"
)

var errDown = errors.New("the service is down")

// service is the other side: it remembers who called.
type service struct {
	log []string // "id key=value"
	do  func(k, v string) (string, error)
}

func (s *service) call(_ context.Context, id, k, v string) (string, error) {
	s.log = append(s.log, fmt.Sprintf("%s %s=%s", id, k, v))
	if s.do != nil {
		return s.do(k, v)
	}
	return v + "!", nil
}

// calls returns the calls without their ids.
func (s *service) calls() []string {
	var out []string
	for _, l := range s.log {
		_, l, _ = strings.Cut(l, " ")
		out = append(out, l)
	}
	return out
}

// asyncDriver drives Words through the service into Out.
func asyncDriver(
	t *testing.T, svc *service, store *state.PendingSpec[string, string], o processor.CallOptions, opts ...processortest.Option,
) (*processortest.Driver, *processortest.InputTopic[string, string], *processortest.OutputTopic[string, string]) {
	t.Helper()
	d := processortest.New(t, build(func(b *processor.Builder) {
		stream.To(stream.Async(stream.From(b, Words), store, svc.call, o), Out)
	}), opts...)
	return d, processortest.Input(d, Words), processortest.Output(d, Out)
}

// pairs renders what was written since the last call.
func pairs(out *processortest.OutputTopic[string, string]) []string {
	got := []string{}
	for _, r := range out.Read() {
		v := r.Value
		if r.Tombstone {
			v = "<nil>"
		}
		got = append(got, r.Key+"="+v)
	}
	return got
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestAsyncKeepsTheOrderOfAKey(t *testing.T) {
	svc := &service{}
	d, in, out := asyncDriver(t, svc, Lookups, processor.CallOptions{}, processortest.CallManually())
	at := time.UnixMilli(77).UTC()
	in.PipeRecord(processor.Record[string, string]{
		Key: "a", Value: "1", Time: at, Headers: []processor.Header{{Key: "h", Value: []byte("x")}, {Key: "nil"}},
	})
	for _, r := range []string{"a2", "a3", "b1", "ab1"} {
		in.Pipe(r[:len(r)-1], r[len(r)-1:])
	}
	in.PipeTombstone("a")
	in.PipeTombstone("c") // nothing waits under its key
	in.Pipe("a", "4")
	if n := len(d.Calls()); n != 3 {
		t.Fatalf("%d calls for 3 keys: %v", n, d.Calls())
	}
	expect(t, "before any call", pairs(out), "c=<nil>")
	if err := d.MakeCall(1); err != nil { // b overtakes a
		t.Fatal(err)
	}
	if err := d.FailCall(0, errDown); err != nil {
		t.Fatal(err)
	}
	if err := d.MakeCall(0); err != nil {
		t.Fatal(err)
	}
	expect(t, "others overtake", pairs(out), "b=1!", "ab=1!")
	if len(d.Calls()) != 0 {
		t.Errorf("called again before its time: %v", d.Calls())
	}
	d.AdvanceWallClock(time.Second)
	if err := d.MakeCall(0); err != nil {
		t.Fatal(err)
	}
	r := out.Read()[0]
	if r.Key != "a" || r.Value != "1!" || !r.Time.Equal(at) || len(r.Headers) != 2 || string(r.Headers[0].Value) != "x" ||
		r.Headers[1].Value != nil {
		t.Errorf("the result is %+v", r)
	}
	for range 3 {
		d.MakeCalls()
	}
	expect(t, "then in order", pairs(out), "a=2!", "a=3!", "a=<nil>", "a=4!")
	expect(t, "calls", svc.calls(), "b=1", "ab=1", "a=1", "a=2", "a=3", "a=4")
	in.PipeRecord(noKey("x"))
	in.PipeRecord(noKey("y"))
	if len(d.Calls()) != 2 {
		t.Errorf("records without a key wait for each other: %v", d.Calls())
	}
	d.MakeCalls()
	for i, r := range out.Read() {
		if want := []string{"x!", "y!"}[i]; !r.NoKey || r.Value != want {
			t.Errorf("%+v", r)
		}
	}
}

func TestAsyncCallsAgainWithTheSameID(t *testing.T) {
	svc := &service{}
	d, in, out := asyncDriver(t, svc, Lookups, processor.CallOptions{},
		processortest.CommitManually(), processortest.CallManually())
	in.Pipe("a", "1")
	in.Pipe("b", "1")
	d.Crash()
	d.Commit()
	first := d.Calls()
	if err := d.MakeCall(0); err != nil {
		t.Fatal(err)
	}
	d.Crash() // its result was not committed
	d.Commit()
	if got := d.Calls(); !reflect.DeepEqual(got, first) {
		t.Errorf("after the crash %v, before %v", got, first)
	}
	if err := d.MakeCall(0); err != nil {
		t.Fatal(err)
	}
	if err := d.FailCall(0, errDown); err != nil {
		t.Fatal(err)
	}
	d.Commit()
	d.Crash()
	d.AdvanceWallClock(time.Minute) // what was left of the wait was kept
	d.Commit()
	if got := d.Calls(); len(got) != 1 || got[0] != first[1] {
		t.Errorf("retried as %v, want %v", got, first[1])
	}
	d.MakeCalls()
	d.Commit()
	expect(t, "results", pairs(out), "a=1!", "b=1!")
	if svc.log[0] != svc.log[1] {
		t.Errorf("the second call differs: %q", svc.log)
	}
	if first[0].ID == first[1].ID {
		t.Errorf("one id for two records: %q", first)
	}
}

func TestAsyncGivesUp(t *testing.T) {
	dead := processor.CallOptions{Attempts: 3, FirstBackoff: time.Millisecond,
		OnFailure: processor.Some(processor.DeadLetter("own"))}
	plain := processor.CallOptions{Attempts: 3, FirstBackoff: time.Millisecond}
	cases := map[string]struct {
		app     processor.ErrorPolicy
		o       processor.CallOptions
		failure error
		calls   int
		letter  string
		fails   bool
	}{
		"skip":              {processor.Skip(), plain, errDown, 3, "", false},
		"skip at once":      {processor.Skip(), plain, processor.Permanent(errDown), 1, "", false},
		"dead letter":       {processor.DeadLetter("dead"), plain, errDown, 3, "dead", false},
		"own dead letter":   {processor.Fail(), dead, errDown, 3, "own", false},
		"fail":              {processor.Fail(), plain, errDown, 3, "", true},
		"a permanent error": {processor.Fail(), plain, fmt.Errorf("x: %w", processor.Permanent(errDown)), 1, "", true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			svc := &service{}
			svc.do = func(_, v string) (string, error) {
				if v == "bad" {
					return "", c.failure
				}
				return v, nil
			}
			d, in, out := asyncDriver(t, svc, Lookups, c.o,
				processortest.OnErrors(processor.Fail(), c.app), processortest.CallManually())
			in.PipeRecord(processor.Record[string, string]{
				Key: "k", Value: "bad", Time: d.Now(), Headers: []processor.Header{{Key: "h", Value: []byte("x")}},
			})
			in.Pipe("k", "good")
			var err error
			for range c.calls {
				d.AdvanceWallClock(time.Minute)
				if err = d.MakeCall(0); err != nil {
					break
				}
			}
			if c.fails {
				var te *processor.TaskError
				if !errors.Is(err, processor.ErrCall) || !errors.Is(err, errDown) || !errors.As(err, &te) ||
					te.Topic != "words" || te.Offset != 0 {
					t.Fatalf("ended with %v", err)
				}
				d.Crash()
				if len(d.Calls()) != 1 {
					t.Errorf("after the restart %v", d.Calls())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			d.MakeCalls()
			expect(t, "what waited behind it", pairs(out), "k=good")
			if d.Dropped(processor.DropFailed) != 1 || !errors.Is(d.Skipped()[0], processor.ErrCall) {
				t.Errorf("dropped %d, skipped %v", d.Dropped(processor.DropFailed), d.Skipped())
			}
			if c.letter == "" {
				return
			}
			letters := d.Raw(c.letter)
			if len(letters) != 1 || string(letters[0].Key) != "k" || string(letters[0].Value) != "bad" {
				t.Fatalf("letters %+v", letters)
			}
			headers := map[string]string{}
			for _, h := range letters[0].Headers {
				headers[h.Key] = string(h.Value)
			}
			if headers["h"] != "x" || headers[processor.DeadLetterKind] != "call" ||
				headers[processor.DeadLetterTopic] != "words" || headers[processor.DeadLetterOffset] != "0" ||
				!strings.Contains(headers[processor.DeadLetterMessage], "down") {
				t.Errorf("headers %v", headers)
			}
		})
	}
}

func TestAsyncPanicIsAnError(t *testing.T) {
	svc := &service{do: func(string, string) (string, error) { panic("boom") }}
	d, in, _ := asyncDriver(t, svc, Lookups, processor.CallOptions{Attempts: 1},
		processortest.OnErrors(processor.Fail(), processor.Skip()))
	in.Pipe("k", "v")
	if s := d.Skipped(); len(s) != 1 || !errors.Is(s[0], processor.ErrPanic) || !errors.Is(s[0], processor.ErrCall) {
		t.Errorf("%v", s)
	}
}

func TestAsyncBackoff(t *testing.T) {
	svc := &service{do: func(string, string) (string, error) { return "", errDown }}
	waits := func(o processor.CallOptions) []time.Duration {
		o.Attempts = -1
		d, in, _ := asyncDriver(t, svc, Lookups, o)
		in.Pipe("k", "v")
		var ds []time.Duration
		for last := d.Now(); len(ds) < 5; {
			n := len(svc.log)
			d.AdvanceWallClock(100 * time.Millisecond)
			if len(svc.log) > n {
				ds = append(ds, d.Now().Sub(last))
				last = d.Now()
			}
		}
		return ds
	}
	for i, got := range waits(processor.CallOptions{MaxBackoff: 4 * time.Second}) {
		want := []time.Duration{1, 2, 4, 4, 4}[i] * time.Second
		if got < want*8/10 || got > want+100*time.Millisecond {
			t.Errorf("wait %d is %v, want %v less up to a fifth", i, got, want)
		}
	}
	own := processor.CallOptions{Backoff: func(failed int, err error) time.Duration {
		if !errors.Is(err, errDown) {
			t.Errorf("asked about %v", err)
		}
		return time.Duration(failed) * 500 * time.Millisecond
	}}
	for i, got := range waits(own) {
		if want := time.Duration(i+1) * 500 * time.Millisecond; got != want {
			t.Errorf("own wait %d is %v, want %v", i, got, want)
		}
	}
}

func TestAsyncIsBounded(t *testing.T) {
	svc := &service{}
	d, in, out := asyncDriver(t, svc, Lookups.WithLimit(2), processor.CallOptions{}, processortest.CallManually())
	for i := range 6 {
		in.Pipe("k"+strconv.Itoa(i), "v")
	}
	for range 3 {
		if n := len(d.Calls()); n != 2 {
			t.Fatalf("%d calls are waited for, want 2: %v", n, d.Calls())
		}
		d.Crash() // what is queued is read again
		d.MakeCalls()
	}
	expect(t, "results", pairs(out), "k0=v!", "k1=v!", "k2=v!", "k3=v!", "k4=v!", "k5=v!")
	if len(svc.log) != 6 {
		t.Errorf("%d calls", len(svc.log))
	}
}

// Behind the first operator is one that takes only one record: results wait for it.
func TestAsyncChain(t *testing.T) {
	one, two := &service{}, &service{}
	d := processortest.New(t, build(func(b *processor.Builder) {
		first := stream.Async(stream.From(b, Words), Lookups.WithLimit(3), one.call, processor.CallOptions{})
		stream.To(stream.Async(first, Held.WithLimit(1), two.call, processor.CallOptions{}), Out)
	}), processortest.CallManually())
	in, out := processortest.Input(d, Words), processortest.Output(d, Out)
	for i := range 5 {
		in.Pipe("k"+strconv.Itoa(i), "v")
	}
	in.PipeTombstone("k4") // its turn comes while what comes after is full
	for range 20 {
		calls := map[string]int{}
		for _, c := range d.Calls() {
			calls[c.Operator]++
		}
		if calls["held"] > 1 || calls["lookups"] > 3 {
			t.Fatalf("too many wait: %v", calls)
		}
		d.MakeCalls()
	}
	expect(t, "results", pairs(out), "k0=v!!", "k1=v!!", "k2=v!!", "k3=v!!", "k4=v!!", "k4=<nil>")
	if n := len(slices.Concat(one.log, two.log)); n != 10 {
		t.Errorf("%d calls", n)
	}
}

// A result that what comes after cannot take is the record's failure, and no one else's.
func TestAsyncResultThatFails(t *testing.T) {
	svc := &service{}
	d := processortest.New(t, build(func(b *processor.Builder) {
		results := stream.Async(stream.From(b, Words), Lookups, svc.call, processor.CallOptions{})
		stream.To(stream.Map(results, func(_, v string) string {
			if v == "bad!" {
				panic("boom")
			}
			return v
		}), Out)
	}), processortest.OnErrors(processor.Fail(), processor.DeadLetter("dead")))
	in, out := processortest.Input(d, Words), processortest.Output(d, Out)
	for _, v := range []string{"1", "bad", "2"} {
		in.Pipe("k", v)
	}
	expect(t, "results", pairs(out), "k=1!", "k=2!")
	if dead := d.Raw("dead"); len(dead) != 1 || string(dead[0].Value) != "bad" {
		t.Errorf("dead letters %+v", dead)
	}
	if s := d.Skipped(); len(s) != 1 || s[0].Offset != 1 || !strings.Contains(s[0].Operator, "map") {
		t.Errorf("skipped %v", s)
	}
}

func TestAsyncMistakes(t *testing.T) {
	svc := &service{}
	_, err := processor.Build(func(b *processor.Builder) {
		words := stream.From(b, Words)
		stream.Async[string, string, string](words, nil, nil, processor.CallOptions{})
		stream.Async(words, Lookups.WithLimit(0), svc.call, processor.CallOptions{})
		stream.Async(words, Held, svc.call, processor.CallOptions{
			Timeout: -1, Concurrency: -1, FirstBackoff: time.Hour, MaxBackoff: time.Minute,
			OnFailure: processor.Some(processor.DeadLetter("?")),
		})
		stream.Delay(words, Held, -1)
		stream.Gateway(words, Mails, nil, nil, nil, processor.CallOptions{})
	})
	for _, want := range []string{
		"async: the function is nil", "async: the store is nil", "a limit of 0 records", "Timeout is negative",
		"Concurrency is negative", "MaxBackoff (1m0s) is shorter", "dead letter topic name", "delay is negative",
		`store "held" is already written`, "gateway: the function is nil", "store of effects is nil",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}

// A random history of records, commits, calls, failures and crashes ends in the same results of each key.
func TestAsyncWhateverHappens(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		ids := map[string]string{} // by key=value
		last := map[string]int{}
		svc := &service{}
		svc.do = func(k, v string) (string, error) {
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(err)
			}
			if n < last[k] {
				t.Fatalf("seed %d: %s=%d is called after %d", seed, k, n, last[k])
			}
			last[k] = n
			id, call, _ := strings.Cut(svc.log[len(svc.log)-1], " ")
			if before, ok := ids[call]; ok && before != id {
				t.Fatalf("seed %d: %s is called as %s and as %s", seed, call, before, id)
			}
			ids[call] = id
			return v + "!", nil
		}
		opts := []processortest.Option{processortest.CallManually()}
		if seed%2 == 0 {
			opts = append(opts, processortest.CommitManually())
		}
		d, in, out := asyncDriver(t, svc, Lookups.WithLimit(1+rnd.IntN(8)), processor.CallOptions{Attempts: -1}, opts...)
		want := map[string][]string{}
		for n := range 80 {
			k := "k" + strconv.Itoa(rnd.IntN(4))
			switch op := rnd.IntN(12); {
			case op < 5:
				in.Pipe(k, strconv.Itoa(n))
				want[k] = append(want[k], strconv.Itoa(n)+"!")
			case op == 5:
				in.PipeTombstone(k)
				want[k] = append(want[k], "<nil>")
			case op == 6:
				d.Commit()
			case op == 7:
				d.Crash()
			case op == 8:
				d.AdvanceWallClock(time.Duration(rnd.IntN(4)) * time.Second)
			case len(d.Calls()) == 0:
			case op == 9:
				if err := d.FailCall(rnd.IntN(len(d.Calls())), errDown); err != nil {
					t.Fatal(err)
				}
			default:
				if err := d.MakeCall(rnd.IntN(len(d.Calls()))); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 100 {
			d.AdvanceWallClock(time.Minute)
			d.Commit()
			d.MakeCalls()
		}
		d.Commit()
		got := map[string][]string{}
		for _, p := range pairs(out) {
			k, v, _ := strings.Cut(p, "=")
			got[k] = append(got[k], v)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: got %v\nwant %v", seed, got, want)
		}
		seen := map[string]bool{}
		for call, id := range ids {
			if seen[id] {
				t.Fatalf("seed %d: id %s of %s is another record's too", seed, id, call)
			}
			seen[id] = true
		}
		if len(d.Calls()) > 0 {
			t.Fatalf("seed %d: left over %v", seed, d.Calls())
		}
	}
}

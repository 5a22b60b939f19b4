package stream_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/processor/processortest"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
	"tailrace.dev/table"
)

var (
	ttlVisits = processor.NewTopic("ttl-visits", serde.String, serde.String)
	ttlOut    = processor.NewTopic("ttl-counts", serde.String, serde.Int64)
	ttlTotal  = processor.NewTopic("ttl-totals", serde.String, serde.Int64)
	ttlLast   = processor.NewTopic("ttl-last", serde.String, serde.String)
	ttlByPage = processor.NewRepartition("ttl-by-initial", serde.String, serde.Int64)
	ttlCounts = state.KeyValue("ttl-counts", serde.String, serde.Int64).WithTTL(10 * time.Second)
	ttlTotals = state.KeyValue("ttl-totals", serde.String, serde.Int64)
	ttlLasts  = state.KeyValue("ttl-last", serde.String, serde.String).WithTTL(20 * time.Second)
)

var errBadVisit = errors.New("bad visit")

// ttlTopology counts visits of pages and sums the counts by their first letter; it also keeps the last visit of each.
func ttlTopology(t testing.TB) *processor.Topology {
	t.Helper()
	topology, err := processor.Build(func(b *processor.Builder) {
		visits := stream.From(b, ttlVisits)
		counts := stream.Count(stream.Group(visits), ttlCounts)
		table.To(counts, ttlOut)
		initials := table.GroupBy(counts, ttlByPage, func(page string, n int64) (string, int64, bool) { return page[:1], n, true })
		table.To(table.Aggregate(initials, ttlTotals,
			func(sum int64, _ string, n int64) int64 { return sum + n },
			func(sum int64, _ string, n int64) int64 { return sum - n }), ttlTotal)
		table.To(stream.ToTable(visits, ttlLasts), ttlLast)
		stream.To(stream.Process(visits,
			func() processor.Processor[string, string, string, string] {
				return processor.ProcessorFunc[string, string, string, string](
					func(_ *processor.Context[string, string], r processor.Record[string, string]) error {
						if r.Value == "bad" {
							return errBadVisit
						}
						return nil
					})
			}), processor.NewTopic("ttl-nothing", serde.String, serde.String))
	})
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

var ttlStart = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

func TestCountExpires(t *testing.T) {
	d := processortest.New(t, ttlTopology(t))
	in := processortest.Input(d, ttlVisits)
	counts := processortest.Output(d, ttlOut)
	read := func() string {
		var out []string
		for _, r := range counts.Read() {
			v := fmt.Sprint(r.Value)
			if r.Tombstone {
				v = "gone"
			}
			out = append(out, fmt.Sprintf("%s=%s@%d", r.Key, v, r.Time.Sub(ttlStart)/time.Second))
		}
		return strings.Join(out, " ")
	}
	at := func(s int) time.Time { return ttlStart.Add(time.Duration(s) * time.Second) }
	for _, c := range []struct {
		page string
		at   int
		want string
	}{
		{"tea", 0, "tea=1@0"},
		{"rye", 1, "rye=1@1"},
		{"tea", 5, "tea=2@5"},
		{"oat", 11, "rye=gone@11 oat=1@11"},
		{"oat", 3, "oat=2@11"},
		{"tea", 15, "tea=gone@15 tea=1@15"}, // it starts afresh
		{"rye", 2, "rye=1@2"},               // it comes too late to stay
		{"oat", 16, "rye=gone@12 oat=3@16"},
		{"fig", 99, "oat=gone@26 tea=gone@25 fig=1@99"},
	} {
		in.PipeAt(c.page, "v", at(c.at))
		if got := read(); got != c.want {
			t.Errorf("%s at %d: %s, want %s", c.page, c.at, got, c.want)
		}
		d.Crash()
	}
	totals := processortest.Map(processortest.Output(d, ttlTotal))
	if totals["f"] != 1 || totals["t"] != 0 || totals["o"] != 0 || totals["r"] != 0 {
		t.Errorf("totals %v", totals)
	}
	n := 0
	for _, err := range processortest.Store(d, ttlCounts).All() {
		if n++; err != nil {
			t.Fatal(err)
		}
	}
	if n != 1 {
		t.Errorf("%d rows", n)
	}
}

// TestCountOfExpiredRow counts a page whose row has expired, and whose turn to be removed has not come.
func TestCountOfExpiredRow(t *testing.T) {
	d := processortest.New(t, ttlTopology(t))
	in := processortest.Input(d, ttlVisits)
	const pages = 3 * state.SweepLimit
	for i := range pages {
		in.PipeAt(fmt.Sprintf("a%02d", i), "v", ttlStart.Add(time.Duration(i)*time.Millisecond))
	}
	counts := processortest.Output(d, ttlOut)
	counts.Read()
	last := fmt.Sprintf("a%02d", pages-1)
	in.PipeAt(last, "v", ttlStart.Add(time.Minute))
	got := counts.Read()
	if n := len(got); n != state.SweepLimit+2 || got[n-2].Key != last || !got[n-2].Tombstone || got[n-1].Value != 1 {
		t.Errorf("outputs %v", got)
	}
	in.PipeAt(last, "v", ttlStart.Add(time.Minute))
	in.PipeAt(last, "v", ttlStart.Add(time.Minute))
	if totals := processortest.Map(processortest.Output(d, ttlTotal)); totals["a"] != 3 {
		t.Errorf("totals %v", totals)
	}
}

type visit struct {
	page, value string
	at          time.Time
}

func randomVisits(rng *rand.Rand, n int, bad bool) []visit {
	visits := make([]visit, n)
	now := ttlStart
	for i := range visits {
		switch rng.IntN(20) {
		case 0:
			now = now.Add(time.Duration(rng.IntN(40)) * time.Second)
		default:
			now = now.Add(time.Duration(rng.IntN(700)) * time.Millisecond)
		}
		visits[i] = visit{fmt.Sprintf("%c%d", 'a'+rng.IntN(3), rng.IntN(20)), "good", now}
		if rng.IntN(8) == 0 {
			visits[i].at = now.Add(-time.Duration(rng.IntN(15)) * time.Second)
		}
		if bad && rng.IntN(5) == 0 {
			visits[i].value = "bad"
		}
	}
	return visits
}

// ttlOutputs returns everything that a driver wrote.
func ttlOutputs(d *processortest.Driver) []string {
	var all []string
	for _, r := range processortest.Output(d, ttlOut).Read() {
		all = append(all, fmt.Sprint("count ", r.Key, r.Value, r.Tombstone, r.Time.UnixMilli()))
	}
	for _, r := range processortest.Output(d, ttlTotal).Read() {
		all = append(all, fmt.Sprint("total ", r.Key, r.Value, r.Tombstone, r.Time.UnixMilli()))
	}
	for _, r := range processortest.Output(d, ttlLast).Read() {
		all = append(all, fmt.Sprint("last ", r.Key, r.Value, r.Tombstone, r.Time.UnixMilli()))
	}
	return all
}

// TestExpiryIsTheSameAtEachReplay runs the same records with commits after each and now and then, with crashes in
// between, and with failing records that a policy leaves out, and finds the same outputs in the same order.
func TestExpiryIsTheSameAtEachReplay(t *testing.T) {
	for seed := range uint64(5) {
		rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // reproducible
		visits := randomVisits(rng, 300, true)
		good := slices.DeleteFunc(slices.Clone(visits), func(v visit) bool { return v.value == "bad" })

		plain := processortest.New(t, ttlTopology(t))
		for _, v := range good {
			processortest.Input(plain, ttlVisits).PipeAt(v.page, v.value, v.at)
		}
		want := ttlOutputs(plain)
		if !slices.ContainsFunc(want, func(s string) bool { return strings.Contains(s, "true") }) {
			t.Fatal("nothing expired")
		}

		crashing := processortest.New(t, ttlTopology(t), processortest.CommitManually())
		for _, v := range good {
			processortest.Input(crashing, ttlVisits).PipeAt(v.page, v.value, v.at)
			switch rng.IntN(6) {
			case 0:
				crashing.Commit()
			case 1:
				crashing.Crash()
			}
		}
		crashing.Commit()
		if got := ttlOutputs(crashing); !slices.Equal(got, want) {
			t.Errorf("seed %d: other outputs with crashes", seed)
		}

		skipping := processortest.New(t, ttlTopology(t), processortest.OnErrors(processor.Fail(), processor.Skip()))
		for _, v := range visits {
			processortest.Input(skipping, ttlVisits).PipeAt(v.page, v.value, v.at)
		}
		if got := ttlOutputs(skipping); !slices.Equal(got, want) {
			t.Errorf("seed %d: other outputs where failing records are left out", seed)
		}

		// The totals are those of the counts that were not deleted.
		sums := make(map[string]int64)
		for page, n := range processortest.Map(processortest.Output(plain, ttlOut)) {
			sums[page[:1]] += n
		}
		for initial, n := range processortest.Map(processortest.Output(plain, ttlTotal)) {
			if sums[initial] != n {
				t.Errorf("seed %d: total of %s is %d, of the counts %d", seed, initial, n, sums[initial])
			}
		}
	}
}

// seenOnce passes on what it has not seen for a while.
type seenOnce struct {
	seen *state.KeyValueStore[string, int64]
}

var ttlSeen = state.KeyValue("ttl-seen", serde.String, serde.Int64).WithTTL(10 * time.Second)

func (p *seenOnce) Init(c *processor.Context[string, string]) (err error) {
	p.seen, err = ttlSeen.Open(c)
	return err
}

func (p *seenOnce) Process(c *processor.Context[string, string], r processor.Record[string, string]) error {
	_, seen, err := p.seen.Get(r.Key)
	if err != nil || seen {
		return err
	}
	return errors.Join(p.seen.Set(r.Key, 1), c.Forward(r))
}

func TestProcessorStoreExpires(t *testing.T) {
	topology, err := processor.Build(func(b *processor.Builder) {
		stream.To(stream.Process(stream.From(b, ttlVisits),
			func() processor.Processor[string, string, string, string] { return &seenOnce{} }, ttlSeen), ttlLast)
	})
	if err != nil {
		t.Fatal(err)
	}
	d := processortest.New(t, topology)
	in := processortest.Input(d, ttlVisits)
	var got []string
	for i, s := range []int{0, 4, 9, 10, 11, 19, 20, 60} {
		in.PipeAt("tea", fmt.Sprint(s), ttlStart.Add(time.Duration(s)*time.Second))
		if i%3 == 2 {
			d.Crash()
		}
	}
	for _, r := range processortest.Output(d, ttlLast).Read() {
		got = append(got, r.Value)
	}
	if want := []string{"0", "10", "20", "60"}; !slices.Equal(got, want) {
		t.Errorf("passed %v, want %v", got, want)
	}
}

func TestTTLMistakes(t *testing.T) {
	for name, declare := range map[string]func(b *processor.Builder){
		"global": func(b *processor.Builder) { table.Global(b, ttlVisits, ttlLasts) },
		"source": func(b *processor.Builder) { table.FromSource(b, ttlVisits, ttlLasts) },
	} {
		_, err := processor.Build(declare)
		if err == nil || !strings.Contains(err.Error(), "has a time to live, which") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// BenchmarkTaskStepTTL counts 500 keys, each written once in half a second of stream time: without a time to live, with
// one under which nothing expires, and with one under which each row expires before it is written again.
func BenchmarkTaskStepTTL(b *testing.B) {
	for _, c := range []struct {
		name string
		ttl  time.Duration
	}{{"none", 0}, {"hour", time.Hour}, {"400ms", 400 * time.Millisecond}} {
		spec := RawCounts
		if c.ttl > 0 {
			spec = RawCounts.WithTTL(c.ttl)
		}
		b.Run(c.name, func(b *testing.B) {
			f := newFeeder(b, func(b *processor.Builder) {
				table.To(stream.Count(stream.Group(stream.From(b, RawIn)), spec), RawOut)
			})
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				f.feedOn()
				n += feedBatch
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
		})
	}
}

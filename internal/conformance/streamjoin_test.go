package conformance

import (
	"math"
	"strconv"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/stream"
)

func init() {
	topologies["stream-stream-join"] = streamStreamJoin
}

// ms returns milliseconds as a duration, or the longest.
func ms(n int64) time.Duration {
	if n > math.MaxInt64/int64(time.Millisecond) {
		return math.MaxInt64
	}
	return time.Duration(n) * time.Millisecond
}

func streamStreamJoin(b *builder) {
	left := stream.From(b.Builder, b.topic("left"))
	right := left
	if !b.Self {
		right = stream.From(b.Builder, b.topic("right"))
	}
	if b.Repartition {
		same := func(r processor.Record[string, string]) processor.Record[string, string] { return r }
		// Below a left or outer join records without a key stay, on either side: they move its time.
		by := func(name string) *processor.Repartition[string, string] {
			r := b.repartition(name)
			if b.Kind != "inner" {
				r = r.WithNoKeys()
			}
			return r
		}
		left = stream.Repartition(stream.MapRecord(left, same), by("left-by-key"))
		right = stream.Repartition(stream.MapRecord(right, same), by("right-by-key"))
	}
	w := stream.JoinWindows{}.Before(ms(b.Before)).After(ms(b.After))
	if b.Grace != nil {
		w = w.Grace(ms(*b.Grace))
	}
	for i := range max(1, b.Times) {
		s := state.Join(b.named("join-"+strconv.Itoa(i)), serde.String, serde.String, serde.String, w.MinRetention())
		if i == 0 && b.Self && b.Optimize && !b.Repartition {
			// A record meets itself, so an outer join is none.
			left = stream.SelfJoinWindow(left, w, s, func(_, l, r string) string { return b.join(l, r) })
			continue
		}
		switch b.Kind {
		case "left":
			left = stream.LeftJoinWindow(left, right, w, s, func(_, l string, r processor.Opt[string]) string {
				return b.join(l, opt(r))
			})
		case "outer":
			left = stream.OuterJoinWindow(left, right, w, s, func(_ string, l, r processor.Opt[string]) string {
				return b.join(opt(l), opt(r))
			})
		default:
			left = stream.JoinWindow(left, right, w, s, func(_, l, r string) string { return b.join(l, r) })
		}
	}
	stream.To(left, b.topic("output"))
}

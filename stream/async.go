package stream

import (
	"context"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// Async makes a call to something outside for each record, such as a lookup at a service, and sends the result on under
// the record's key, with its time and headers.
//
// A record waits in the store, and its offset is committed with it; the call is made after that commit, in a goroutine
// of its own, and its result is processed, committed and the record removed in one later transaction. So a slow call
// holds up neither other keys nor commits, and each record leads to one result. The call itself may be made more than
// once: when it fails, and when the process or the task's owner ends before the result is committed. It is always made
// with the same id, which the other side should use as its idempotency key, and which no other record has.
//
// Records of one key leave in the order in which they came, with one call under way at a time: while one waits to be tried
// again, the later ones wait behind it. Different keys overtake each other. When as many records wait as the store
// takes, the task takes no more input that leads here.
//
// A call that fails is tried again as o says, and goes to o.OnFailure in the end. call must heed its context, which ends
// with the timeout and when the task leaves the process; the error that it returns then does not count. Key and value
// must not be changed. The result is not encoded, and shared by all that comes after.
//
// Tombstones take their turn and pass without a call. Records without a key keep no order. (Kafka Streams has no such
// operator.)
func Async[K, V, W any](
	s *Stream[K, V], store *state.PendingSpec[K, V],
	call func(ctx context.Context, id string, k K, v V) (W, error), o processor.CallOptions,
) *Stream[K, W] {
	given(s, "async", call != nil)
	return New(processor.CallWith(s.node, processor.Operator{Kind: "async"},
		processor.Calling[K, V, W]{Pending: store, Call: call, Options: o}))
}

// Gateway makes an effect on the world outside for each record, such as sending a mail, at most once for each id, as far
// as that can be had: the ids of effects that were made are kept in done, which a reset or a rebuild of the
// application leaves alone, so that they are not made again when input is processed again. Records go on, as they are,
// once their effect is known to be made.
//
// id names the effect by what the record says: the number of an order, the id of a mail. It must not depend on where or
// when the record is processed, nor on anything else that a replay would change, and the records of one id must be on one
// partition. An empty id is an error of the record.
//
// Between the effect and the commit of its id there is a moment in which the process may die: the effect is then made
// again, with the same id, and it is for the other side to find that it knows it. Without its help, no one can do better.
//
// With Config.SilentEffects no effect is made, and those that would be count as made: for processing old input whose
// effects another application has made.
//
// Order, waiting, failures and tombstones are as in Async. (Kafka Streams has no such operator.)
func Gateway[K, V any](
	s *Stream[K, V], store *state.PendingSpec[K, V], done *state.EffectsSpec, id func(k K, v V) string,
	effect func(ctx context.Context, id string, k K, v V) error, o processor.CallOptions,
) *Stream[K, V] {
	given(s, "gateway", id != nil)
	given(s, "gateway", effect != nil)
	if done == nil {
		s.node.Builder().Fail("gateway", "the store of effects is nil: pass the spec that declares it, as state.Effects "+
			"returns it")
	}
	return New(processor.CallWith(s.node, processor.Operator{Kind: "gateway"}, processor.Calling[K, V, V]{
		Pending: store, Effects: done, ID: id, Options: o,
		Pass: func(v V) V { return v },
		Call: func(ctx context.Context, id string, k K, v V) (V, error) { return v, effect(ctx, id, k, v) },
	}))
}

// Delay holds each record, tombstones included, until the wall clock is past the record's time by d: what is older passes
// at once, so that a replay does not wait. Records wait in the store, also over restarts, and leave when their time has
// come, those of one key in the order in which they came. When as many wait as the store takes, the task takes no more
// input that leads here: the limit should be above what comes in during d. (Kafka Streams has no such operator.)
func Delay[K, V any](s *Stream[K, V], store *state.PendingSpec[K, V], d time.Duration) *Stream[K, V] {
	return New(processor.CallWith(s.node, processor.Operator{Kind: "delay"},
		processor.Calling[K, V, V]{Pending: store, Delay: d, Pass: func(v V) V { return v }}))
}

package table

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"tailrace.dev/processor"
	"tailrace.dev/serde"
	"tailrace.dev/state"
)

// encoding is a way to write what tables keep and send, closed over its type.
type encoding struct {
	name string
	rows []encoded
	// again decodes and encodes once more.
	again func(src []byte) ([]byte, error)
}

type encoded struct{ what, want string }

func of[T any](
	t testing.TB, name string, enc func([]byte, T) ([]byte, error), dec func([]byte) (T, error),
	rows map[string]T, want []encoded,
) encoding {
	t.Helper()
	for _, w := range want {
		b, err := enc([]byte{}, rows[w.what])
		if err != nil {
			t.Fatalf("%s, %s: %v", name, w.what, err)
		}
		if got := hex.EncodeToString(b); got != w.want {
			t.Errorf("%s, %s: %s; want %s", name, w.what, got, w.want)
		}
	}
	return encoding{name, want, func(src []byte) ([]byte, error) {
		v, err := dec(src)
		if err != nil {
			return nil, err
		}
		return enc([]byte{}, v)
	}}
}

func encodings(t testing.TB) []encoding {
	t.Helper()
	s, some, none := serde.String, processor.Some[string], processor.None[string]()
	subscriptions, answers := subscriptionSerde[string]{s}, answerSerde[string]{s}
	changes, opts, waiting := changeSerde[string]{s}, optSerde[string]{s}, waitingSerde[string]{s}
	return []encoding{
		of(t, "subscription", subscriptions.Append, subscriptions.Decode, map[string]subscription[string]{
			"wants a row": {"k", wantRow}, "wants an answer": {"k", wantAnswer}, "leaves": {"k", unsubscribe},
			"leaves and is told": {"", unsubscribeOK},
		}, []encoded{
			{"wants a row", "016b"}, {"wants an answer", "026b"}, {"leaves", "036b"}, {"leaves and is told", "04"},
		}),
		of(t, "answer", answers.Append, answers.Decode, map[string]answer[string]{
			"a row": {foreign: []byte("fk"), row: some("v")}, "no row": {foreign: []byte("fk")},
			"gone": {foreign: []byte{}, gone: true}, "an empty row": {foreign: []byte("f"), row: some("")},
		}, []encoded{
			{"a row", "0200000002666b76"}, {"no row", "0000000002666b"}, {"gone", "0100000000"},
			{"an empty row", "020000000166"},
		}),
		of(t, "change", changes.Append, changes.Decode, map[string]Change[string]{
			"both": {Old: some("old"), New: some("new")}, "old": {Old: some("old")}, "new": {New: some("new")}, "none": {},
			"empty": {Old: some(""), New: some("")},
		}, []encoded{
			{"both", "03000000036f6c646e6577"}, {"old", "01000000036f6c64"}, {"new", "026e6577"}, {"none", "00"},
			{"empty", "0300000000"},
		}),
		of(t, "opt", opts.Append, opts.Decode, map[string]processor.Opt[string]{"some": some("v"), "none": none},
			[]encoded{{"some", "0176"}, {"none", "00"}}),
		of(t, "waiting", waiting.append, waiting.decode, map[string]waitingRow[string]{
			"plain": {prior: some("p"), now: some("n")},
			"with headers": {now: some("n"), headers: []processor.Header{
				{Key: "h", Value: []byte("x")}, {Key: "", Value: []byte{}}, {Key: "nil"},
			}},
			"a deletion": {prior: some("p")},
		}, []encoded{
			{"plain", "000000070300000001706e"}, {"with headers", "00000002026e01680278000103" + "6e696c00"},
			{"a deletion", "00000006010000000170"},
		}),
	}
}

// TestEncodings fixes the bytes that are in internal topics and changelogs.
func TestEncodings(t *testing.T) {
	for _, e := range encodings(t) {
		for _, r := range e.rows {
			src, err := hex.DecodeString(r.want)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := e.again(bytes.Clone(src)); err != nil || !bytes.Equal(got, src) {
				t.Errorf("%s, %s: %x becomes %x, %v", e.name, r.what, src, got, err)
			}
			for n := range src {
				if got, err := e.again(bytes.Clone(src[:n])); err == nil && !bytes.Equal(got, src[:n]) {
					t.Errorf("%s, %s: the first %d bytes of %x become %x", e.name, r.what, n, src, got)
				}
			}
		}
	}
}

// FuzzEncodings decodes what nobody has written: it must be told, or be the encoding of something.
func FuzzEncodings(f *testing.F) {
	all := encodings(f)
	for i, e := range all {
		for _, r := range e.rows {
			src, err := hex.DecodeString(r.want)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(i), src)
		}
	}
	f.Fuzz(func(t *testing.T, which byte, src []byte) {
		e := all[int(which)%len(all)]
		got, err := e.again(bytes.Clone(src))
		var se *serde.Error
		switch {
		case err != nil && !errors.As(err, &se) && !errors.Is(err, state.ErrCorrupt):
			t.Errorf("%s: %v says neither what is wrong nor that it is corrupt", e.name, err)
		case err == nil && e.name != "waiting" && !bytes.Equal(got, src): // lengths of headers have several forms
			t.Errorf("%s: %x becomes %x", e.name, src, got)
		}
	})
}

package serde_test

import (
	"bytes"
	"cmp"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"tailrace.dev/serde"
)

// decodeAny decodes src and checks what holds for every serde and any bytes: an error is an Error with a position in
// src and a known cause, src is not written to, and a decoded value is encoded and decoded to itself.
func decodeAny[T any](t *testing.T, s serde.Serde[T], src []byte) (again []byte, ok bool) {
	t.Helper()
	before := bytes.Clone(src)
	v, err := s.Decode(src)
	if !bytes.Equal(src, before) {
		t.Fatalf("Decode wrote to src: %x, was %x", src, before)
	}
	if err != nil {
		var e *serde.Error
		if !errors.As(err, &e) || e.Offset < 0 || e.Offset > len(src) || e.Type == "" {
			t.Fatalf("Decode(%x): %#v is not an Error with a position", src, err)
		}
		causes := 0
		for _, c := range []error{serde.ErrShort, serde.ErrTrailing, serde.ErrInvalid, serde.ErrTooLarge} {
			if errors.Is(err, c) {
				causes++
			}
		}
		if causes != 1 {
			t.Fatalf("Decode(%x): %v has %d causes, want 1", src, err, causes)
		}
		return nil, false
	}
	again, err = s.Append([]byte("dst"), v)
	if err != nil || !bytes.HasPrefix(again, []byte("dst")) {
		t.Fatalf("Append of the decoded %x: %x, %v", src, again, err)
	}
	again = again[3:]
	w, err := s.Decode(again)
	if err != nil {
		t.Fatalf("Decode(Append(Decode(%x))): %v", src, err)
	}
	last, err := serde.Encode(s, w)
	if err != nil || !bytes.Equal(last, again) {
		t.Fatalf("encoded %x, then %x, %v", again, last, err)
	}
	return again, true
}

// fuzzCanonical is for kinds in which each value has one encoding.
func fuzzCanonical[T any](f *testing.F, s serde.Serde[T], values ...T) {
	f.Helper()
	f.Add([]byte{})
	f.Add([]byte{0})
	f.Add([]byte{0, 0xff, 0, 1, 0})
	f.Add(bytes.Repeat([]byte{0xff}, 9))
	for _, v := range values {
		b, err := serde.Encode(s, v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(bytes.Clone(b), 0))
		if len(b) > 0 {
			f.Add(b[:len(b)-1])
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		if again, ok := decodeAny(t, s, src); ok && !bytes.Equal(again, src) {
			t.Fatalf("Append(Decode(%x)) = %x", src, again)
		}
	})
}

func FuzzString(f *testing.F)         { fuzzCanonical(f, serde.String, "", "a", "\xff\x00") }
func FuzzBytes(f *testing.F)          { fuzzCanonical(f, serde.Bytes, []byte("a")) }
func FuzzRaw(f *testing.F)            { fuzzCanonical(f, serde.Raw, []byte("a")) }
func FuzzNone(f *testing.F)           { fuzzCanonical(f, serde.None, struct{}{}) }
func FuzzInt8(f *testing.F)           { fuzzCanonical(f, serde.Int8, 0, -1) }
func FuzzInt16(f *testing.F)          { fuzzCanonical(f, serde.Int16, 0, -1) }
func FuzzInt32(f *testing.F)          { fuzzCanonical(f, serde.Int32, 0, -1) }
func FuzzInt64(f *testing.F)          { fuzzCanonical(f, serde.Int64, 0, -1) }
func FuzzUint8(f *testing.F)          { fuzzCanonical(f, serde.Uint8, 0, 255) }
func FuzzUint16(f *testing.F)         { fuzzCanonical(f, serde.Uint16, 0, 256) }
func FuzzUint32(f *testing.F)         { fuzzCanonical(f, serde.Uint32, 0, 1<<31) }
func FuzzUint64(f *testing.F)         { fuzzCanonical(f, serde.Uint64, 0, 1<<63) }
func FuzzFloat32(f *testing.F)        { fuzzCanonical(f, serde.Float32, 0, -1.5) }
func FuzzFloat64(f *testing.F)        { fuzzCanonical(f, serde.Float64, 0, -1.5) }
func FuzzBool(f *testing.F)           { fuzzCanonical(f, serde.Bool, false, true) }
func FuzzTime(f *testing.F)           { fuzzCanonical(f, serde.Time, time.Time{}, time.Unix(0, 0)) }
func FuzzDuration(f *testing.F)       { fuzzCanonical(f, serde.Duration, 0, -time.Hour) }
func FuzzOrderedInt8(f *testing.F)    { fuzzCanonical(f, serde.OrderedInt8, 0, -1) }
func FuzzOrderedInt16(f *testing.F)   { fuzzCanonical(f, serde.OrderedInt16, 0, -1) }
func FuzzOrderedInt32(f *testing.F)   { fuzzCanonical(f, serde.OrderedInt32, 0, -1) }
func FuzzOrderedInt64(f *testing.F)   { fuzzCanonical(f, serde.OrderedInt64, 0, -1) }
func FuzzOrderedFloat64(f *testing.F) { fuzzCanonical(f, serde.OrderedFloat64, 0, -1.5) }
func FuzzOrderedTime(f *testing.F)    { fuzzCanonical(f, serde.OrderedTime, time.Time{}, time.Unix(0, 0)) }
func FuzzConvert(f *testing.F)        { fuzzCanonical(f, userIDs, 0, 1) }
func FuzzWithLimit(f *testing.F)      { fuzzCanonical(f, serde.WithLimit(serde.String, 4), "", "abcd") }
func FuzzWithID(f *testing.F)         { fuzzCanonical(f, serde.WithID(serde.Bool, "x"), true) }

func FuzzPair(f *testing.F) {
	fuzzCanonical(f, serde.Tuple2(serde.String, serde.Int16), pair("", int16(0)), pair("a\x00\x01", int16(1)))
}

func FuzzPairFixed(f *testing.F) {
	fuzzCanonical(f, serde.Tuple2(serde.Int16, serde.String), pair(int16(0), ""), pair(int16(1), "a\x00"))
}

func FuzzPairNested(f *testing.F) {
	inner := serde.Tuple2(serde.String, serde.Bool)
	fuzzCanonical(f, serde.Tuple2(inner, inner), pair(pair("a\x00", true), pair("", false)))
}

func FuzzUUID(f *testing.F) {
	f.Add([]byte(someUUID.String()))
	f.Add([]byte(strings.ToUpper(someUUID.String())))
	f.Add([]byte("urn:uuid:" + someUUID.String()))
	f.Add([]byte(strings.Replace(someUUID.String(), "-", "0", 1)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, src []byte) {
		if again, ok := decodeAny(t, serde.UUID, src); ok && !strings.EqualFold(string(again), string(src)) {
			t.Fatalf("Append(Decode(%q)) = %q", src, again)
		}
	})
}

func FuzzJSON(f *testing.F) {
	for _, seed := range []string{
		``, `{`, `{}`, `{} `, `{}{}`, "{}\n\n1", `null`, `[]`, `{"name":"a","tags":{"b":1,"a":2}}`, `{"name":1}`,
		`{"name":x`, `["20C","x"]`,
		`{"tags":{"a":1.5}}`, `{"name":"\ud800<\u2028>"}`, "{\"name\":\"\xff\"}", `"x"`,
		`{"NAME":"a","name":"b"}`, `nul`, ` `,
		`[1,2,{"a":[true,null,1e3]}]`, `1e999`, `"`, `-`, `[[[[`, "\x00", `tru `,
	} {
		f.Add([]byte(seed))
	}
	docs, anys, temperatures := serde.JSON[*doc](), serde.JSON[any](), serde.JSON[[]celsius]()
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, again := range [][]byte{
			first(decodeAny(t, docs, src)), first(decodeAny(t, anys, src)), first(decodeAny(t, temperatures, src)),
		} {
			if bytes.HasSuffix(again, []byte("\n")) {
				t.Fatalf("%q ends with a newline", again)
			}
		}
	})
}

func first(b []byte, _ bool) []byte { return b }

// FuzzPairOrder checks on any two keys that bytes compare as the parts do, and that a prefix matches its keys alone.
func FuzzPairOrder(f *testing.F) {
	f.Add("", int64(0), "\x00", int64(-1))
	f.Add("a", int64(1), "a", int64(-1))
	f.Add("a\x00", int64(1), "a\x00\x01", int64(-1))
	f.Add("a\x00\xff", int64(1), "a\x00", int64(0))
	s := serde.Tuple2(serde.String, serde.OrderedInt64)
	f.Fuzz(func(t *testing.T, a string, m int64, b string, n int64) {
		x, errX := serde.Encode(s, pair(a, m))
		y, errY := serde.Encode(s, pair(b, n))
		prefix, errP := s.AppendPrefix(nil, a)
		if err := errors.Join(errX, errY, errP); err != nil {
			t.Fatal(err)
		}
		if want := cmp.Or(cmp.Compare(a, b), cmp.Compare(m, n)); bytes.Compare(x, y) != want {
			t.Fatalf("(%q, %d) = %x and (%q, %d) = %x compare as %d", a, m, x, b, n, y, -want)
		}
		if !bytes.HasPrefix(x, prefix) || bytes.HasPrefix(y, prefix) != (a == b) {
			t.Fatalf("the prefix %x of %q matches wrongly: %x, %x of %q", prefix, a, x, y, b)
		}
		if v, err := s.Decode(x); err != nil || !reflect.DeepEqual(v, pair(a, m)) {
			t.Fatalf("(%q, %d) came back as %v, %v", a, m, v, err)
		}
	})
}

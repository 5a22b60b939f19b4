package serde_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"tailrace.dev/serde"
)

var someUUID = uuid.MustParse("123e4567-e89b-12d3-a456-42665544aaff")

// golden checks that value and bytes, given in hexadecimal, encode and decode to each other.
func golden[T any](t *testing.T, name string, s serde.Serde[T], v T, want string) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Helper()
		b, err := s.Append([]byte("dst"), v)
		if err != nil {
			t.Fatalf("Append(%v): %v", v, err)
		}
		if got := hex.EncodeToString(b[3:]); string(b[:3]) != "dst" || got != want {
			t.Errorf("Append(%v) = %q + %s, want %s", v, b[:3], got, want)
		}
		src, err := hex.DecodeString(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Decode(src)
		if err != nil {
			t.Fatalf("Decode(%s): %v", want, err)
		}
		if !reflect.DeepEqual(got, v) {
			t.Errorf("Decode(%s) = %#v, want %#v", want, got, v)
		}
	})
}

func TestGolden(t *testing.T) {
	golden(t, "string", serde.String, "héllo", "68c3a96c6c6f")
	golden(t, "string empty", serde.String, "", "")
	golden(t, "string not UTF-8", serde.String, "a\xff\x00", "61ff00")
	golden(t, "bytes", serde.Bytes, []byte{0, 1, 0xff}, "0001ff")
	golden(t, "bytes empty", serde.Bytes, []byte{}, "")
	golden(t, "raw", serde.Raw, []byte{0, 1, 0xff}, "0001ff")
	golden(t, "raw empty", serde.Raw, []byte{}, "")
	golden(t, "none", serde.None, struct{}{}, "")

	golden(t, "int8", serde.Int8, -2, "fe")
	golden(t, "int16", serde.Int16, 258, "0102")
	golden(t, "int16 min", serde.Int16, math.MinInt16, "8000")
	golden(t, "int32", serde.Int32, 16909060, "01020304")
	golden(t, "int32 negative", serde.Int32, -1, "ffffffff")
	golden(t, "int64", serde.Int64, 72623859790382856, "0102030405060708")
	golden(t, "int64 negative", serde.Int64, -2, "fffffffffffffffe")
	golden(t, "uint8", serde.Uint8, 254, "fe")
	golden(t, "uint16", serde.Uint16, 65534, "fffe")
	golden(t, "uint32", serde.Uint32, 1, "00000001")
	golden(t, "uint64", serde.Uint64, math.MaxUint64, "ffffffffffffffff")
	golden(t, "float32", serde.Float32, 1.5, "3fc00000")
	golden(t, "float32 negative zero", serde.Float32, float32(math.Copysign(0, -1)), "80000000")
	golden(t, "float64", serde.Float64, -0.1, "bfb999999999999a")
	golden(t, "float64 infinity", serde.Float64, math.Inf(1), "7ff0000000000000")
	golden(t, "bool", serde.Bool, true, "01")
	golden(t, "bool false", serde.Bool, false, "00")

	golden(t, "ordered int8", serde.OrderedInt8, -128, "00")
	golden(t, "ordered int16", serde.OrderedInt16, -1, "7fff")
	golden(t, "ordered int32", serde.OrderedInt32, 0, "80000000")
	golden(t, "ordered int64", serde.OrderedInt64, 1, "8000000000000001")
	golden(t, "ordered float64", serde.OrderedFloat64, 1, "bff0000000000000")
	golden(t, "ordered float64 negative", serde.OrderedFloat64, -1, "400fffffffffffff")

	golden(t, "uuid", serde.UUID, someUUID, hex.EncodeToString([]byte(someUUID.String())))
	golden(t, "time", serde.Time, time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC), "0000019b7ca98c8e")
	golden(t, "time zero", serde.Time, time.Time{}, "ffffc77cedd32800")
	golden(t, "time min", serde.Time, time.UnixMilli(math.MinInt64).UTC(), "8000000000000000")
	golden(t, "time max", serde.Time, time.UnixMilli(math.MaxInt64).UTC(), "7fffffffffffffff")
	golden(t, "ordered time", serde.OrderedTime, time.UnixMilli(-1).UTC(), "7fffffffffffffff")
	golden(t, "duration", serde.Duration, 1500*time.Millisecond, "0000000059682f00")

	str := func(s string) string { return hex.EncodeToString([]byte(s)) }
	golden(t, "json", serde.JSON[doc](), doc{Name: "<&>", Tags: map[string]int{"b": 2, "a": 1}},
		str(`{"name":"<&>","tags":{"a":1,"b":2}}`))
	golden(t, "json null pointer", serde.JSON[*doc](), nil, str(`null`))
	golden(t, "json scalar", serde.JSON[int](), 7, str(`7`))
	golden(t, "json methods on the pointer", serde.JSON[celsius](), celsius{21}, str(`"21C"`))

	names := serde.Tuple2(serde.String, serde.Int16)
	golden(t, "pair", names, pair("ab", int16(1)), "6162"+"0001"+"0001")
	golden(t, "pair empty first", names, pair("", int16(1)), "0001"+"0001")
	golden(t, "pair escaped", names, pair("\x00a\x00\x00\xff", int16(-1)), "00ff6100ff00ffff"+"0001"+"ffff")
	golden(t, "pair fixed first", serde.Tuple2(serde.Int16, serde.String), pair(int16(0), "\x00"), "0000"+"00")
	golden(t, "pair nested", serde.Tuple2(serde.Bytes, serde.Tuple2(serde.String, serde.Bool)),
		pair([]byte("a"), pair("b", true)), "61"+"0001"+"62"+"0001"+"01")
	golden(t, "pair in first", serde.Tuple2(names, serde.None),
		pair(pair("a", int16(1)), struct{}{}), "6100ff01"+"00ff01"+"0001")
	golden(t, "convert", userIDs, userID(5), "0000000000000005")
	golden(t, "limit", serde.WithLimit(serde.String, 2), "ab", "6162")
	golden(t, "id", serde.WithID(serde.String, "x"), "ab", "6162")
}

type doc struct {
	Name string         `json:"name"`
	Tags map[string]int `json:"tags,omitempty"`
}

type celsius struct{ degrees int }

func (c *celsius) MarshalJSON() ([]byte, error) { return []byte(`"` + itoa(c.degrees) + `C"`), nil }
func (c *celsius) UnmarshalJSON(b []byte) error {
	n, ok := atoi(strings.TrimSuffix(strings.Trim(string(b), `"`), "C"))
	if !ok {
		return errNotCelsius
	}
	c.degrees = n
	return nil
}

var errNotCelsius = errors.New("not a temperature")

type userID int64

var (
	errNegative = errors.New("a user id is positive")
	userIDs     = serde.Convert(serde.Int64,
		func(n int64) (userID, error) {
			if n < 0 {
				return 0, errNegative
			}
			return userID(n), nil
		},
		func(id userID) (int64, error) {
			if id < 0 {
				return 0, errNegative
			}
			return int64(id), nil
		})
)

func pair[A, B any](a A, b B) serde.Pair[A, B] { return serde.Pair[A, B]{First: a, Second: b} }

// newTopic has the signature by which a topic takes its serdes: the assignments below must infer K and V.
func newTopic[K, V any](string, serde.Serde[K], serde.Serde[V]) (k K, v V) { return k, v }

func TestInference(t *testing.T) {
	var (
		s string
		i int64
		p serde.Pair[string, time.Time]
		d doc
	)
	s, i = newTopic("a", serde.String, serde.Int64)
	p, d = newTopic("b", serde.Tuple2(serde.String, serde.OrderedTime), serde.JSON[doc]())
	if s != "" || i != 0 || p.First != "" || d.Name != "" {
		t.Error("zero values expected")
	}
	var _ serde.Prefixer[string] = serde.Tuple2(serde.String, serde.OrderedTime)
}

// bad checks that src is refused, with all of the error that a caller can look at.
func bad[T any](t *testing.T, s serde.Serde[T], src string, kind string, offset int, cause error) {
	t.Helper()
	v, err := s.Decode([]byte(src))
	var e *serde.Error
	if !errors.As(err, &e) {
		t.Errorf("Decode(%q) = %v, %v; want an Error", src, v, err)
		return
	}
	if e.Type != kind || e.Offset != offset || !errors.Is(err, cause) {
		t.Errorf("Decode(%q): %q at %d: %v; want %q at %d: %v", src, e.Type, e.Offset, e.Err, kind, offset, cause)
	}
	if !reflect.ValueOf(&v).Elem().IsZero() {
		t.Errorf("Decode(%q) returned %v beside the error", src, v)
	}
}

func TestDecodeErrors(t *testing.T) {
	bad(t, serde.Int8, "", "int8", 0, serde.ErrShort)
	bad(t, serde.Uint8, "ab", "uint8", 1, serde.ErrTrailing)
	bad(t, serde.Int16, "a", "int16", 1, serde.ErrShort)
	bad(t, serde.Uint16, "abc", "uint16", 2, serde.ErrTrailing)
	bad(t, serde.Int32, "abc", "int32", 3, serde.ErrShort)
	bad(t, serde.OrderedInt32, "abcde", "ordered-int32", 4, serde.ErrTrailing)
	bad(t, serde.Int64, "1234567", "int64", 7, serde.ErrShort)
	bad(t, serde.Int64, "123456789", "int64", 8, serde.ErrTrailing)
	bad(t, serde.Float32, "", "float32", 0, serde.ErrShort)
	bad(t, serde.Float64, "123456789", "float64", 8, serde.ErrTrailing)
	bad(t, serde.OrderedFloat64, "1", "ordered-float64", 1, serde.ErrShort)
	bad(t, serde.Bool, "", "bool", 0, serde.ErrShort)
	bad(t, serde.Bool, "\x02", "bool", 0, serde.ErrInvalid)
	bad(t, serde.Bool, "\x01\x01", "bool", 1, serde.ErrTrailing)
	bad(t, serde.None, "x", "none", 0, serde.ErrTrailing)
	bad(t, serde.Time, "1", "time-ms", 1, serde.ErrShort)
	bad(t, serde.Duration, "1", "duration-ns", 1, serde.ErrShort)

	bad(t, serde.UUID, "123e4567", "uuid", 8, serde.ErrShort)
	bad(t, serde.UUID, "{123e4567-e89b-12d3-a456-42665544aaff}", "uuid", 36, serde.ErrTrailing)
	bad(t, serde.UUID, "123e4567-e89b-12d3-a456-42665544aafg", "uuid", 35, serde.ErrInvalid)
	bad(t, serde.UUID, "123e4567-e89b012d3-a456-42665544aaff", "uuid", 13, serde.ErrInvalid)
	bad(t, serde.UUID, "-23e4567-e89b-12d3-a456-42665544aaff", "uuid", 0, serde.ErrInvalid)

	names := serde.Tuple2(serde.String, serde.Int16)
	bad(t, names, "", "first of pair(string,int16)", 0, serde.ErrShort)
	bad(t, names, "abc", "first of pair(string,int16)", 3, serde.ErrShort)
	bad(t, names, "abc\x00", "first of pair(string,int16)", 4, serde.ErrShort)
	bad(t, names, "ab\x00\xff\x00\x02zz", "first of pair(string,int16)", 5, serde.ErrInvalid)
	bad(t, names, "ab\x00\x01z", "int16 in second of pair(string,int16)", 5, serde.ErrShort)
	bad(t, names, "ab\x00\x01zzz", "int16 in second of pair(string,int16)", 6, serde.ErrTrailing)
	bad(t, serde.Tuple2(serde.Int32, serde.None), "abc", "first of pair(int32,none)", 3, serde.ErrShort)
	bad(t, serde.Tuple2(serde.Bool, serde.None), "\x03", "bool in first of pair(bool,none)", 0, serde.ErrInvalid)
	bad(t, serde.Tuple2(names, serde.None), "a\x00\xff\x01\x00\xff\x00\x01",
		"int16 in second of pair(string,int16) in first of pair(pair(string,int16),none)", 6, serde.ErrShort)
	bad(t, serde.Tuple2[string, struct{}](foreign{}, serde.None), "a\x00\x01",
		"first of pair(serde_test.foreign,none)", 0, errForeign)
	bad(t, serde.PairSerde[string, string]{}, "", "pair", 0, serde.ErrInvalid)

	bad(t, userIDs, "1", "int64", 1, serde.ErrShort)
	bad(t, userIDs, "\xff2345678", "convert(int64,tailrace.dev/serde_test.userID)", 0, serde.ErrInvalid)
	bad(t, userIDs, "\xff2345678", "convert(int64,tailrace.dev/serde_test.userID)", 0, errNegative)
	bad(t, serde.WithLimit(serde.String, 2), "abc", "string", 2, serde.ErrTooLarge)
	bad(t, serde.WithLimit(serde.String, -1), "a", "string", 0, serde.ErrTooLarge)
	bad(t, serde.WithLimit(serde.Int8, 2), "ab", "int8", 1, serde.ErrTrailing)
	bad(t, serde.WithID(serde.Int8, "x"), "ab", "int8", 1, serde.ErrTrailing)

	for _, s := range []serde.Serde[string]{
		serde.WithLimit[string](nil, 1),
		serde.WithID[string](nil, "x"),
		serde.Convert(nil, func(string) (string, error) { return "", nil }, func(string) (string, error) { return "", nil }),
		serde.Convert[string, string](serde.String, nil, nil),
	} {
		bad(t, serde.Convert(s, func(s string) (string, error) { return s, nil }, nil), "", "nil", 0, serde.ErrInvalid)
		bad(t, serde.WithLimit(s, 9), "", "nil", 0, serde.ErrInvalid)
		unencodable(t, s, "", serde.ErrInvalid)
	}
	bad(t, serde.Tuple2[string, string](nil, nil), "\x00\x01", "nil in first of pair(nil,nil)", 0, serde.ErrInvalid)
}

func TestJSONDecodeErrors(t *testing.T) {
	docs, id := serde.JSON[doc](), "json:tailrace.dev/serde_test.doc"
	bad(t, docs, ``, id, 0, serde.ErrShort)
	bad(t, docs, `{"name":`, id, 8, serde.ErrShort)
	bad(t, docs, `{"name":"a`, id, 10, serde.ErrShort)
	bad(t, docs, `{"name":x}`, id, 8, serde.ErrInvalid)
	bad(t, docs, `}`, id, 0, serde.ErrInvalid)
	bad(t, docs, `{} {}`, id, 3, serde.ErrTrailing)
	bad(t, docs, "{}\n\x00", id, 3, serde.ErrTrailing)
	bad(t, serde.JSON[celsius](), `"hot"`, "json:tailrace.dev/serde_test.celsius", 0, errNotCelsius)
	bad(t, serde.JSON[celsius](), `"hot"`, "json:tailrace.dev/serde_test.celsius", 0, serde.ErrInvalid)

	_, err := docs.Decode([]byte(`{"tags":{"a":"one"},"name":"n"}`))
	var e *serde.Error
	if !errors.As(err, &e) || !errors.Is(err, serde.ErrInvalid) || e.Offset < 8 || e.Offset > 19 {
		t.Errorf("a value of the wrong type: %v", err)
	}
	if _, err := docs.Decode([]byte(" {\"name\":\"n\",\"new\":[1]}\r\n")); err != nil {
		t.Errorf("white space and unknown fields: %v", err)
	}
}

var errForeign = errors.New("foreign")

// foreign is a serde as a user may write it: no identity, errors of its own, and nil for an empty encoding.
type foreign struct{}

func (foreign) Append(dst []byte, v string) ([]byte, error) {
	if v == "bad" {
		return dst, errForeign
	}
	return append(dst, v...), nil
}
func (foreign) Decode([]byte) (string, error) { return "", errForeign }

// unencodable checks that v is refused and that the buffer can be used on.
func unencodable[T any](t *testing.T, s serde.Serde[T], v T, cause error) {
	t.Helper()
	b, err := s.Append([]byte("dst"), v)
	var e *serde.Error
	if !errors.As(err, &e) || e.Offset != -1 || !errors.Is(err, cause) {
		t.Errorf("Append(%v): %v; want %v", v, err, cause)
	}
	if string(b) != "dst" {
		t.Errorf("Append(%v) returned %q beside the error, want dst as it was", v, b)
	}
	if b, err := serde.Encode(s, v); err == nil || b != nil {
		t.Errorf("Encode(%v) = %q, %v; want nil and an error", v, b, err)
	}
}

func TestAppendErrors(t *testing.T) {
	unencodable(t, serde.Time, time.UnixMilli(math.MaxInt64).Add(time.Millisecond), serde.ErrInvalid)
	unencodable(t, serde.Time, time.UnixMilli(math.MinInt64).Add(-1), serde.ErrInvalid)
	unencodable(t, serde.OrderedTime, time.Unix(math.MaxInt64/2, 0), serde.ErrInvalid)
	unencodable(t, serde.JSON[float64](), math.NaN(), serde.ErrInvalid)
	unencodable(t, serde.JSON[any](), any(func() {}), serde.ErrInvalid)
	unencodable(t, userIDs, -1, errNegative)
	unencodable(t, serde.WithLimit(serde.String, 2), "abc", serde.ErrTooLarge)
	unencodable(t, serde.WithLimit(userIDs, 2), -1, errNegative)
	unencodable(t, serde.Tuple2(serde.String, userIDs), pair("a", userID(-1)), errNegative)
	unencodable(t, serde.Tuple2(userIDs, serde.String), pair(userID(-1), "a"), errNegative)
	unencodable(t, serde.Tuple2[string](foreign{}, serde.String), pair("bad", "a"), errForeign)
	unencodable(t, serde.PairSerde[string, string]{}, pair("", ""), serde.ErrInvalid)

	// A JSON serde still works after a failure, with the buffers that it kept.
	floats := serde.JSON[float64]()
	for range 3 {
		unencodable(t, floats, math.Inf(1), serde.ErrInvalid)
		if b, err := serde.Encode(floats, 1.5); err != nil || string(b) != "1.5" {
			t.Fatalf("after an error: %q, %v", b, err)
		}
	}
}

func TestErrorMessages(t *testing.T) {
	_, short := serde.Int64.Decode([]byte{1, 2, 3})
	_, second := serde.Tuple2(serde.String, serde.Bool).Decode([]byte("ab\x00\x01\x07"))
	_, large := serde.WithLimit(serde.String, 2).Append(nil, "abc")
	_, text := serde.JSON[doc]().Decode([]byte(`{} x`))
	for _, c := range []struct {
		err  error
		want string
	}{
		{short, "serde: decode int64 at byte 3: too few bytes: want 8, have 3"},
		{second, "serde: decode bool in second of pair(string,bool) at byte 4: invalid: want 0 or 1, have 7"},
		{large, "serde: encode string: too large: want at most 2 bytes, have 3"},
		{text, "serde: decode json:tailrace.dev/serde_test.doc at byte 3: bytes left over: " +
			"want the end after one JSON value, have 1 more"},
	} {
		if c.err == nil || c.err.Error() != c.want {
			t.Errorf("have %v\nwant %s", c.err, c.want)
		}
	}
}

func TestEmptyIsNotNil(t *testing.T) {
	notNil(t, serde.String, "")
	notNil(t, serde.Bytes, nil)
	notNil(t, serde.Raw, nil)
	notNil(t, serde.None, struct{}{})
	notNil(t, serde.Tuple2(serde.None, serde.String), pair(struct{}{}, ""))
	notNil(t, serde.Tuple2[struct{}](serde.None, foreign{}), pair(struct{}{}, ""))
	if b, err := serde.Encode(foreign{}, ""); err != nil || b == nil {
		t.Errorf("Encode = %#v, %v", b, err)
	}
	for name, s := range map[string]serde.Serde[[]byte]{"bytes": serde.Bytes, "raw": serde.Raw} {
		for _, src := range [][]byte{nil, {}} {
			if v, err := s.Decode(src); err != nil || v == nil {
				t.Errorf("%s: Decode(%#v) = %#v, %v", name, src, v, err)
			}
		}
	}
}

func notNil[T any](t *testing.T, s serde.Serde[T], v T) {
	t.Helper()
	if b, err := s.Append(nil, v); err != nil || b == nil || len(b) != 0 {
		t.Errorf("%s: Append(nil, %v) = %#v, %v", serde.ID(s), v, b, err)
	}
}

func TestBytesCopiesAndRawAliases(t *testing.T) {
	src := []byte("abc")[:2]
	raw, err := serde.Raw.Decode(src)
	if err != nil || &raw[0] != &src[0] {
		t.Errorf("Raw copied, or failed: %v", err)
	}
	if cap(raw) != 2 {
		t.Errorf("appending to the value would write behind src: capacity %d", cap(raw))
	}
	copied, err := serde.Bytes.Decode(src)
	if err != nil || &copied[0] == &src[0] {
		t.Errorf("Bytes did not copy, or failed: %v", err)
	}
}

func TestUUIDReadsUpperCase(t *testing.T) {
	v, err := serde.UUID.Decode([]byte(strings.ToUpper(someUUID.String())))
	if err != nil || v != someUUID {
		t.Errorf("%v, %v", v, err)
	}
}

func TestTimeCutsTowardsThePast(t *testing.T) {
	for _, ns := range []int64{1, 999_999, -1, -999_999} {
		in := time.Unix(0, ns).In(time.FixedZone("x", 3600))
		b, err := serde.Encode(serde.Time, in)
		if err != nil {
			t.Fatal(err)
		}
		out, err := serde.Time.Decode(b)
		if err != nil || out.After(in) || in.Sub(out) >= time.Millisecond || out.Location() != time.UTC {
			t.Errorf("%v became %v, %v", in, out, err)
		}
	}
}

// ascending checks that the bytes of the values, given in ascending order, ascend too.
func ascending[T any](t *testing.T, s serde.Serde[T], values ...T) {
	t.Helper()
	var last []byte
	for i, v := range values {
		b, err := serde.Encode(s, v)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && bytes.Compare(last, b) >= 0 {
			t.Errorf("%s: the bytes of %v (%x) are not below those of %v (%x)", serde.ID(s), values[i-1], last, v, b)
		}
		last = b
	}
}

func TestOrder(t *testing.T) {
	ascending(t, serde.OrderedInt8, math.MinInt8, -1, 0, 1, math.MaxInt8)
	ascending(t, serde.OrderedInt16, math.MinInt16, -256, -1, 0, 1, 256, math.MaxInt16)
	ascending(t, serde.OrderedInt32, math.MinInt32, -1, 0, 1, math.MaxInt32)
	ascending(t, serde.OrderedInt64, math.MinInt64, -1, 0, 1, math.MaxInt64)
	ascending(t, serde.OrderedFloat64, math.Copysign(math.NaN(), -1), math.Inf(-1), -math.MaxFloat64, -1,
		-math.SmallestNonzeroFloat64, math.Copysign(0, -1), 0, math.SmallestNonzeroFloat64, 1, math.Inf(1), math.NaN())
	ascending(t, serde.OrderedTime, time.UnixMilli(math.MinInt64), time.Time{}, time.UnixMilli(-1), time.UnixMilli(0),
		time.UnixMilli(math.MaxInt64))
	ascending(t, serde.Tuple2(serde.String, serde.OrderedInt64),
		pair("", int64(9)), pair("\x00", int64(-9)), pair("\x00\x00", int64(0)), pair("\x00\x01", int64(0)),
		pair("\x01", int64(5)), pair("a", int64(-1)), pair("a", int64(0)), pair("a", int64(7)),
		pair("a\x00", int64(-5)), pair("a\x00\xff", int64(0)), pair("a\x01", int64(0)), pair("ab", int64(-1)),
		pair("\xff", int64(0)), pair("\xff\xff", int64(0)))
}

func TestPairPrefix(t *testing.T) {
	s := serde.Tuple2(serde.String, serde.Tuple2(serde.String, serde.Uint8))
	firsts := []string{"", "\x00", "\x00\x01", "a", "a\x00", "a\x00\x01", "ab"}
	for _, p := range firsts {
		prefix, err := s.AppendPrefix(nil, p)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range firsts {
			b, err := serde.Encode(s, pair(f, pair("x", uint8(1))))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.HasPrefix(b, prefix) != (f == p) {
				t.Errorf("%x is a prefix of the key of %q: %v", prefix, f, f != p)
			}
		}
	}
}

func TestID(t *testing.T) {
	type local struct{}
	for _, c := range []struct {
		s    any
		want string
	}{
		{serde.String, "string"}, {serde.Bytes, "bytes"}, {serde.Raw, "bytes"}, {serde.None, "none"},
		{serde.Int8, "int8"}, {serde.Int16, "int16"}, {serde.Int32, "int32"}, {serde.Int64, "int64"},
		{serde.Uint8, "uint8"}, {serde.Uint16, "uint16"}, {serde.Uint32, "uint32"}, {serde.Uint64, "uint64"},
		{serde.Float32, "float32"}, {serde.Float64, "float64"}, {serde.Bool, "bool"}, {serde.UUID, "uuid"},
		{serde.OrderedInt8, "ordered-int8"}, {serde.OrderedInt16, "ordered-int16"},
		{serde.OrderedInt32, "ordered-int32"}, {serde.OrderedInt64, "ordered-int64"},
		{serde.OrderedFloat64, "ordered-float64"}, {serde.OrderedTime, "ordered-time-ms"},
		{serde.Time, "time-ms"}, {serde.Duration, "duration-ns"},
		{serde.JSON[doc](), "json:tailrace.dev/serde_test.doc"},
		{serde.JSON[local](), "json:tailrace.dev/serde_test.local"},
		{serde.JSON[map[string][]*doc](), "json:map[string][]*tailrace.dev/serde_test.doc"},
		{serde.JSON[[2]time.Time](), "json:[2]time.Time"},
		{serde.JSON[serde.Pair[doc, int]](), "json:tailrace.dev/serde.Pair[tailrace.dev/serde_test.doc,int]"},
		{serde.JSON[any](), "json:interface {}"},
		{serde.Tuple2(serde.String, serde.Tuple2(serde.Int64, serde.None)), "pair(string,pair(int64,none))"},
		{userIDs, "convert(int64,tailrace.dev/serde_test.userID)"},
		{serde.WithLimit(userIDs, 9), serde.ID(userIDs)},
		{serde.WithLimit[string](foreign{}, 9), "serde_test.foreign"},
		{serde.WithID(serde.String, "users/v2"), "users/v2"},
		{foreign{}, "serde_test.foreign"}, {nil, "<nil>"},
	} {
		if got := serde.ID(c.s); got != c.want {
			t.Errorf("ID = %q, want %q", got, c.want)
		}
	}
}

// TestWrappersKeepTheFormOfPairs guards stored keys: wrapping the first part must not change whether it is delimited.
func TestWrappersKeepTheFormOfPairs(t *testing.T) {
	wrapped := serde.WithID(serde.WithLimit(userIDs, 100), "x")
	golden(t, "fixed", serde.Tuple2(wrapped, serde.String), pair(userID(1), "a"), "0000000000000001"+"61")
	golden(t, "fixed pair", serde.Tuple2(serde.Tuple2(wrapped, serde.Bool), serde.String),
		pair(pair(userID(1), true), "a"), "0000000000000001"+"01"+"61")
	golden(t, "varying", serde.Tuple2(serde.WithLimit(serde.String, 9), serde.String), pair("a", "b"), "61"+"0001"+"62")
}

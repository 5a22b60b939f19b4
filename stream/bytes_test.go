package stream

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// TestAlonePayload fixes the bytes of a record that waits in a join.
func TestAlonePayload(t *testing.T) {
	for _, c := range []struct {
		headers []processor.Header
		value   string
		want    string
	}{
		{nil, "", "00000000"},
		{nil, "v", "0000000076"},
		{[]processor.Header{{Key: "h", Value: []byte("x")}, {Key: "nil"}}, "v", "00000009016802780" + "36e696c0076"},
	} {
		p := alonePayload(c.headers, []byte(c.value))
		if got := hex.EncodeToString(p); got != c.want {
			t.Errorf("%v, %q: %s; want %s", c.headers, c.value, got, c.want)
		}
		hs, v, err := splitAlone(p)
		if err != nil || string(v) != c.value || len(hs) != len(c.headers) {
			t.Errorf("%x holds %v, %q, %v", p, hs, v, err)
		}
	}
}

// FuzzSplitAlone reads what nobody has written.
func FuzzSplitAlone(f *testing.F) {
	f.Add([]byte{})
	f.Add(alonePayload([]processor.Header{{Key: "h", Value: []byte("x")}}, []byte("v")))
	f.Fuzz(func(t *testing.T, p []byte) {
		hs, v, err := splitAlone(p)
		if err != nil {
			if !errors.Is(err, state.ErrCorrupt) {
				t.Errorf("%v is not ErrCorrupt", err)
			}
			return
		}
		again, w, err := splitAlone(alonePayload(hs, v))
		if err != nil || !bytes.Equal(v, w) || len(again) != len(hs) {
			t.Errorf("%x: %v, %x become %v, %x, %v", p, hs, v, again, w, err)
		}
	})
}

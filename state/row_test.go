package state

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

func TestRowBytes(t *testing.T) {
	datadriven.RunTest(t, "testdata/rows", func(t *testing.T, d *datadriven.TestData) string {
		switch d.Cmd {
		case "row":
			var m RowMeta
			for _, arg := range d.CmdArgs {
				val := strings.Join(arg.Vals, "")
				var err error
				switch arg.Key {
				case "time":
					m.TimeMillis, err = strconv.ParseInt(val, 10, 64)
				case "headers":
					m.Headers = append([]byte{}, val...)
				case "fingerprint":
					m.Fingerprint, err = strconv.ParseUint(val, 0, 64)
				}
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
			}
			row := append(AppendRow(nil, m), d.Input...)
			got, value, err := ParseRow(row)
			if err != nil || !sameMeta(got, m) || string(value) != d.Input {
				d.Fatalf(t, "parsed back: %+v %q %v", got, value, err)
			}
			return hex.EncodeToString(row)
		case "parse":
			row, err := hex.DecodeString(d.Input)
			if err != nil {
				d.Fatalf(t, "%v", err)
			}
			m, value, err := ParseRow(row)
			if err == nil {
				return fmt.Sprintf("%+v %q", m, value)
			}
			if !errors.Is(err, ErrCorrupt) {
				d.Fatalf(t, "%v is not ErrCorrupt", err)
			}
			return err.Error()
		}
		d.Fatalf(t, "unknown command %q", d.Cmd)
		return ""
	})
}

func sameMeta(a, b RowMeta) bool {
	return a.TimeMillis == b.TimeMillis && a.Fingerprint == b.Fingerprint && bytes.Equal(a.Headers, b.Headers) &&
		(a.Headers == nil) == (b.Headers == nil)
}

func FuzzParseRow(f *testing.F) {
	f.Add([]byte{})
	f.Add(AppendRow(nil, RowMeta{}))
	f.Add(append(AppendRow(nil, RowMeta{TimeMillis: -5, Headers: []byte("h"), Fingerprint: 7}), "value"...))
	f.Add([]byte("\x01\x01\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, row []byte) {
		m, value, err := ParseRow(row)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%v is not ErrCorrupt", err)
			}
			return
		}
		if cap(value) != len(value) {
			t.Fatalf("appending to the value would write behind the row")
		}
		// A row without a fingerprint may carry the flag and eight zero bytes; everything else has one form.
		if row[1]&flagFingerprint != 0 && m.Fingerprint == 0 {
			return
		}
		if again := append(AppendRow(nil, m), value...); !bytes.Equal(again, row) {
			t.Fatalf("%x parses as %+v, which is written as %x", row, m, again)
		}
	})
}

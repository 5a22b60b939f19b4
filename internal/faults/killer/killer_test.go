//go:build unix

package main

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func count(key string, n uint64) *kgo.Record {
	return &kgo.Record{Key: []byte(key), Value: binary.BigEndian.AppendUint64(nil, n)}
}

// TestLedger requires that what compares output with input finds what may be wrong with it.
func TestLedger(t *testing.T) {
	for name, c := range map[string]struct {
		out  []*kgo.Record
		want string
	}{
		"right":        {[]*kgo.Record{count("a", 1), count("b", 1), count("a", 2)}, ""},
		"lost":         {[]*kgo.Record{count("a", 1), count("b", 1)}, "2 outputs of 2 keys for 3 records of 2 keys"},
		"doubled":      {[]*kgo.Record{count("a", 1), count("a", 1)}, "is 0000000000000001 after 1"},
		"out of order": {[]*kgo.Record{count("a", 2), count("a", 1)}, "is 0000000000000002 after 0"},
		"too many":     {[]*kgo.Record{count("a", 1), count("a", 2), count("a", 3), count("b", 1)}, "4 outputs"},
		"no count":     {[]*kgo.Record{{Key: []byte("a"), Value: []byte("x")}}, "is 78 after 0"},
	} {
		t.Run(name, func(t *testing.T) {
			l := &ledger{in: map[string]uint64{}, out: map[string]uint64{}}
			for _, key := range []string{"a", "b", "a"} {
				l.read(&kgo.Record{Key: []byte(key)})
			}
			for _, r := range c.out {
				l.wrote(r)
			}
			n, err := l.compare(time.Millisecond)
			if c.want == "" {
				if n != 3 || err != nil {
					t.Errorf("%d records, %v", n, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestGrowth requires that what looks for growth finds some, and does not find what is only warming up.
func TestGrowth(t *testing.T) {
	series := func(f func(i int) sample) (samples []sample) {
		for i := range 100 {
			samples = append(samples, f(i))
		}
		return samples
	}
	flat := sample{rss: 100 << 20, disk: 50 << 20, files: 60, goroutines: 80}
	if report, err := growth(series(func(i int) sample {
		s := flat
		s.rss = min(s.rss, int64(i)*10<<20)
		return s
	})); err != nil {
		t.Errorf("%v: %s", err, report)
	}
	for what, change := range map[string]func(s *sample, i int64){
		"memory":     func(s *sample, i int64) { s.rss += i << 20 },
		"disk":       func(s *sample, i int64) { s.disk += i << 21 },
		"open files": func(s *sample, i int64) { s.files += int(i) },
		"goroutines": func(s *sample, i int64) { s.goroutines += int(i) },
	} {
		if report, err := growth(series(func(i int) sample {
			s := flat
			change(&s, int64(i))
			return s
		})); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s grows: %v: %s", what, err, report)
		}
	}
	if _, err := growth(series(func(int) sample { return flat })[:10]); err != nil {
		t.Error(err)
	}
}

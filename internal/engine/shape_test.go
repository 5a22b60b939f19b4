package engine

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// twoSubs is a shape to change: "a" counts into a store and feeds a repartition topic, which "r" reads.
func twoSubs() *shape {
	return &shape{
		Version: shapeVersion, Fingerprint: "f1", Known: []string{"f1"},
		Subs: []shapeSub{
			{
				Name: "a", Partitions: 4, Sources: []shapeSource{{Topic: "a"}, {Topic: "b"}},
				Stores: []shapeStore{
					{Name: "counts", Kind: "key-value", Key: "string", Value: "int64", Changelog: "app-counts-changelog", TopicID: "1"},
					{Name: "copy", Kind: "key-value", Key: "string", Value: "bytes", Follows: "b"},
				},
			},
			{
				Name: "r", Partitions: 4,
				Sources: []shapeSource{{Topic: "app-r-repartition", Internal: true, TopicID: "2", Key: "string", Value: "int64"}},
				Stores: []shapeStore{
					{Name: "sums", Kind: "window", Key: "string", Value: "int64", Changelog: "app-sums-changelog", TopicID: "3"},
				},
			},
			{Name: "z", Partitions: 2, Sources: []shapeSource{{Topic: "z"}}},
		},
	}
}

func TestCompareShapes(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name   string
		change func(s *shape)
		gone   []string // topics that are not there any more
		want   []string // parts of what is refused, one for each difference
		notes  []string // parts of what is harmless
	}{
		{name: "the same", change: func(*shape) {}},
		{name: "a new store", change: func(s *shape) {
			s.Subs[0].Stores = append(s.Subs[0].Stores, shapeStore{Name: "new", Changelog: "app-new-changelog"})
		}},
		{name: "a new sub-topology", change: func(s *shape) {
			s.Subs = append(s.Subs, shapeSub{Name: "n", Partitions: 7, Sources: []shapeSource{{Topic: "n"}}})
		}},
		{name: "a new input", change: func(s *shape) {
			s.Subs[0].Sources = append(s.Subs[0].Sources, shapeSource{Topic: "c"})
		}},
		{name: "an input less", change: func(s *shape) { s.Subs[0].Sources = s.Subs[0].Sources[:1] }},
		{name: "another fingerprint alone", change: func(s *shape) { s.Fingerprint = "f2" }},
		{
			name:   "renamed, because a smaller input came",
			change: func(s *shape) { s.Subs[0].Name, s.Subs[0].Sources[0].Topic = "0", "0" },
			notes:  nil, // its first input is gone, so that nothing says that it was renamed
		},
		{
			name: "named after another input",
			change: func(s *shape) {
				s.Subs[0].Sources = append([]shapeSource{{Topic: "0"}}, s.Subs[0].Sources...)
				s.Subs[0].Name = "0"
			},
			notes: []string{`sub-topology "a" is named "0" now`},
		},
		{
			name:   "value serde",
			change: func(s *shape) { s.Subs[0].Stores[0].Value = "json(Count)" },
			want:   []string{`store "counts": the serde of its values was int64 and is json(Count): reset the application`},
		},
		{
			name:   "key serde and kind",
			change: func(s *shape) { s.Subs[0].Stores[0].Key, s.Subs[0].Stores[0].Kind = "int64", "versioned" },
			want:   []string{"kind key-value and is of kind versioned", "serde of its keys was string and is int64"},
		},
		{
			name:   "value serde after the changelog was deleted",
			change: func(s *shape) { s.Subs[0].Stores[0].Value = "json(Count)" },
			gone:   []string{"app-counts-changelog"},
		},
		{
			name:   "a store less",
			change: func(s *shape) { s.Subs[0].Stores = s.Subs[0].Stores[1:] },
			want:   []string{`store "counts" is not in the topology any more, and its changelog is left over`},
		},
		{
			name:   "a store less, and its changelog",
			change: func(s *shape) { s.Subs[0].Stores = s.Subs[0].Stores[1:] },
			gone:   []string{"app-counts-changelog"},
		},
		{
			name:   "a store that follows less",
			change: func(s *shape) { s.Subs[0].Stores = s.Subs[0].Stores[:1] },
			notes:  []string{`store "copy", which followed "b"`},
		},
		{
			name:   "a store that follows in another encoding",
			change: func(s *shape) { s.Subs[0].Stores[1].Value = "json" },
		},
		{
			name: "a store with a changelog follows",
			change: func(s *shape) {
				s.Subs[0].Stores[0].Changelog, s.Subs[0].Stores[0].Follows = "", "a"
			},
			want: []string{`follows topic "a" now, and its changelog is left over`},
		},
		{
			name: "a store that followed has a changelog",
			change: func(s *shape) {
				s.Subs[0].Stores[1].Changelog, s.Subs[0].Stores[1].Follows = "app-copy-changelog", ""
			},
			want: []string{`followed topic "b" and now has a changelog`},
		},
		{
			name: "a store moved",
			change: func(s *shape) {
				s.Subs[1].Stores = append(s.Subs[1].Stores, s.Subs[0].Stores[0])
				s.Subs[0].Stores = s.Subs[0].Stores[1:]
			},
			want: []string{`store "counts": its rows were made from a, b, and the sub-topology that it is in now reads app-r-re`},
		},
		{
			name: "two sub-topologies became one",
			change: func(s *shape) {
				s.Subs[0].Sources = append(s.Subs[0].Sources, s.Subs[1].Sources...)
				s.Subs[0].Stores = append(s.Subs[0].Stores, s.Subs[1].Stores...)
				s.Subs = slices.Delete(s.Subs, 1, 2)
			},
			notes: []string{`sub-topology "r" is named "a" now`},
		},
		{
			name:   "another number of partitions",
			change: func(s *shape) { s.Subs[0].Partitions = 8 },
			want:   []string{`input "a" had 4 partitions and has 8: keys now go to other partitions than their state`},
		},
		{
			name:   "another number of partitions after a reset",
			change: func(s *shape) { s.Subs[0].Partitions = 8 },
			gone:   []string{"app-counts-changelog"},
		},
		{
			name:   "another number of partitions without state",
			change: func(s *shape) { s.Subs[2].Partitions = 3 },
			want:   []string{`input "z" had 2 partitions and has 3: no state depends on it`},
		},
		{
			name:   "a repartition topic less",
			change: func(s *shape) { s.Subs = slices.Delete(s.Subs, 1, 2) },
			want:   []string{`nothing reads the internal topic "app-r-repartition"`, `store "sums" is not in the topology`},
		},
		{
			name:   "a repartition topic in another encoding",
			change: func(s *shape) { s.Subs[1].Sources[0].Value = "json" },
			want:   []string{`internal topic "app-r-repartition": the serde of its values was int64 and is json`},
		},
		{
			name:   "a stateless sub-topology less",
			change: func(s *shape) { s.Subs = s.Subs[:2] },
			notes:  []string{`sub-topology "z" is not in the topology any more`},
		},
		{
			name: "everything at once",
			change: func(s *shape) {
				s.Subs[0].Stores[0].Value, s.Subs[1].Partitions, s.Subs[2].Partitions = "x", 1, 1
			},
			want: []string{`serde of its values was int64 and is x`, `"app-r-repartition" had 4 partitions and has 1`,
				`input "z" had 2 partitions and has 1`},
		},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			is := twoSubs()
			tc.change(is)
			var refused, notes []difference
			there := func(topic, _ string) bool { return !slices.Contains(tc.gone, topic) }
			for _, d := range compareShapes(twoSubs(), is, there) {
				if d.verdict == harmless {
					notes = append(notes, d)
				} else {
					refused = append(refused, d)
				}
			}
			said(t, "refused", refused, tc.want)
			said(t, "harmless", notes, tc.notes)
		})
	}
}

func said(t *testing.T, what string, got []difference, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %v, want %q", what, got, want)
	}
	for i, d := range got {
		if !strings.Contains(d.String(), want[i]) {
			t.Errorf("%s: %q does not say %q", what, d, want[i])
		}
	}
}

func everywhere(string, string) bool { return true }

// TestLeftStoreComesBack finds a store that was left behind, and is content when its changelog is gone.
func TestLeftStoreComesBack(t *testing.T) {
	t.Parallel()
	without := twoSubs()
	without.Fingerprint = "f2"
	without.Subs[0].Stores = without.Subs[0].Stores[1:]
	record := twoSubs().merge(without, true, everywhere)
	if len(record.Left) != 1 || record.Left[0].Name != "counts" {
		t.Fatalf("left behind: %v", record.Left)
	}
	said(t, "without", compareShapes(record, without, everywhere), nil)
	said(t, "with", compareShapes(record, twoSubs(), everywhere), []string{`store "counts" is back after it was left out`})
	gone := func(topic, _ string) bool { return topic != "app-counts-changelog" }
	said(t, "deleted", compareShapes(record, twoSubs(), gone), nil)
	if m := record.merge(twoSubs(), false, gone); len(m.Left) != 0 || !m.covers(twoSubs(), true) {
		t.Errorf("record after the store is back: %+v", m)
	}
}

// TestMergeOfARollingUpgrade lets members of two versions start in turn: the record stays that of both.
func TestMergeOfARollingUpgrade(t *testing.T) {
	t.Parallel()
	v1, v2 := twoSubs(), twoSubs()
	v2.Fingerprint, v2.Known = "f2", []string{"f2"}
	v2.Subs = append(v2.Subs, shapeSub{Name: "n", Partitions: 4, Sources: []shapeSource{{Topic: "n"}}, Stores: []shapeStore{
		{Name: "new", Kind: "key-value", Changelog: "app-new-changelog", TopicID: "9"},
	}})
	record := v1.merge(v2, false, everywhere)
	if !record.covers(v2, true) || !record.knows("f1") || record.same(v1) {
		t.Fatalf("after the second version: %+v", record)
	}
	for range 3 {
		for _, v := range []*shape{v1, v2, v1} {
			next := record.merge(v, false, everywhere)
			if !next.same(record) {
				t.Fatalf("a member of %s changes the record to %+v", v.Fingerprint, next)
			}
			record = next
		}
	}
	// A third version, which is new, takes the place of both.
	v3 := twoSubs()
	v3.Fingerprint, v3.Known, v3.Subs = "f3", []string{"f3"}, v3.Subs[:2]
	if next := v1.merge(v3, false, everywhere); len(next.Subs) != 2 {
		t.Errorf("after a version without a stateless sub-topology: %+v", next)
	}
}

func TestShapeIsBounded(t *testing.T) {
	t.Parallel()
	s := twoSubs()
	for i := range 3 * maxKnown {
		is := twoSubs()
		is.Fingerprint = strings.Repeat("x", i+1)
		s = s.merge(is, false, everywhere)
	}
	if len(s.Known) != maxKnown || s.Known[maxKnown-1] != s.Fingerprint {
		t.Errorf("%d known fingerprints", len(s.Known))
	}
	s.Subs[0].Name = strings.Repeat("n", maxShape)
	if _, err := s.encode(); err == nil {
		t.Error("a shape of any size is recorded")
	}
}

func TestDecodeShape(t *testing.T) {
	t.Parallel()
	b, err := twoSubs().encode()
	if err != nil {
		t.Fatal(err)
	}
	s, err := decodeShape(b)
	if err != nil || !s.same(twoSubs()) {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := decodeShape(nil); s != nil || err != nil {
		t.Errorf("nothing: %v, %v", s, err)
	}
	for _, bad := range []string{"{", `{"version":99}`, `[]`} {
		if _, err := decodeShape([]byte(bad)); !errors.Is(err, errShape) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzDecodeShape(f *testing.F) {
	b, err := twoSubs().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"subs":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeShape(b)
		if err != nil || s == nil {
			return
		}
		found := compareShapes(s, twoSubs(), everywhere)
		found = append(found, compareShapes(twoSubs(), s, everywhere)...)
		for _, d := range found {
			_ = d.String()
		}
		_ = s.merge(twoSubs(), true, everywhere)
	})
}

func TestMarks(t *testing.T) {
	t.Parallel()
	sub := &Sub{Sources: []Source{{Topic: "a"}, {Topic: "b"}}}
	id := [16]byte{1, 2, 255, 250}
	for _, metadata := range []string{"", "10000000000000000", "with;separator"} {
		text, m := cutMark(metadata + markOf(id, inputsOf(sub)))
		if text != metadata || !m.ours || m.id != id || m.inputs != inputsOf(sub) {
			t.Errorf("%q: %q, %+v", metadata, text, m)
		}
	}
	for _, other := range []string{"", "by hand", ";", ";!12345678901234567890123456789", strings.Repeat("x", 100)} {
		if text, m := cutMark(other); text != other || m.ours {
			t.Errorf("%q: %q, %+v", other, text, m)
		}
	}
	if inputsOf(sub) == inputsOf(&Sub{Sources: []Source{{Topic: "a"}}}) {
		t.Error("other inputs have the same mark")
	}
}

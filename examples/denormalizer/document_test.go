package main

import (
	"strings"
	"testing"
)

func lookupIn(assets map[string]Newest) Lookup {
	return func(id string) (Newest, bool, error) {
		a, ok := assets[id]
		return a, ok, nil
	}
}

func collect(assets ...Asset) map[string]Newest {
	m := make(map[string]Newest, len(assets))
	for _, a := range assets {
		m[a.ID] = Newest{Asset: a}
	}
	return m
}

func TestRenderLimits(t *testing.T) {
	chain := collect(
		asset("article/a", 1, "A", true, "image/1", "tag/x"),
		asset("image/1", 1, "I", false, "byline/j"),
		asset("byline/j", 1, "J", false, "tag/x", "tag/y"),
		asset("tag/x", 1, "X", false),
		asset("tag/y", 1, "Y", false),
	)
	big := collect(
		asset("article/a", 1, strings.Repeat("a", 50), true, "tag/b", "tag/c"),
		asset("tag/b", 1, strings.Repeat("b", 50), false),
		asset("tag/c", 1, "c", false),
	)
	tests := []struct {
		name   string
		assets map[string]Newest
		limits Limits
		want   string
	}{
		{"all", chain, Limits{Depth: 9, Nodes: 99, Bytes: 999},
			"article/a:A(image/1:I(byline/j:J(tag/x:X tag/y:Y)) tag/x:X)"},
		{"depth", chain, Limits{Depth: 2, Nodes: 99, Bytes: 999},
			"article/a:A(image/1:I(byline/j:J+2) tag/x:X)"},
		{"nodes, farthest first", chain, Limits{Depth: 9, Nodes: 5, Bytes: 999},
			"article/a:A(image/1:I(byline/j:J+1(tag/x:X)) tag/x:X)"},
		{"bytes, the article itself never", big, Limits{Depth: 9, Nodes: 99, Bytes: 52},
			"article/a:" + strings.Repeat("a", 50) + "(tag/b!size tag/c:c)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := Render(tt.assets["article/a"], tt.limits, lookupIn(tt.assets))
			if err != nil {
				t.Fatal(err)
			}
			if have := outline(d); have != tt.want {
				t.Errorf("have %s\nwant %s", have, tt.want)
			}
		})
	}
}

// TestLargestDocument makes the worst article that the checks let through and the limits leave, and looks whether it
// fits into a Kafka record.
func TestLargestDocument(t *testing.T) {
	var refs []string
	assets := make(map[string]Newest)
	for i := range maxRefs {
		id := "article/" + string(rune('a'+i/26)) + string(rune('a'+i%26)) + strings.Repeat("z", 110)
		refs = append(refs, id)
	}
	for _, id := range refs {
		a := asset(id, 1<<62, strings.Repeat("\x01", maxAssetBytes/6-10), true, refs...)
		for i := range a.Refs {
			a.Refs[i].Role = strings.Repeat("r", 40)
		}
		if err := a.Check(id); err != nil {
			t.Fatal(err)
		}
		assets[id] = Newest{Asset: a}
	}
	d, err := Render(assets[refs[0]], DefaultLimits, lookupIn(assets))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Denormalized.Value().Append(nil, d)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 900<<10 || len(b) < 200<<10 {
		t.Errorf("the largest document has %d bytes; want below 900 KiB, and above 200 or the test is wrong", len(b))
	}
}

package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

// newsroom invents the days of a newspaper: articles are written, illustrated, published, corrected, linked to each
// other, withdrawn; authors marry and tags are renamed. It also makes what goes wrong between a newsroom and a log: an
// image that arrives after its article, and a version that arrives after the next one. The same seed, over the same
// archive, gives the same days.
type newsroom struct {
	rng    *rand.Rand
	assets map[string]Newest
	live   map[string][]string // ids by kind, oldest first, of what is not deleted
	queue  []func() (story, bool)
	next   int
}

// story is a change with what it is about.
type story struct {
	change
	what   string // one of the kinds of things that happen
	tell   string // a line to print when it is done, if it is worth one
	repeat bool   // there is a record of this version already
}

// Shape of the newsroom.
const (
	authors      = 24
	listLength   = 5
	recentWindow = 40 // links and corrections mostly go to articles as young as that
)

var (
	firstNames = strings.Fields(`
		Ada Amir Ben Carla Dan Emma Finn Gina Hugo Iris Jane Karim Lena Milo Nora Omar Pia Rosa Sam
		Tom Uma Vera Yuki Zoe`)
	lastNames = strings.Fields(`Abbot Brandt Costa Doe Eriksen Fischer Grant Haddad Ito Jensen Kowalski Lindqvist Moreau
		Novak Okafor Petrov Quinn Rossi Silva Tanaka Underwood Vogel Weber Young`)
	tagNames = strings.Fields(`Politics Business Science Climate Health Sports Arts Books Film Music Food Travel Technology
		Space Oceans Housing Schools Courts Elections Trade Energy Cities Farming History`)
	listNames = []string{"Most read", "Editors' picks", "Series: the river", "Series: after the vote"}
	places    = strings.Fields(`Harbor River Valley City Coast Border Capital Island Mountain Market Museum Bridge Forest
		Station Stadium`)
	verbs  = strings.Fields("faces welcomes rejects rebuilds debates celebrates reopens questions measures remembers")
	things = []string{"new plan", "old promise", "flood defenses", "record crowd", "longer trains", "quiet night",
		"tax on visitors",
		"return of the herons", "school reform", "lost painting", "budget gap", "wind farm"}
	sentences = []string{
		"Officials said on Monday that the work would take longer than planned.",
		"Residents had asked for it for more than a decade.",
		"The figures, seen by this newspaper, tell another story.",
		"Nobody expected the vote to be this close.",
		"Experts call the result encouraging, with one reservation.",
		"What happens next depends on the weather.",
	}
)

func newNewsroom(seed uint64, assets map[string]Newest) *newsroom {
	n := &newsroom{
		rng: rand.New(rand.NewPCG(seed, uint64(len(assets)))), assets: make(map[string]Newest),
		live: make(map[string][]string), next: len(assets),
	}
	maps.Copy(n.assets, assets)
	for _, id := range slices.Sorted(maps.Keys(assets)) {
		if !assets[id].Deleted {
			n.live[Kind(id)] = append(n.live[Kind(id)], id)
		}
	}
	if len(n.live[KindByline]) == 0 {
		n.found()
	}
	return n
}

// found makes what a newspaper has before its first article.
func (n *newsroom) found() {
	for i := range authors {
		name := firstNames[i] + " " + lastNames[i]
		n.put(Asset{ID: KindByline + "/" + slug(name), Title: name, Text: "Reporter"}, "author joined")
	}
	for _, t := range tagNames {
		n.put(Asset{ID: KindTag + "/" + slug(t), Title: t}, "tag made")
	}
	for _, l := range listNames {
		n.put(Asset{ID: KindList + "/" + slug(l), Title: l}, "list made")
	}
}

// put queues the next version of an asset. Its version is given when its turn comes.
func (n *newsroom) put(a Asset, what string) {
	n.edit(a.ID, what, func(*Asset) string { return "" }, &a)
}

// edit queues a change of the newest version there will be by then. f changes it, and returns a line to tell. Without a
// first version, an asset that does not exist is left alone.
func (n *newsroom) edit(id, what string, f func(a *Asset) string, first *Asset) {
	n.queue = append(n.queue, func() (story, bool) {
		now, ok := n.assets[id]
		a := now.Asset
		if !ok || now.Deleted {
			if first == nil {
				return story{}, false
			}
			a = *first
		}
		a.Refs = slices.Clone(a.Refs)
		a.Version = now.Version + 1
		tell := f(&a)
		if !ok || now.Deleted {
			n.live[Kind(id)] = append(n.live[Kind(id)], id)
		}
		n.assets[id] = Newest{Asset: a}
		return story{change: change{asset: a}, what: what, tell: tell}, true
	})
}

func (n *newsroom) remove(id, what, tell string) {
	n.queue = append(n.queue, func() (story, bool) {
		now := n.assets[id]
		if now.Version == 0 || now.Deleted {
			return story{}, false
		}
		gone := Asset{ID: id, Version: now.Version + 1}
		n.assets[id] = Newest{Asset: gone, Deleted: true}
		n.live[Kind(id)] = slices.DeleteFunc(n.live[Kind(id)], func(other string) bool { return other == id })
		return story{change: change{asset: gone, delete: true}, what: what, tell: tell}, true
	})
}

// story returns the next thing that happens.
func (n *newsroom) story() story {
	for {
		for len(n.queue) > 0 {
			f := n.queue[0]
			n.queue = n.queue[1:]
			if s, ok := f(); ok {
				return s
			}
		}
		n.happen()
	}
}

// happen queues something.
func (n *newsroom) happen() {
	x := n.rng.IntN(1000)
	for _, h := range []struct {
		weight int
		do     func()
	}{
		{380, n.write}, {260, n.correct}, {90, n.headline}, {90, n.caption}, {30, n.link}, {30, n.fillList},
		{20, n.rename}, {10, n.renameTag}, {25, n.withdraw}, {20, n.publishAgain}, {8, n.deleteArticle},
		{7, n.deleteImage}, {30, n.repeatOld},
	} {
		if x -= h.weight; x < 0 {
			h.do()
			return
		}
	}
}

// write makes an article with its images: in the order of what needs what, as a draft first; and sometimes the image
// last.
func (n *newsroom) write() {
	n.next++
	title := fmt.Sprintf("%s %s %s", n.of(places), n.of(verbs), n.of(things))
	id := fmt.Sprintf("%s/%s-%d", KindArticle, slug(title), n.next)
	author := n.skewed(KindByline)
	refs := []Ref{{"byline", author}}
	if n.rng.IntN(5) == 0 {
		refs = append(refs, Ref{"byline", n.skewed(KindByline)})
	}
	image := fmt.Sprintf("%s/photo-%d", KindImage, n.next)
	photo := func() {
		n.put(Asset{
			ID: image, Title: "The " + strings.ToLower(strings.Fields(title)[0]) + " this week", Text: n.of(sentences),
			URL: fmt.Sprintf("https://images.example/%d.jpg", n.next), Refs: []Ref{{"byline", n.skewed(KindByline)}},
		}, "image added")
	}
	refs = append(refs, Ref{"lead", image}, Ref{"tag", n.skewed(KindTag)}, Ref{"tag", n.skewed(KindTag)})
	if related, ok := n.recent(); ok && n.rng.IntN(6) == 0 {
		refs = append(refs, Ref{"related", related})
	}
	if n.rng.IntN(15) == 0 {
		refs = append(refs, Ref{"list", n.of(n.live[KindList])})
	}
	late := n.rng.IntN(12) == 0
	if !late {
		photo()
	}
	a := Asset{ID: id, Title: title, Text: n.of(sentences) + " " + n.of(sentences), Refs: slices.Compact(refs)}
	n.put(a, "draft written")
	n.edit(id, "article published", func(a *Asset) string { a.Published = true; return "" }, nil)
	if late {
		photo()
	}
}

func (n *newsroom) correct() {
	if id, ok := n.recent(); ok {
		n.edit(id, "text corrected", func(a *Asset) string {
			a.Text = n.of(sentences) + " " + n.of(sentences) + " An earlier version of this article was wrong."
			return ""
		}, nil)
	}
}

func (n *newsroom) headline() {
	if id, ok := n.recent(); ok {
		n.edit(id, "headline changed", func(a *Asset) string {
			a.Title = strings.Fields(a.Title)[0] + " " + n.of(verbs) + " " + n.of(things)
			return ""
		}, nil)
	}
}

func (n *newsroom) caption() {
	if ids := n.live[KindImage]; len(ids) > 0 {
		n.edit(n.of(ids), "caption changed", func(a *Asset) string {
			a.Text = n.of(sentences) + " (archive)"
			return ""
		}, nil)
	}
}

// link makes two articles refer to each other, which is a cycle.
func (n *newsroom) link() {
	one, ok1 := n.recent()
	two, ok2 := n.recent()
	if !ok1 || !ok2 || one == two {
		return
	}
	for _, pair := range [][2]string{{one, two}, {two, one}} {
		n.edit(pair[0], "articles linked", func(a *Asset) string {
			a.Refs = slices.DeleteFunc(a.Refs, func(r Ref) bool { return r.Role == "related" })
			a.Refs = append(a.Refs, Ref{"related", pair[1]})
			return ""
		}, nil)
	}
}

func (n *newsroom) fillList() {
	n.edit(n.of(n.live[KindList]), "list changed", func(a *Asset) string {
		a.Refs = a.Refs[:0]
		for range listLength {
			if id, ok := n.recent(); ok && !slices.Contains(a.Refs, Ref{"item", id}) {
				a.Refs = append(a.Refs, Ref{"item", id})
			}
		}
		return ""
	}, nil)
}

func (n *newsroom) rename() {
	id := n.skewed(KindByline)
	n.edit(id, "author renamed", func(a *Asset) string {
		old := a.Title
		for a.Title == old {
			a.Title = strings.Fields(a.Title)[0] + " " + n.of(lastNames)
		}
		return fmt.Sprintf("%s renamed, %q is now %q", id, old, a.Title)
	}, nil)
}

func (n *newsroom) renameTag() {
	id := n.skewed(KindTag)
	n.edit(id, "tag renamed", func(a *Asset) string {
		old := a.Title
		a.Title = strings.Fields(a.Title)[0] + " & " + n.of(tagNames)
		return fmt.Sprintf("%s renamed, %q is now %q", id, old, a.Title)
	}, nil)
}

func (n *newsroom) withdraw() {
	if id, ok := n.recent(); ok && n.assets[id].Published {
		n.edit(id, "article unpublished", func(a *Asset) string { a.Published = false; return id + " unpublished" }, nil)
	}
}

func (n *newsroom) publishAgain() {
	for _, id := range n.live[KindArticle] {
		if !n.assets[id].Published {
			n.edit(id, "article published again", func(a *Asset) string { a.Published = true; return "" }, nil)
			return
		}
	}
}

func (n *newsroom) deleteArticle() {
	if id, ok := n.recent(); ok {
		n.remove(id, "article deleted", id+" deleted")
	}
}

func (n *newsroom) deleteImage() {
	if ids := n.live[KindImage]; len(ids) > 20 {
		id := n.of(ids)
		n.remove(id, "image deleted", id+" deleted")
	}
}

// repeatOld sends a version again that there is a newer one of, as a system does that tries again after a timeout.
func (n *newsroom) repeatOld() {
	if id, ok := n.recent(); ok {
		n.queue = append(n.queue, func() (story, bool) {
			a := n.assets[id].Asset
			if a.Version < 2 {
				return story{}, false
			}
			a.Version--
			a.Title, a.Published = "THIS VERSION IS OLD", true
			return story{change: change{asset: a}, what: "old version repeated", repeat: true}, true
		})
	}
}

func (n *newsroom) of(list []string) string { return list[n.rng.IntN(len(list))] }

// skewed returns an asset of a kind; a few of them come far more often than the others.
func (n *newsroom) skewed(kind string) string {
	ids := n.live[kind]
	x := n.rng.Float64()
	return ids[int(x*x*float64(len(ids)))]
}

// recent returns an article, mostly a young one.
func (n *newsroom) recent() (string, bool) {
	ids := n.live[KindArticle]
	if len(ids) == 0 {
		return "", false
	}
	if n.rng.IntN(10) > 0 {
		ids = ids[max(0, len(ids)-recentWindow):]
	}
	return n.of(ids), true
}

func slug(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	return strings.TrimSuffix(b.String(), "-")
}

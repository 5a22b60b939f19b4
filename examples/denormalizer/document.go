package main

// Document is an article with everything that it refers to, nested: what the denormalised topic holds. A reader needs
// nothing else to show the article.
type Document struct {
	ID      string `json:"id"`
	Role    string `json:"role,omitempty"` // what it is used as, in what it is a part of
	Version int64  `json:"version,omitempty"`
	Title   string `json:"title,omitempty"`
	Text    string `json:"text,omitempty"`
	URL     string `json:"url,omitempty"`
	// Stub tells why only the id is here, if so.
	Stub Stub `json:"stub,omitempty"`
	// Parts are what it refers to, in its order.
	Parts []Document `json:"parts,omitempty"`
	// Omitted is how many references are left out because the document would get too deep or too large.
	Omitted int `json:"omitted,omitempty"`
}

// Stub is the reason why a part of a document has only an id.
type Stub string

// The reasons.
const (
	StubMissing     Stub = "missing"     // not in the monolog, or not yet, or deleted
	StubUnpublished Stub = "unpublished" // an article that readers must not see
	StubCycle       Stub = "cycle"       // already on the way from the article down to here
	StubSize        Stub = "size"        // the document is large enough
	StubLink        Stub = "link"        // another article, which the partitioned form only names
)

// Limits bound documents, and the work that one record may cause.
type Limits struct {
	// Depth is how many references lead from an article to the deepest part of its document.
	Depth int
	// Nodes is how many assets a document may hold, stubs included.
	Nodes int
	// Bytes is how much their strings may take together. The article itself is always whole.
	Bytes int
	// Visits is how many assets one record, or one tick of the timer, may visit on the way from a changed asset to
	// the articles that use it. The rest waits in the pending store.
	Visits int
	// Edges is how many users of an asset one visit looks up.
	Edges int
}

// DefaultLimits are those of the program. A document stays below half a Kafka record of 1 MiB, and a record's work
// below some tens of milliseconds.
var DefaultLimits = Limits{Depth: 6, Nodes: 256, Bytes: 384 << 10, Visits: 128, Edges: 32}

// Lookup returns the newest of an asset, and whether it has been seen. Deleted ones may be returned as well.
type Lookup func(id string) (Newest, bool, error)

// part is a place in a document that is being filled.
type part struct {
	doc   *Document
	above *part
	depth int
}

func (p *part) repeats() bool {
	for up := p.above; up != nil; up = up.above {
		if up.doc.ID == p.doc.ID {
			return true
		}
	}
	return false
}

// Render makes the document of an article. It is a function of what look returns and nothing else: the denormaliser
// and the check from scratch both call it. Parts are filled in breadth first, so that what a limit cuts off is what is
// farthest from the article.
func Render(article Newest, l Limits, look Lookup) (Document, error) {
	var root Document
	root.ID = article.ID
	size := article.size()
	queue := fill(nil, &part{doc: &root}, article, l, 1)
	nodes := 1 + len(root.Parts)
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		a, ok, err := look(p.doc.ID)
		if err != nil {
			return root, err
		}
		switch {
		case !ok || a.Deleted:
			p.doc.Stub = StubMissing
		case Kind(a.ID) == KindArticle && !a.Published:
			p.doc.Stub = StubUnpublished
		case p.repeats():
			p.doc.Stub = StubCycle
		case size+a.size() > l.Bytes:
			p.doc.Stub = StubSize
		default:
			size += a.size()
			queue = fill(queue, p, a, l, nodes)
			nodes += len(p.doc.Parts)
		}
	}
	return root, nil
}

// fill puts an asset into its place, and its references into the queue as far as there is room for them.
func fill(queue []*part, p *part, a Newest, l Limits, nodes int) []*part {
	d := p.doc
	d.Version, d.Title, d.Text, d.URL = a.Version, a.Title, a.Text, a.URL
	room := max(0, min(len(a.Refs), l.Nodes-nodes))
	if p.depth >= l.Depth {
		room = 0
	}
	d.Omitted = len(a.Refs) - room
	if room == 0 {
		return queue
	}
	d.Parts = make([]Document, room)
	for i, r := range a.Refs[:room] {
		d.Parts[i] = Document{ID: r.ID, Role: r.Role}
		queue = append(queue, &part{doc: &d.Parts[i], above: p, depth: p.depth + 1})
	}
	return queue
}

package main

import (
	"bytes"
	"crypto/sha256"
	"strconv"
	"strings"
	"time"

	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// denormalizer follows the monolog and republishes an article whenever its document changes.
//
// For a record it stores the asset, brings the reverse references up to date, and then walks from the asset up along
// these references: every published article on the way is rendered again, and published if it became another one. The
// walk is bounded; what is left of it lies in Pending and is taken up by a timer.
//
// All of a record's effects, the documents, the rows and the position in the monolog, are in one transaction. A
// document always shows the newest of everything at the time of its rendering, so that taking up a walk later can only
// publish something newer, never something older.
type denormalizer struct {
	limits  Limits
	context *processor.Context[string, Document]
	assets  *state.KeyValueStore[string, Newest]
	usedBy  *state.KeyValueStore[edge, struct{}]
	hashes  *state.KeyValueStore[string, []byte]
	pending *state.KeyValueStore[string, Visit]
	next    string // where in Pending the next tick starts; only for fairness, so it may be lost
	scratch []byte
}

// drainInterval is how often the timer takes up pending visits.
const drainInterval = 20 * time.Millisecond

// Init opens the stores and starts the timer.
func (d *denormalizer) Init(c *processor.Context[string, Document]) error {
	d.context = c
	var err error
	if d.assets, err = Assets.Open(c); err != nil {
		return err
	}
	if d.usedBy, err = UsedBy.Open(c); err != nil {
		return err
	}
	if d.hashes, err = Hashes.Open(c); err != nil {
		return err
	}
	if d.pending, err = Pending.Open(c); err != nil {
		return err
	}
	_, err = c.Schedule(processor.WallClock, drainInterval, func(time.Time) error { return d.drain() })
	return err
}

// Process handles a record of the monolog. The changed asset itself is visited at once, so that breaking news does not
// wait behind the hundred thousand articles of a tag that was renamed.
func (d *denormalizer) Process(_ *processor.Context[string, Document], r processor.Record[string, Asset]) error {
	old, _, err := d.assets.Get(r.Key)
	if err != nil {
		return err
	}
	now, news, err := old.Accept(r)
	if err != nil || !news {
		return err
	}
	if err := d.relink(r.Key, old.Refs, now.Refs); err != nil {
		return err
	}
	if err := d.assets.Set(r.Key, now); err != nil {
		return err
	}
	w := d.newWalk()
	w.push(r.Key, Visit{
		Left: d.limits.Depth, Cause: r.Key, Version: now.Version, Time: r.Time.UnixMilli(), Path: []string{r.Key},
	})
	if err := w.run(); err != nil {
		return err
	}
	return w.spill()
}

// relink makes the reverse references those of an asset's newest version.
func (d *denormalizer) relink(user string, old, now []Ref) error {
	keep := make(map[string]bool, len(now))
	for _, r := range now {
		keep[r.ID] = true
		if err := d.usedBy.Set(edge{First: r.ID, Second: user}, struct{}{}); err != nil {
			return err
		}
	}
	for _, r := range old {
		if keep[r.ID] {
			continue
		}
		if err := d.usedBy.Delete(edge{First: r.ID, Second: user}); err != nil {
			return err
		}
	}
	return nil
}

// Headers of the denormalised topic: why a document was written.
const (
	// EventHeader is EventPublished, EventRepublished or EventWithdrawn.
	EventHeader = "event"
	// CauseHeader is the asset whose change caused it, an @ and the version.
	CauseHeader = "cause"
	// PathHeader is how the article depends on that asset: the ids from the cause to the article, " > " between them.
	PathHeader = "path"
)

// What a record of the denormalised topic does.
const (
	EventPublished   = "published"
	EventRepublished = "republished"
	EventWithdrawn   = "withdrawn"
)

const pathSeparator = " > "

// publish brings the denormalised topic up to date with one asset, if that is an article.
func (d *denormalizer) publish(id string, v *Visit, look Lookup) error {
	if Kind(id) != KindArticle {
		return nil
	}
	article, _, err := look(id)
	if err != nil {
		return err
	}
	have, published, err := d.hashes.Get(id)
	if err != nil {
		return err
	}
	if article.Deleted || !article.Published {
		if !published {
			return nil
		}
		if err := d.hashes.Delete(id); err != nil {
			return err
		}
		return d.forward(processor.Record[string, Document]{Key: id, Tombstone: true}, v, EventWithdrawn)
	}
	doc, err := Render(article, d.limits, look)
	if err != nil {
		return err
	}
	hash, err := d.hash(doc)
	if err != nil || bytes.Equal(have, hash) {
		return err
	}
	if err := d.hashes.Set(id, hash); err != nil {
		return err
	}
	event := EventPublished
	if published {
		event = EventRepublished
	}
	return d.forward(processor.Record[string, Document]{Key: id, Value: doc}, v, event)
}

func (d *denormalizer) forward(r processor.Record[string, Document], v *Visit, event string) error {
	r.Time = time.UnixMilli(v.Time).UTC()
	r.Headers = []processor.Header{
		{Key: EventHeader, Value: []byte(event)},
		{Key: CauseHeader, Value: []byte(causeOf(v.Cause, v.Version))},
		{Key: PathHeader, Value: []byte(strings.Join(v.Path, pathSeparator))},
	}
	return d.context.Forward(r)
}

// causeOf renders an asset and its version as CauseHeader has it.
func causeOf(id string, version int64) string { return id + "@" + strconv.FormatInt(version, 10) }

func (d *denormalizer) hash(doc Document) ([]byte, error) {
	b, err := Denormalized.Value().Append(d.scratch[:0], doc)
	if err != nil {
		return nil, err
	}
	d.scratch = b
	sum := sha256.Sum256(b)
	return sum[:], nil
}

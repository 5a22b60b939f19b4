package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"tailrace.dev/processor"
)

// Asset is one normalised thing of the newsroom, as it lies in the monolog under its own id: each edit is a new record
// with the whole asset and the next version. What it consists of are references to other assets, never copies.
type Asset struct {
	// ID is the kind, a slash and a name: byline/jane-doe.
	ID string `json:"id"`
	// Version counts the edits of this asset, from 1. Of two records of one asset the higher version is the newer one,
	// in whatever order they come.
	Version int64 `json:"version"`
	// Published tells that readers may see it. It means something for articles only.
	Published bool `json:"published,omitempty"`
	// Title is the headline of an article, the name of an author, the label of a tag.
	Title string `json:"title"`
	// Text is the body of an article, the caption of an image.
	Text string `json:"text,omitempty"`
	// URL is where the pixels of an image are.
	URL string `json:"url,omitempty"`
	// Refs are the assets that this one consists of, in the order in which a page shows them.
	Refs []Ref `json:"refs,omitempty"`
}

// Ref is a reference to another asset, which may not have been seen yet.
type Ref struct {
	Role string `json:"role"` // what the asset is used as: byline, lead, tag, related, list, item
	ID   string `json:"id"`
}

// Kinds of assets: what stands before the slash of an id.
const (
	KindArticle = "article"
	KindImage   = "image"
	KindByline  = "byline"
	KindTag     = "tag"
	KindList    = "list"
)

// Bounds of one asset. They keep a document, which nests many of them, within a Kafka record.
const (
	maxAssetBytes = 128 << 10 // of its strings, as JSON
	maxRefs       = 100
)

var idRule = regexp.MustCompile(`^(article|image|byline|tag|list)/[a-z0-9][a-z0-9-]{0,119}$`)

// ErrBadAsset marks an asset that does not belong into the monolog.
var ErrBadAsset = errors.New("denormalizer: bad asset")

func checkID(id string) error {
	if !idRule.MatchString(id) {
		return fmt.Errorf("%w: id %.150q: want article, image, byline, tag or list, a slash, and a-z, 0-9 and '-'",
			ErrBadAsset, id)
	}
	return nil
}

// Check returns what is wrong with an asset that lies in the monolog under the given key.
func (a *Asset) Check(key string) error {
	if err := checkID(a.ID); err != nil {
		return err
	}
	if a.ID != key {
		return fmt.Errorf("%w: %s lies under the key %.150q: key a record by its asset's id", ErrBadAsset, a.ID, key)
	}
	if a.Version < 1 {
		return fmt.Errorf("%w: %s has version %d: versions start at 1", ErrBadAsset, a.ID, a.Version)
	}
	if n := a.size(); n > maxAssetBytes {
		return fmt.Errorf("%w: %s has %d bytes, more than %d", ErrBadAsset, a.ID, n, maxAssetBytes)
	}
	if len(a.Refs) > maxRefs {
		return fmt.Errorf("%w: %s refers to %d assets, more than %d", ErrBadAsset, a.ID, len(a.Refs), maxRefs)
	}
	for _, r := range a.Refs {
		if err := checkID(r.ID); err != nil {
			return fmt.Errorf("%s, a reference: %w", a.ID, err)
		}
		if len(r.Role) > 40 {
			return fmt.Errorf("%w: %s: a role has %d bytes, more than 40", ErrBadAsset, a.ID, len(r.Role))
		}
	}
	return nil
}

// Kind returns what stands before the slash of an id.
func Kind(id string) string {
	kind, _, _ := strings.Cut(id, "/")
	return kind
}

// size returns how many bytes the asset's strings take as JSON.
func (a *Asset) size() int { return jsonLen(a.Title) + jsonLen(a.Text) + jsonLen(a.URL) }

// jsonLen is the length of a string as JSON, or a little more. Control characters and invalid UTF-8 grow sixfold, which
// is why a limit on the plain length would not bound a record.
func jsonLen(s string) int {
	n := len(s)
	for i := 0; i < len(s); {
		r, w := utf8.DecodeRuneInString(s[i:])
		switch {
		case r < ' ', r == '"', r == '\\', r == '\u2028', r == '\u2029', r == utf8.RuneError && w == 1:
			n += 5
		}
		i += w
	}
	return n
}

// VersionHeader is the header in which a tombstone, which has no value, carries the version that it deletes the asset
// at.
const VersionHeader = "version"

// Newest is what the denormaliser keeps of an asset. A deleted one stays as a row without content, so that an older
// version that comes late cannot bring it back.
type Newest struct {
	Asset
	Deleted bool `json:"deleted,omitempty"`
}

// Accept returns what is known of an asset after a record of it, and whether that is any news: a version that is not
// higher than what is known changes nothing.
func (n Newest) Accept(r processor.Record[string, Asset]) (Newest, bool, error) {
	if r.NoKey {
		return n, false, fmt.Errorf("%w: a record without a key: key it by the asset's id", ErrBadAsset)
	}
	if r.Tombstone {
		return n.delete(r)
	}
	if err := r.Value.Check(r.Key); err != nil {
		return n, false, err
	}
	if r.Value.Version <= n.Version {
		return n, false, nil
	}
	return Newest{Asset: r.Value}, true, nil
}

// delete is Accept of a tombstone. One without a version deletes what there is when its turn in the log comes.
func (n Newest) delete(r processor.Record[string, Asset]) (Newest, bool, error) {
	if err := checkID(r.Key); err != nil {
		return n, false, err
	}
	version := n.Version
	for _, h := range r.Headers {
		if h.Key != VersionHeader {
			continue
		}
		v, err := strconv.ParseInt(string(h.Value), 10, 64)
		if err != nil || v < 1 {
			return n, false, fmt.Errorf("%w: tombstone of %s: header %s is %.40q: want a number from 1",
				ErrBadAsset, r.Key, VersionHeader, h.Value)
		}
		version = v
	}
	if version < n.Version || version == 0 || (n.Deleted && version == n.Version) {
		return n, false, nil
	}
	return Newest{Asset: Asset{ID: r.Key, Version: version}, Deleted: true}, true, nil
}

// Package state holds the typed stores of stream processors: their declarations, their semantics, the layers of
// uncommitted and unflushed rows, and the interface of what keeps the rows on disk.
//
// A store is declared once, as a package-level value with its name and encodings, and opened in each task by whoever
// was connected to it:
//
//	var Latest = state.KeyValue("latest", serde.String, serde.JSON[Asset]())
//
// Its rows live in the changelog topic <application>-<store>-changelog; what is on the local disk is a cache of that
// topic which survives restarts. Everything a store holds is bytes, last write wins by row key, which is what makes
// restoring from any point of the changelog end in the same state.
package state

package memory

import "tailrace.dev/state"

// DeleteRange removes the rows with from <= key < to of a store; a nil bound is open.
func (b *Backend) DeleteRange(id state.StoreID, from, to []byte) error {
	c := b.Scan(id, from, to, false)
	defer c.Close()
	var w state.Write
	for c.Next() {
		w.Rows = append(w.Rows, state.Row{Store: id, Key: append([]byte(nil), c.Key()...)})
	}
	if err := c.Err(); err != nil {
		return err
	}
	return b.Write(w)
}

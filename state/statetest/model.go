package statetest

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tailrace.dev/state"
)

// model is what a backend should hold: rows by store and key.
type model struct {
	ids  []state.StoreID
	rows map[state.StoreID]map[string]string
	pos  map[state.StoreID]state.Position
}

// testModel compares the backend with plain maps over random sequences of calls. All sequences share one backend, since
// opening one costs more than a sequence; each has stores of its own.
func testModel(t *testing.T, s *subject) {
	sequence := 0
	rapid.Check(t, func(t *rapid.T) {
		sequence++
		m := &model{rows: map[state.StoreID]map[string]string{}, pos: map[state.StoreID]state.Position{}}
		for i := range 3 {
			id := s.register(t, fmt.Sprintf("model-%d-%d", sequence, i))
			m.ids = append(m.ids, id)
			m.rows[id] = map[string]string{}
		}
		store := rapid.SampledFrom(m.ids)
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) { s.write(t, m.write(t)) },
			"get": func(t *rapid.T) {
				id, key := store.Draw(t, "store"), keys.Draw(t, "key")
				s.wantRow(t, id, key, m.rows[id][key])
			},
			"scan": func(t *rapid.T) {
				id := store.Draw(t, "store")
				from, to := bounds.Draw(t, "from"), bounds.Draw(t, "to")
				s.wantScan(t, id, from, to, m.scan(id, from, to)...)
			},
			"position": func(t *rapid.T) {
				id := store.Draw(t, "store")
				if p, ok := m.pos[id]; ok {
					s.wantPosition(t, id, &p)
				} else {
					s.wantPosition(t, id, nil)
				}
			},
			"snapshot": func(t *rapid.T) {
				id, reverse := store.Draw(t, "store"), rapid.Bool().Draw(t, "reverse")
				c, want := s.Scan(id, nil, nil, reverse), m.scan(id, nil, nil)
				s.write(t, m.write(t))
				if reverse {
					slices.Reverse(want)
				}
				if got := drain(t, c); !slices.Equal(got, want) {
					t.Fatalf("a cursor from before a write saw %q, want %q", got, want)
				}
			},
			"rarely": func(t *rapid.T) {
				switch rapid.IntRange(0, 20).Draw(t, "what") {
				case 0:
					s.reopen()
				case 1, 2:
					id := store.Draw(t, "store")
					if err := s.DropStore(id); err != nil {
						t.Fatalf("DropStore: %v", err)
					}
					clear(m.rows[id])
					delete(m.pos, id)
				case 3, 4, 5:
					id := store.Draw(t, "store")
					from, to := bounds.Draw(t, "from"), bounds.Draw(t, "to")
					if err := s.DeleteRange(id, from, to); err != nil {
						t.Fatalf("DeleteRange: %v", err)
					}
					maps.DeleteFunc(m.rows[id], func(key, _ string) bool {
						return key >= string(from) && (to == nil || key < string(to))
					})
				default:
					t.Skip()
				}
			},
			"": func(*rapid.T) {},
		})
		for _, id := range m.ids {
			s.wantScan(t, id, nil, nil, m.scan(id, nil, nil)...)
			// Later sequences should not wade through the rows of earlier ones.
			if err := s.DropStore(id); err != nil {
				t.Fatalf("DropStore: %v", err)
			}
		}
	})
}

// A small alphabet, so that keys meet and are prefixes of each other.
var (
	keys = rapid.OneOf(
		rapid.StringOfN(rapid.RuneFrom([]rune{0, 'a', 'b', 'ÿ'}), 0, 3, -1),
		rapid.SampledFrom(oddKeys),
	)
	bounds = rapid.Custom(func(t *rapid.T) []byte {
		if rapid.IntRange(0, 4).Draw(t, "open") == 0 {
			return nil
		}
		return []byte(keys.Draw(t, "bound"))
	})
)

// write draws a write and applies it to the model.
func (m *model) write(t *rapid.T) state.Write {
	var w state.Write
	for _, id := range m.ids {
		for _, key := range rapid.SliceOfNDistinct(keys, 0, 6, rapid.ID).Draw(t, "keys") {
			row := state.Row{Store: id, Key: []byte(key)}
			if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
				delete(m.rows[id], key)
			} else {
				value := rapid.StringN(1, 5, -1).Draw(t, "value")
				row.Value = []byte(value)
				m.rows[id][key] = value
			}
			w.Rows = append(w.Rows, row)
		}
		if rapid.Bool().Draw(t, "position") {
			m.pos[id] = state.Position{
				Next:        rapid.Int64Range(0, 1<<60).Draw(t, "next"),
				LeaderEpoch: rapid.Int32Range(-1, 1<<30).Draw(t, "epoch"),
			}
			if w.Positions == nil {
				w.Positions = map[state.StoreID]state.Position{}
			}
			w.Positions[id] = m.pos[id]
		}
	}
	return w
}

// scan returns what a forward scan should see.
func (m *model) scan(id state.StoreID, from, to []byte) []string {
	var want []string
	for _, key := range slices.Sorted(maps.Keys(m.rows[id])) {
		if key >= string(from) && (to == nil || key < string(to)) {
			want = append(want, key+"="+m.rows[id][key])
		}
	}
	return want
}

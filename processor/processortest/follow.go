package processortest

import (
	"slices"

	"tailrace.dev/processor"
	"tailrace.dev/state"
)

// followed is a store of a task that follows a topic.
type followed struct {
	processor.Followed
	store int
}

func (d *Driver) findFollowed(dr *driven) {
	for _, f := range d.topology.Followed(d.app, dr.id.Sub) {
		i := slices.IndexFunc(d.topology.Stores(dr.id.Sub), func(s state.AnySpec) bool { return s.Name() == f.Store })
		dr.followed = append(dr.followed, followed{f, i})
	}
}

// follow notes what a restore finds in the topics that stores of the task follow, when the committed offset of a topic
// moves. The records are in the log until then.
func (d *Driver) follow(dr *driven, topic string, next int64) {
	for _, f := range dr.followed {
		if f.Topic != topic {
			continue
		}
		for i := range d.log {
			r := d.log[i].record
			if r.Topic != topic || r.Offset < dr.offsets[topic] || r.Offset >= next {
				continue
			}
			key, row, ok := f.Row(&r)
			switch {
			case !ok:
			case row == nil:
				delete(dr.changelog[f.store], string(key))
			default:
				dr.changelog[f.store][string(key)] = row
			}
		}
	}
}

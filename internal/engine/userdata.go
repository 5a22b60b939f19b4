package engine

import (
	"encoding/binary"
	"errors"

	"tailrace.dev/internal/task"
)

// userData is what a member tells the leader of the group beside its subscription. Anyone who may join the group can
// write it, so decoding trusts nothing.
type userData struct {
	fingerprint     string
	transactionalID string
	subs            []subTopics
	tasks           []taskState
}

// subTopics says which topics a member processes together.
type subTopics struct {
	name   string
	topics []string
}

// taskState says that a member has state of a task on disk. position is the sum of its changelog positions, or -1
// while nobody looked.
type taskState struct {
	id       task.ID
	position int64
	lag      int64 // changelog records behind, -1 unknown; not sent yet
}

const (
	userDataVersion  = 1
	maxUserData      = 64 << 10
	maxUserDataName  = 512
	maxUserDataItems = 16 << 10
)

var errUserData = errors.New("engine: member's user data is malformed")

// append encodes u. Tasks that would make it too large are left out: they are only a preference.
func (u *userData) append(b []byte) []byte {
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = append(b, userDataVersion)
	str(u.fingerprint)
	str(u.transactionalID)
	b = binary.AppendUvarint(b, uint64(len(u.subs)))
	index := make(map[string]uint64, len(u.subs))
	for i, sub := range u.subs {
		index[sub.name] = uint64(i)
		str(sub.name)
		b = binary.AppendUvarint(b, uint64(len(sub.topics)))
		for _, t := range sub.topics {
			str(t)
		}
	}
	const taskBytes = 3 * binary.MaxVarintLen64
	tasks := u.tasks
	if room := max(0, (maxUserData-len(b)-binary.MaxVarintLen64)/taskBytes); len(tasks) > room {
		tasks = tasks[:room]
	}
	b = binary.AppendUvarint(b, uint64(len(tasks)))
	for _, t := range tasks {
		b = binary.AppendUvarint(b, index[t.id.Sub])
		b = binary.AppendUvarint(b, uint64(t.id.Partition))
		b = binary.AppendVarint(b, t.position)
	}
	return b
}

// parseUserData decodes what append made. Data of an unknown version decodes to nothing: such a member is served by
// its subscription alone.
func parseUserData(b []byte) (*userData, error) {
	if len(b) > maxUserData {
		return nil, errUserData
	}
	if len(b) == 0 || b[0] != userDataVersion {
		return &userData{}, nil
	}
	r := reader{b: b[1:]}
	u := &userData{fingerprint: r.str(), transactionalID: r.str()}
	for range r.count() {
		sub := subTopics{name: r.str()}
		for range r.count() {
			sub.topics = append(sub.topics, r.str())
			if r.bad {
				return nil, errUserData
			}
		}
		u.subs = append(u.subs, sub)
		if r.bad {
			return nil, errUserData
		}
	}
	for range r.count() {
		sub, partition, position := r.uvarint(), r.uvarint(), r.varint()
		if r.bad || sub >= uint64(len(u.subs)) || partition > 1<<31-1 {
			return nil, errUserData
		}
		id := task.ID{Sub: u.subs[sub].name, Partition: int32(partition)}
		u.tasks = append(u.tasks, taskState{id: id, position: position})
	}
	if r.bad {
		return nil, errUserData
	}
	return u, nil
}

// reader takes values off a slice; the first malformed one makes it bad, and all later ones zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() {
	r.bad, r.b = true, nil
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) count() int {
	n := r.uvarint()
	if n > maxUserDataItems || n > uint64(len(r.b)) { // an item takes a byte at least
		r.fail()
		return 0
	}
	return int(n)
}

func (r *reader) str() string {
	n := r.uvarint()
	if n > maxUserDataName || n > uint64(len(r.b)) {
		r.fail()
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

package engine

import (
	"encoding/binary"
	"errors"

	"tailrace.dev/internal/task"
)

// userData is what a member tells the leader of the group beside its subscription. Anyone who may join the group can
// write it, so decoding trusts nothing.
type userData struct {
	version         byte // of the encoding that it was read from; 0: of one that is not known
	fingerprint     string
	transactionalID string
	standbys        int // how many copies of each task the member is configured to want
	subs            []subTopics
	tasks           []taskState
}

// subTopics says which topics a member processes together.
type subTopics struct {
	name     string
	stateful bool // tasks have changelogs, so that a move may mean a restore, and a copy is worth keeping
	topics   []string
}

// taskState says that a member has state of a task. position is the sum of its changelog positions, lag how many
// changelog records it is behind; each is -1 while nobody looked.
type taskState struct {
	id            task.ID
	position, lag int64
	role          taskRole
	warmup        bool // the copy was ordered for a move to this member
}

// taskRole is what a member does with a task's state.
type taskRole byte

// The roles, by rising worth of the state.
const (
	roleDisk   taskRole = iota // left behind by an earlier assignment
	roleCopy                   // follows the changelogs
	roleWarm                   // follows them and came near, as the member itself judges
	roleActive                 // runs the task
)

// assignmentData is what the leader tells a member beside its partitions.
type assignmentData struct {
	// members holds the transactional ids of all members of the generation. If known is false it says nothing, because
	// some member's is not known.
	members []string
	known   bool
	copies  []copyOrder
	// unsettled tells that partitions are withheld from their next owners until their present ones have given them up
	// and joined again.
	unsettled bool
}

// copyOrder tells a member to keep a copy of a task.
type copyOrder struct {
	id     task.ID
	warmup bool // the task is to move here as soon as the copy is near
}

const (
	userDataVersion   = 2
	assignmentVersion = 1
	maxUserData       = 64 << 10
	maxUserDataName   = 512
	maxUserDataItems  = 16 << 10
)

var (
	errUserData       = errors.New("engine: member's user data is malformed")
	errAssignmentData = errors.New("engine: leader's assignment data is malformed")
)

func appendStr(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// append encodes u. Tasks that would make it too large are left out, those with the best state last: they are only a
// preference.
func (u *userData) append(b []byte) []byte {
	begin := len(b)
	b = append(b, userDataVersion)
	b = appendStr(b, u.fingerprint)
	b = appendStr(b, u.transactionalID)
	b = binary.AppendUvarint(b, uint64(max(0, u.standbys)))
	b = binary.AppendUvarint(b, uint64(len(u.subs)))
	index := make(map[string]uint64, len(u.subs))
	for i, sub := range u.subs {
		index[sub.name] = uint64(i)
		b = appendStr(b, sub.name)
		b = appendBool(b, sub.stateful)
		b = binary.AppendUvarint(b, uint64(len(sub.topics)))
		for _, t := range sub.topics {
			b = appendStr(b, t)
		}
	}
	room := maxUserData - (len(b) - begin) - binary.MaxVarintLen64
	if room < 0 {
		bare := *u
		bare.subs, bare.tasks = nil, nil
		return bare.append(b[:begin])
	}
	var tasks []byte
	n := 0
	for role := roleActive; n < maxUserDataItems; role-- {
		for _, t := range u.tasks {
			if t.role != role || n == maxUserDataItems {
				continue
			}
			at := len(tasks)
			tasks = binary.AppendUvarint(tasks, index[t.id.Sub])
			tasks = binary.AppendUvarint(tasks, uint64(t.id.Partition))
			tasks = append(tasks, byte(t.role)<<1)
			if t.warmup {
				tasks[len(tasks)-1] |= 1
			}
			tasks = binary.AppendVarint(tasks, t.position)
			tasks = binary.AppendVarint(tasks, t.lag)
			if len(tasks) > room {
				tasks = tasks[:at]
				break
			}
			n++
		}
		if role == roleDisk {
			break
		}
	}
	b = binary.AppendUvarint(b, uint64(n))
	return append(b, tasks...)
}

// parseUserData decodes what append made, of this version or the one before. Data of an unknown version decodes to
// nothing: such a member is served by its subscription alone.
func parseUserData(b []byte) (*userData, error) {
	if len(b) > maxUserData {
		return nil, errUserData
	}
	if len(b) == 0 || b[0] < 1 || b[0] > userDataVersion {
		return &userData{}, nil
	}
	r := reader{b: b[1:]}
	u := &userData{version: b[0], fingerprint: r.str(), transactionalID: r.str()}
	if u.version >= 2 {
		u.standbys = int(min(r.uvarint(), maxUserDataItems))
	}
	for range r.count() {
		sub := subTopics{name: r.str()}
		if u.version >= 2 {
			sub.stateful = r.byte() == 1
		}
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
		t := taskState{lag: -1}
		sub, partition := r.uvarint(), r.uvarint()
		if u.version >= 2 {
			role := r.byte()
			t.role, t.warmup = taskRole(role>>1), role&1 == 1
		}
		t.position = r.varint()
		if u.version >= 2 {
			t.lag = r.varint()
		}
		if r.bad || sub >= uint64(len(u.subs)) || partition > 1<<31-1 || t.role > roleActive {
			return nil, errUserData
		}
		t.id = task.ID{Sub: u.subs[sub].name, Partition: int32(partition)}
		u.tasks = append(u.tasks, t)
	}
	if r.bad {
		return nil, errUserData
	}
	return u, nil
}

// append encodes a. When the members do not fit, none are named; copies that do not fit are left out.
func (a *assignmentData) append(b []byte) []byte {
	begin := len(b)
	b = append(b, assignmentVersion)
	size := 0
	for _, id := range a.members {
		size += len(id) + binary.MaxVarintLen16
	}
	fits := a.known && size < maxUserData/2 && len(a.members) < maxUserDataItems
	b = appendBool(b, fits)
	if fits {
		b = binary.AppendUvarint(b, uint64(len(a.members)))
		for _, id := range a.members {
			b = appendStr(b, id)
		}
	}
	room := maxUserData - (len(b) - begin) - binary.MaxVarintLen64 - 1
	var copies []byte
	n := 0
	for _, c := range a.copies {
		at := len(copies)
		copies = appendStr(copies, c.id.Sub)
		copies = binary.AppendUvarint(copies, uint64(c.id.Partition))
		copies = appendBool(copies, c.warmup)
		if len(copies) > room || n == maxUserDataItems {
			copies = copies[:at]
			break
		}
		n++
	}
	b = binary.AppendUvarint(b, uint64(n))
	b = append(b, copies...)
	return appendBool(b, a.unsettled)
}

// parseAssignmentData decodes what append made. A leader of another version may have written nothing, or something
// that is not known: then there is nothing.
func parseAssignmentData(b []byte) (*assignmentData, error) {
	if len(b) > maxUserData {
		return nil, errAssignmentData
	}
	if len(b) == 0 || b[0] != assignmentVersion {
		return &assignmentData{}, nil
	}
	r := reader{b: b[1:]}
	a := &assignmentData{known: r.byte() == 1}
	if a.known {
		for range r.count() {
			a.members = append(a.members, r.str())
			if r.bad {
				return nil, errAssignmentData
			}
		}
	}
	for range r.count() {
		sub, partition, warmup := r.str(), r.uvarint(), r.byte() == 1
		if r.bad || partition > 1<<31-1 {
			return nil, errAssignmentData
		}
		a.copies = append(a.copies, copyOrder{task.ID{Sub: sub, Partition: int32(partition)}, warmup})
	}
	a.unsettled = !r.bad && len(r.b) > 0 && r.byte() == 1 // a leader of an earlier version ends here
	if r.bad {
		return nil, errAssignmentData
	}
	return a, nil
}

// reader takes values off a slice; the first malformed one makes it bad, and all later ones zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() {
	r.bad, r.b = true, nil
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
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

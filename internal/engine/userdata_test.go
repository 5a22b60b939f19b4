package engine

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"tailrace.dev/internal/task"
)

func sampleUserData() userData {
	return userData{
		version: userDataVersion, fingerprint: "f", transactionalID: "app-1", standbys: 2,
		subs: []subTopics{{"a", true, []string{"a", "a2"}}, {"b", false, []string{"b"}}},
		tasks: []taskState{
			{task.ID{Sub: "a", Partition: 3}, 17, 0, roleActive, false}, {task.ID{Sub: "b", Partition: 0}, -1, -1, roleDisk, false},
		},
	}
}

func TestUserDataRoundTrip(t *testing.T) {
	u := sampleUserData()
	got, err := parseUserData(u.append(nil))
	if err != nil || !reflect.DeepEqual(*got, u) {
		t.Errorf("got %+v, %v", got, err)
	}
	for i := range 20000 {
		u.tasks = append(u.tasks, taskState{task.ID{Sub: "a", Partition: int32(i)}, 1 << 40, 1 << 20, roleCopy, true})
	}
	b := u.append(nil)
	if len(b) > maxUserData {
		t.Errorf("%d bytes", len(b))
	}
	if got, err := parseUserData(b); err != nil || len(got.tasks) < 2000 || got.tasks[0].role != roleActive {
		t.Errorf("%v; %d tasks", err, len(got.tasks))
	}
	if got, err := parseUserData([]byte{99, 1, 2}); err != nil || got.fingerprint != "" || got.version != 0 {
		t.Errorf("unknown version: %v, %v", got, err)
	}
}

// TestUserDataOfTheVersionBefore reads what members of the first version say.
func TestUserDataOfTheVersionBefore(t *testing.T) {
	b := []byte{1}
	b = appendStr(appendStr(b, "f"), "app-1")
	b = appendStr(binary.AppendUvarint(b, 1), "a")
	b = appendStr(binary.AppendUvarint(b, 1), "in")
	b = binary.AppendUvarint(b, 1)
	b = binary.AppendVarint(binary.AppendUvarint(binary.AppendUvarint(b, 0), 7), -1)
	want := userData{
		version: 1, fingerprint: "f", transactionalID: "app-1", subs: []subTopics{{"a", false, []string{"in"}}},
		tasks: []taskState{{task.ID{Sub: "a", Partition: 7}, -1, -1, roleDisk, false}},
	}
	if got, err := parseUserData(b); err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestAssignmentDataRoundTrip(t *testing.T) {
	a := assignmentData{known: true, members: []string{"app-1", "app-2"}, copies: []copyOrder{
		{task.ID{Sub: "a", Partition: 3}, true}, {task.ID{Sub: "b", Partition: 0}, false},
	}}
	got, err := parseAssignmentData(a.append(nil))
	if err != nil || !reflect.DeepEqual(*got, a) {
		t.Errorf("got %+v, %v", got, err)
	}
	for i := range 30000 {
		a.copies = append(a.copies, copyOrder{task.ID{Sub: "a", Partition: int32(i)}, false})
	}
	if b := a.append(nil); len(b) > maxUserData {
		t.Errorf("%d bytes", len(b))
	}
	for i := range 4000 {
		a.members = append(a.members, fmt.Sprint(strings.Repeat("m", 20), i))
	}
	b := a.append(nil)
	if got, err := parseAssignmentData(b); err != nil || got.known || len(b) > maxUserData {
		t.Errorf("%d bytes, members known: %v, %v", len(b), got.known, err)
	}
	if got, err := parseAssignmentData([]byte{9, 9}); err != nil || got.known || len(got.copies) > 0 {
		t.Errorf("unknown version: %+v, %v", got, err)
	}
}

// FuzzUserData feeds the decoder what any member of the group could send.
func FuzzUserData(f *testing.F) {
	u := sampleUserData()
	f.Add(u.append(nil))
	f.Add([]byte{})
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{2, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := parseUserData(b)
		if err != nil {
			return
		}
		again, err := parseUserData(u.append(nil))
		if err != nil {
			t.Fatalf("not read back: %v", err)
		}
		if again.fingerprint != u.fingerprint || len(again.subs) != len(u.subs) {
			t.Fatalf("%v became %v", u, again)
		}
	})
}

// FuzzAssignmentData feeds the decoder what any leader of the group could send.
func FuzzAssignmentData(f *testing.F) {
	a := assignmentData{known: true, members: []string{"x"}, copies: []copyOrder{{task.ID{Sub: "a", Partition: 3}, true}}}
	f.Add(a.append(nil))
	f.Add([]byte{1, 1, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAssignmentData(b)
		if err != nil {
			return
		}
		again, err := parseAssignmentData(a.append(nil))
		if err != nil {
			t.Fatalf("not read back: %v", err)
		}
		if len(again.copies) > len(a.copies) {
			t.Fatalf("%v became %v", a, again)
		}
	})
}

package conformance

import (
	"testing"

	"tailrace.dev/processor/processortest"
)

// TestCasesOverCommitsAndRestarts replays the cases with other commits, and with a restart at every input: what comes out
// is the same, and so are the times of operators, the windows that are open and what waits.
func TestCasesOverCommitsAndRestarts(t *testing.T) {
	ways := []struct {
		name string
		each func(d *processortest.Driver, last bool)
	}{
		{"one commit", func(d *processortest.Driver, last bool) {
			if last {
				d.Commit()
			}
		}},
		{"restarts", func(d *processortest.Driver, _ bool) {
			d.Commit()
			d.Crash()
		}},
		{"crashes before the commit", func(d *processortest.Driver, _ bool) {
			d.Crash()
			d.Commit()
		}},
		{"crashes on both sides of the commit", func(d *processortest.Driver, _ bool) {
			d.Crash()
			d.Crash()
			d.Commit()
			d.Crash()
		}},
	}
	for _, file := range caseFiles(t) {
		c := loadCase(t, file)
		build := topologies[c.Spec.Op]
		if build == nil || len(c.Inputs) == 0 {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			want := pipe(t, c, build)
			for _, way := range ways {
				got := pipeEach(t, c, build, way.each, processortest.CommitManually())
				for _, m := range compareGroups("topic", timeless(want.records), timeless(got.records), "topic") {
					t.Errorf("%s: %s", way.name, m)
				}
				for _, m := range compareRows("final store", byKey(want.final), byKey(got.final)) {
					t.Errorf("%s: %s", way.name, m)
				}
			}
		})
	}
}

// timeless leaves out which input a record came after, which the commits change.
func timeless(rows []row) []row {
	out := make([]row, len(rows))
	for i, r := range rows {
		out[i] = make(row)
		for n, v := range r {
			if n != "after" {
				out[i][n] = v
			}
		}
	}
	return out
}

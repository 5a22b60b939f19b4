package engine

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestStopsDuringRebalance asks a member to stop while it waits for the others in a rebalance, in its first one and in a
// later one: it does not wait for them.
func TestStopsDuringRebalance(t *testing.T) {
	t.Parallel()
	for _, first := range []bool{true, false} {
		for _, static := range []bool{true, false} {
			t.Run(fmt.Sprintf("first %v, static %v", first, static), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t)
				c.onlyFake()
				c.topic("in", 2)
				c.topic("out", 1)
				r := newRig(t, c, countProgram("waits"))
				if !static {
					r.settings.InstanceID = ""
				}
				asked := make(chan struct{}, 100)
				hold := func() {
					c.fake.ControlKey(int16(kmsg.JoinGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
						c.fake.KeepControl()
						asked <- struct{}{}
						c.fake.SleepControl(func() { <-t.Context().Done() })
						return nil, nil, false
					})
				}
				var left atomic.Int64
				c.fake.ControlKey(int16(kmsg.LeaveGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
					c.fake.KeepControl()
					for _, m := range req.(*kmsg.LeaveGroupRequest).Members {
						if m.MemberID != "" {
							left.Add(1)
						}
					}
					return nil, nil, false
				})
				if first {
					hold()
				}
				p := r.start(t)
				if !first {
					c.feed("in", 0, 100, 5)
					c.verifyCounts("out", 100)
					hold()
					p.session().cl.ForceRebalance()
				}
				<-asked
				time.Sleep(100 * time.Millisecond)
				began := time.Now()
				p.stop()
				if d := time.Since(began); d > 10*time.Second {
					t.Errorf("the stop took %v", d)
				}
				if n := left.Load(); static && n > 0 || !static && !first && n == 0 { // no member yet at the first join
					t.Errorf("it left the group %d times", n)
				}
			})
		}
	}
}

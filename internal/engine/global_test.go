package engine

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"tailrace.dev/serde"
	"tailrace.dev/state"
	"tailrace.dev/state/memory"
)

// A broker that is slow to answer is no reason to take what is there so far for the whole of a global table.
func TestGlobalTablesWaitForASlowBroker(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds, and -short was asked for")
	}
	t.Parallel()
	c := newCluster(t)
	c.onlyFake()
	specs := make(map[string]*state.KeyValueSpec[string, string])
	p := countProgram("globals")
	for _, name := range []string{"colours", "sizes"} {
		c.topic(name, 3)
		for i := range 30 {
			r := &kgo.Record{Topic: name, Key: []byte(strconv.Itoa(i)), Value: []byte(name)}
			if err := c.cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		specs[name] = state.KeyValue(name, serde.String, serde.String)
		p.Globals = append(p.Globals, Global{Store: name, Topic: name})
	}
	p.OpenGlobal = func(_, _ string) (state.Backend, error) { return memory.New(), nil }
	var views map[string]*state.Replica
	p.SetReplicas = func(byStore map[string]*state.Replica) { views = byStore }
	e := &Engine{p: &p, cfg: &Settings{Brokers: c.addrs, InMemory: true, Now: time.Now}, log: zap.NewNop()}
	c.fake.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		c.fake.SleepControl(func() {
			select {
			case <-time.After(globalIdle + 500*time.Millisecond):
			case <-t.Context().Done():
			}
		})
		return nil, nil, false // and be answered as any
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	g, err := e.openGlobals(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.close(); err != nil {
			t.Error(err)
		}
	}()
	for name, spec := range specs {
		for i := range 30 {
			v, ok, err := spec.View(views[name]).Get(strconv.Itoa(i))
			if err != nil || !ok || v != name {
				t.Errorf("%s %d: %q, %t, %v", name, i, v, ok, err)
			}
		}
	}
}

package engine

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kprom"
)

// namespace begins the name of every metric.
const namespace = "tailrace"

// metricDef is a metric that is read off the engine's status when it is asked for.
type metricDef struct {
	kind   prometheus.ValueType
	help   string
	labels []string
}

const (
	counterKind = prometheus.CounterValue
	gaugeKind   = prometheus.GaugeValue
)

// statusMetrics are read off the status, by name. Labels take their values from the configuration (topics, partitions,
// stores, tasks) or from fixed lists, so that their number is bounded whatever flows through.
var statusMetrics = map[string]metricDef{
	"state": {gaugeKind, "1 for the state that the application is in, 0 for the others.",
		[]string{"state"}},
	"joined":                {gaugeKind, "1 while the group has given this member an assignment.", nil},
	"live":                  {gaugeKind, "1 while the liveness check passes.", nil},
	"ready":                 {gaugeKind, "1 while the readiness check passes.", nil},
	"run_loop_idle_seconds": {gaugeKind, "For how long the run loop has not moved.", nil},
	"tasks": {gaugeKind, "Tasks of this process, by what it does for them and how far they are.",
		[]string{"role", "state"}},
	"records_processed_total": {counterKind, "Input records whose effects are committed.", nil},
	"outputs_total":           {counterKind, "Records written to topics other than changelogs, committed.", nil},
	"changes_total":           {counterKind, "Rows written to changelogs, committed.", nil},
	"commits_total":           {counterKind, "Commits, with or without a transaction.", nil},
	"aborts_total": {counterKind,
		"Transactions that were taken back; their records are processed again.", nil},
	"rebuilds_total":     {counterKind, "How often all memory was dropped and the client made anew.", nil},
	"offset_moves_total": {counterKind, "Positions of inputs that OnOutOfRange has moved.", nil},
	"lost_offsets_total": {counterKind, "Offsets that were left out by such moves.", nil},
	"lag_records": {gaugeKind, "Offsets between what is committed and the end of an input.",
		[]string{"topic", "partition"}},
	"restore_remaining_records": {gaugeKind,
		"Offsets that a store has left to read until it is restored, or follows as a standby.",
		[]string{"task", "store", "role"}},
	"restore_records_per_second": {gaugeKind, "Offsets per second of a restore that is under way.",
		[]string{"task", "store", "role"}},
	"global_remaining_records": {gaugeKind, "Offsets that a global table has left to load at the start.",
		[]string{"store"}},
	"state_bytes": {gaugeKind, "Roughly what the rows of a task take on disk, as of its last flush.",
		[]string{"task"}},
	"uncommitted_bytes": {gaugeKind, "Rows of the batches in progress.", nil},
	"unflushed_bytes":   {gaugeKind, "Committed rows that are not on disk yet.", nil},
	"calls_in_flight":   {gaugeKind, "Calls to services that are under way.", nil},
}

// The reasons and actions of skipped records.
var (
	skipReasons = []string{"decode", "process", "panic", "call"}
	skipActions = []string{"skip", "dead_letter"}
)

// metrics collects what the engine shows for Prometheus. It is registered as one collector, in a registry of its own
// and in the user's.
type metrics struct {
	e     *Engine
	descs map[string]*prometheus.Desc

	commitSeconds, flushSeconds prometheus.Histogram
	flushedRows                 prometheus.Counter
	skipped, dropped            *prometheus.CounterVec

	registry *prometheus.Registry

	mu      sync.Mutex
	clients map[string]*kprom.Metrics // present clients, by what they are for
}

// clientRoles are the Kafka clients that are measured. Those of restores come and go too fast to be.
var clientRoles = []string{"member", "admin", "global"}

func newMetrics(e *Engine) *metrics {
	m := &metrics{
		e: e, descs: make(map[string]*prometheus.Desc, len(statusMetrics)), clients: make(map[string]*kprom.Metrics),
		registry: prometheus.NewRegistry(),
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "commit_duration_seconds",
			Help:    "How long commits take, the wait for the tasks to reach a boundary not included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		flushSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "flush_duration_seconds",
			Help:    "How long it takes to write the committed rows of a task to disk.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		flushedRows: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "flushed_rows_total", Help: "Rows written to disk.",
		}),
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "skipped_records_total",
			Help: "Records that an error policy left out; one that is processed again counts again.",
		}, []string{"reason", "action"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "dropped_records_total",
			Help: "Records that an operator left out, late ones included.",
		}, []string{"reason"}),
	}
	for name, def := range statusMetrics {
		m.descs[name] = prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), def.help, def.labels, nil)
	}
	for _, reason := range skipReasons {
		for _, action := range skipActions {
			m.skipped.WithLabelValues(reason, action)
		}
	}
	for _, reason := range e.p.DropReasons {
		m.dropped.WithLabelValues(reason)
	}
	return m
}

// owned are the metrics that keep their own values.
func (m *metrics) owned() []prometheus.Collector {
	return []prometheus.Collector{m.commitSeconds, m.flushSeconds, m.flushedRows, m.skipped, m.dropped}
}

// register makes the metrics visible, in the engine's own registry and in the user's. The caller calls the function that
// it returns in the end.
func (m *metrics) register() (unregister func(), err error) {
	labels := prometheus.Labels{"app": m.e.p.App, "member": m.e.cfg.InstanceID}
	regs := []prometheus.Registerer{prometheus.WrapRegistererWith(labels, m.registry)}
	if m.e.cfg.Metrics != nil {
		regs = append(regs, prometheus.WrapRegistererWith(labels, m.e.cfg.Metrics))
	}
	undo := func() {}
	for _, reg := range regs {
		if err := reg.Register(m); err != nil {
			undo()
			return nil, fmt.Errorf("engine: register the metrics (two Apps with one registry need different application "+
				"ids or instance ids): %w", err)
		}
		before := undo
		undo = func() { reg.Unregister(m); before() }
	}
	return undo, nil
}

// Gatherer returns the engine's metrics and nothing else. They are empty outside of Run.
func (e *Engine) Gatherer() prometheus.Gatherer { return e.metrics.registry }

// CountSkipped counts a record that a policy left out. reason is "decode", "process", "panic" or "call".
func (e *Engine) CountSkipped(reason string, deadLetter bool) {
	if !slices.Contains(skipReasons, reason) {
		reason = "process"
	}
	action := skipActions[0]
	if deadLetter {
		action = skipActions[1]
	}
	e.metrics.skipped.WithLabelValues(reason, action).Inc()
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, name := range slices.Sorted(maps.Keys(m.descs)) {
		ch <- m.descs[name]
	}
	for _, c := range m.owned() {
		c.Describe(ch)
	}
	for _, role := range clientRoles {
		k := newClientMetrics(role)
		k.OnNewClient(nil) // makes the descriptions; nothing is measured
		k.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	s := m.e.Status()
	put := func(name string, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.descs[name], statusMetrics[name].kind, value, labels...)
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, state := range states {
		put("state", flag(s.State == state), state)
	}
	put("joined", flag(s.Joined))
	put("live", flag(s.Live))
	put("ready", flag(s.Ready))
	put("run_loop_idle_seconds", s.Idle.Seconds())
	put("records_processed_total", float64(s.Processed))
	put("outputs_total", float64(s.Outputs))
	put("changes_total", float64(s.Changes))
	put("commits_total", float64(s.Commits))
	put("aborts_total", float64(s.Aborts))
	put("rebuilds_total", float64(s.Rebuilds))
	put("offset_moves_total", float64(s.OffsetMoves))
	put("lost_offsets_total", float64(s.LostOffsets))
	put("uncommitted_bytes", float64(s.UncommittedBytes))
	put("unflushed_bytes", float64(s.UnflushedBytes))
	put("calls_in_flight", float64(s.Calls))
	for _, g := range s.Globals {
		put("global_remaining_records", float64(g.Remaining), g.Store)
	}
	var tasks [roles][taskStates]int
	for i := range s.Tasks {
		t := &s.Tasks[i]
		tasks[t.Role][t.State]++
		for _, in := range t.Inputs {
			if in.Lag >= 0 {
				put("lag_records", float64(in.Lag), in.Topic, fmt.Sprint(in.Partition))
			}
		}
		for _, r := range t.Restores {
			put("restore_remaining_records", float64(r.Remaining()), r.Task.String(), r.Store, r.Role.String())
			if !r.Done {
				put("restore_records_per_second", r.Rate, r.Task.String(), r.Store, r.Role.String())
			}
		}
		if len(t.Restores) > 0 && t.Role == RoleActive {
			put("state_bytes", float64(t.StateBytes), t.Task.String())
		}
	}
	for role := range roles {
		for state := range taskStates {
			put("tasks", float64(tasks[role][state]), role.String(), state.String())
		}
	}
	for _, c := range m.owned() {
		c.Collect(ch)
	}
	m.mu.Lock()
	clients := slices.Collect(maps.Values(m.clients))
	m.mu.Unlock()
	for _, k := range clients {
		k.Collect(ch)
	}
}

// clientHook measures a Kafka client for as long as it lives.
type clientHook struct {
	*kprom.Metrics
	m    *metrics
	role string
}

// newClientMetrics returns the metrics of a client. Histograms are native only: classic buckets would make hundreds of
// series for each broker.
func newClientMetrics(role string) *kprom.Metrics {
	return kprom.NewMetrics(namespace, kprom.Subsystem("kafka"), kprom.Registry(nil),
		kprom.WithStaticLabel(prometheus.Labels{"client": role}),
		kprom.FetchAndProduceDetail(kprom.ByTopic, kprom.Batches, kprom.Records, kprom.CompressedBytes,
			kprom.UncompressedBytes, kprom.ConsistentNaming),
		kprom.Histograms(kprom.RequestDurationE2E), kprom.NativeBucketsOnly())
}

// hook returns an option that measures a client that is about to be made.
func (m *metrics) hook(role string) kgo.Opt {
	if m == nil {
		return kgo.WithHooks()
	}
	return kgo.WithHooks(clientHook{newClientMetrics(role), m, role})
}

// OnNewClient implements kgo.HookNewClient.
func (h clientHook) OnNewClient(cl *kgo.Client) {
	h.Metrics.OnNewClient(cl)
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	h.m.clients[h.role] = h.Metrics
}

// OnClientClosed implements kgo.HookClientClosed.
func (h clientHook) OnClientClosed(*kgo.Client) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.m.clients[h.role] == h.Metrics {
		delete(h.m.clients, h.role)
	}
}

package engine

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
)

// unused are metrics of kprom's that only exist with options which are not set.
var unused = []string{
	"tailrace_kafka_write_wait_seconds", "tailrace_kafka_write_time_seconds", "tailrace_kafka_read_wait_seconds",
	"tailrace_kafka_read_time_seconds", "tailrace_kafka_request_throttled_seconds",
}

// TestMetricsDocumented compares docs/metrics.md with what is described to Prometheus: names and labels.
func TestMetricsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(tailrace_[a-z0-9_]+)` \\| [a-z]+ \\|([^|]*)\\|").FindAllSubmatch(page, -1) {
		labels := strings.FieldsFunc(string(row[2]), func(r rune) bool { return strings.ContainsRune("`, ", r) })
		slices.Sort(labels)
		documented[string(row[1])] = strings.Join(labels, ",")
	}

	e := &Engine{p: &Program{DropReasons: []string{"late"}}, cfg: &Settings{}}
	ch := make(chan *prometheus.Desc, 1000)
	newMetrics(e).Describe(ch)
	close(ch)
	parts := regexp.MustCompile(`fqName: "([^"]*)".*constLabels: \{([^}]*)\}, variableLabels: \{([^}]*)\}`)
	described := map[string]string{}
	for desc := range ch {
		m := parts.FindStringSubmatch(desc.String())
		if m == nil {
			t.Fatalf("cannot read %s", desc)
		}
		if slices.Contains(unused, m[1]) {
			continue
		}
		var labels []string
		for _, l := range strings.Split(m[2]+","+m[3], ",") {
			if name, _, _ := strings.Cut(l, "="); name != "" {
				labels = append(labels, name)
			}
		}
		slices.Sort(labels)
		described[m[1]] = strings.Join(labels, ",")
	}
	for name, labels := range described {
		if have, ok := documented[name]; !ok || have != labels {
			t.Errorf("docs/metrics.md has %s with the labels %q (there: %v), the code has %q", name, have, ok, labels)
		}
	}
	for name := range documented {
		if _, ok := described[name]; !ok {
			t.Errorf("docs/metrics.md has %s, the code has not", name)
		}
	}
}

func TestMetricsOfTwoApps(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	reg := prometheus.NewPedanticRegistry()
	var ps []*process
	for i := range 2 {
		app := fmt.Sprintf("m%d", i)
		in, out := app+"-in", app+"-out"
		c.topic(in, 2)
		c.topic(out, 2)
		program := countProgram(app)
		program.Subs[0].Name, program.Subs[0].Sources[0].Topic, program.Subs[0].Sinks[0] = in, in, out
		r := newRig(t, c, program)
		r.settings.Metrics = reg
		c.feed(in, 0, 100, 10)
		ps = append(ps, r.start(t))
	}
	for _, p := range ps {
		until(t, "all to be committed", func() bool { return p.status().Processed == 100 && p.status().Ready })
		until(t, "a flush", func() bool { return value(t, reg, "tailrace_flushed_rows_total", p) > 0 })
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.HasPrefix(p.Metric, "tailrace_kafka_") { // kprom's are as they are
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	for _, p := range ps {
		for name, want := range map[string]float64{
			"tailrace_records_processed_total": 100, "tailrace_outputs_total": 100, "tailrace_ready": 1, "tailrace_live": 1,
			"tailrace_joined": 1, "tailrace_aborts_total": 0, "tailrace_rebuilds_total": 0, "tailrace_state": 1,
			"tailrace_tasks": 2, "tailrace_lag_records": 0,
		} {
			if got := value(t, reg, name, p); got != want {
				t.Errorf("%s of %s is %v, want %v", name, p.e.p.App, got, want)
			}
		}
		own := gathered(t, p.e.Gatherer())
		if len(own["tailrace_commit_duration_seconds"].GetMetric()) != 1 ||
			own["tailrace_commit_duration_seconds"].Metric[0].Histogram.GetSampleCount() == 0 {
			t.Error("no commit was timed")
		}
		if value(t, p.e.Gatherer(), "tailrace_kafka_fetch_records_total", p) < 100 {
			t.Error("the client is not measured")
		}
		p.stop()
	}
	if all := gathered(t, reg); len(all) != 0 {
		t.Errorf("%d metrics are left after the end", len(all))
	}
}

func TestMetricsRegisteredTwice(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	reg := prometheus.NewRegistry()
	r := newRig(t, c, countProgram("twice"))
	r.settings.Metrics = reg
	e, err := New(r.program, r.settings)
	if err != nil {
		t.Fatal(err)
	}
	undo, err := e.metrics.register()
	if err != nil {
		t.Fatal(err)
	}
	p := r.start(t)
	if err := p.wait(); err == nil || !strings.Contains(err.Error(), "two Apps") {
		t.Errorf("error %v", err)
	}
	undo()
	if all := gathered(t, p.e.Gatherer()); len(all) != 0 {
		t.Errorf("the refused one has left %d metrics", len(all))
	}
}

func gathered(t *testing.T, g prometheus.Gatherer) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*dto.MetricFamily{}
	for _, f := range families {
		all[f.GetName()] = f
	}
	return all
}

// value returns the sum of a metric's values over all labels, for one application.
func value(t *testing.T, g prometheus.Gatherer, name string, p *process) (sum float64) {
	t.Helper()
	for _, m := range gathered(t, g)[name].GetMetric() {
		if slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool {
			return l.GetName() == "app" && l.GetValue() == p.e.p.App
		}) {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return sum
}

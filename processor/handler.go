package processor

import (
	"encoding/json"
	"io"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
)

// Limits of the handler.
const (
	maxScrapes = 4 // under way at the same time
)

// Handler returns an http.Handler that shows the App:
//
//	/livez     200 while the process is not stuck, also when the brokers are away; else 503
//	/readyz    200 when the group was joined, all tasks run, lag is below Config.ReadyLag and brokers answer; else 503
//	/metrics   the App's metrics for Prometheus, whether Config.Metrics is set or not
//	/status    the Status, as JSON
//	/topology  the topology as text; ?format=mermaid and ?format=dot draw it
//
// It answers GET and HEAD only, reads no body and changes nothing; it shows names of topics, stores and tasks, and
// neither records nor what Config.Kafka holds. Nothing serves it until it is mounted: on a server of the caller's, with
// http.StripPrefix below a path, or by Serve. It may be made before Run, and used after it.
func (a *App) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", a.serveLive)
	mux.HandleFunc("GET /readyz", a.serveReady)
	mux.HandleFunc("GET /status", a.serveStatus)
	mux.HandleFunc("GET /topology", a.serveTopology)
	mux.Handle("GET /metrics", promhttp.HandlerFor(gatherer(a.gather), promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes,
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		mux.ServeHTTP(w, r)
	})
}

type gatherer func() ([]*dto.MetricFamily, error)

// Gather implements prometheus.Gatherer.
func (g gatherer) Gather() ([]*dto.MetricFamily, error) { return g() }

var _ prometheus.Gatherer = gatherer(nil)

// gather returns the App's metrics; there are none outside of Run.
func (a *App) gather() ([]*dto.MetricFamily, error) {
	if e := a.engine.Load(); e != nil {
		return e.Gatherer().Gather()
	}
	return nil, nil
}

func (a *App) serveLive(w http.ResponseWriter, _ *http.Request) {
	s := a.Status()
	a.reply(w, s.Live, struct {
		Live   bool   `json:"live"`
		State  string `json:"state"`
		Reason string `json:"reason,omitempty"`
	}{s.Live, s.State, s.Stuck})
}

func (a *App) serveReady(w http.ResponseWriter, _ *http.Request) {
	s := a.Status()
	a.reply(w, s.Ready, struct {
		Ready   bool     `json:"ready"`
		State   string   `json:"state"`
		Missing []string `json:"missing,omitempty"`
	}{s.Ready, s.State, s.Missing})
}

func (a *App) serveStatus(w http.ResponseWriter, _ *http.Request) { a.reply(w, true, a.Status()) }

func (a *App) reply(w http.ResponseWriter, ok bool, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		a.config.Log.Error("cannot render an answer", zap.Error(err))
		http.Error(w, "cannot render the answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(append(b, '\n')) // a client that is gone has no use for the rest
}

func (a *App) serveTopology(w http.ResponseWriter, r *http.Request) {
	var text string
	switch r.URL.Query().Get("format") {
	case "", "text":
		text = a.topology.String()
	case "mermaid":
		text = a.topology.Mermaid()
	case "dot":
		text = a.topology.DOT()
	default:
		http.Error(w, "format is one of text, mermaid and dot", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, text) // as in reply
}

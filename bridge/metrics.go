package bridge

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the numbers of all feeds of a process. A nil *Metrics counts nothing.
type Metrics struct {
	state      *prometheus.GaugeVec
	position   *prometheus.GaugeVec
	lease      *prometheus.GaugeVec
	published  *prometheus.CounterVec
	skipped    *prometheus.CounterVec
	invalid    *prometheus.CounterVec
	failures   *prometheus.CounterVec
	resyncs    *prometheus.CounterVec
	losses     *prometheus.CounterVec
	differs    *prometheus.GaugeVec
	verifiedAt *prometheus.GaugeVec
	appends    *prometheus.HistogramVec
}

// NewMetrics registers the metrics with reg; registering twice with one registry panics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"tenant", "collection"}, labels...))
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, append([]string{"tenant", "collection"}, labels...))
		reg.MustRegister(g)
		return g
	}
	m := &Metrics{
		state:      gauge("clockbridge_feed_state", "State of the feed: 1 for the state that it is in, 0 for the others.", "state"),
		position:   gauge("clockbridge_feed_position", "Stream sequence of the feed's last message."),
		lease:      gauge("clockbridge_feed_lease_held", "1 if this instance holds the feed's lease and follows it, 0 if it stands by."),
		published:  counter("clockbridge_published_total", "Messages stored in the stream.", "type", "origin"),
		skipped:    counter("clockbridge_skipped_total", "Changes that were not published, because the stream has them (same) or newer ones (stale).", "reason"),
		invalid:    counter("clockbridge_invalid_total", "Unreadable changes that were kept aside."),
		failures:   counter("clockbridge_failures_total", "Passes that failed, by the state they led to.", "state"),
		resyncs:    counter("clockbridge_resyncs_total", "Deltas that were started anew.", "reason"),
		losses:     counter("clockbridge_lost_records_total", "Records whose messages the stream had lost and that are fetched again."),
		differs:    gauge("clockbridge_verify_differences", "Records about which stream and API differed when they were last compared; unchecked are those beyond the limit.", "kind"),
		verifiedAt: gauge("clockbridge_verify_timestamp_seconds", "When the stream was last compared with the API to the end, as a Unix time."),
		appends: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "clockbridge_append_duration_seconds",
			Help:    "Time from the first message of an append to its acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"tenant", "collection"}),
	}
	reg.MustRegister(m.appends)
	return m
}

func (m *Metrics) appended(cfg Config, fresh []message, took time.Duration) {
	if m == nil {
		return
	}
	m.appends.WithLabelValues(cfg.Tenant, cfg.Collection).Observe(took.Seconds())
	m.position.WithLabelValues(cfg.Tenant, cfg.Collection).Set(float64(fresh[len(fresh)-1].Position))
	upserts := 0
	for i := range fresh {
		if !fresh[i].Deleted {
			upserts++
		}
	}
	origin := fresh[0].origin
	m.published.WithLabelValues(cfg.Tenant, cfg.Collection, "upserted", origin).Add(float64(upserts))
	m.published.WithLabelValues(cfg.Tenant, cfg.Collection, "deleted", origin).Add(float64(len(fresh) - upserts))
}

func (m *Metrics) judged(cfg Config, t tally) {
	if m == nil {
		return
	}
	m.skipped.WithLabelValues(cfg.Tenant, cfg.Collection, "same").Add(float64(t.same))
	m.skipped.WithLabelValues(cfg.Tenant, cfg.Collection, "stale").Add(float64(t.stale))
	m.invalid.WithLabelValues(cfg.Tenant, cfg.Collection).Add(float64(t.invalid))
}

func (m *Metrics) leased(cfg Config, held bool) {
	if m == nil {
		return
	}
	value := 0.0
	if held {
		value = 1
	}
	m.lease.WithLabelValues(cfg.Tenant, cfg.Collection).Set(value)
}

func (m *Metrics) lost(cfg Config, records int) {
	if m != nil {
		m.losses.WithLabelValues(cfg.Tenant, cfg.Collection).Add(float64(records))
	}
}

func (m *Metrics) resynced(cfg Config, reason string) {
	if m != nil {
		m.resyncs.WithLabelValues(cfg.Tenant, cfg.Collection, reason).Inc()
	}
}

// verified shows a verification that came to its end.
func (m *Metrics) verified(cfg Config, r VerifyReport) {
	if m == nil || r.Error != "" {
		return
	}
	for _, k := range Kinds {
		m.differs.WithLabelValues(cfg.Tenant, cfg.Collection, string(k)).Set(float64(r.Count(k)))
	}
	m.differs.WithLabelValues(cfg.Tenant, cfg.Collection, "unchecked").Set(float64(r.Unchecked))
	m.verifiedAt.WithLabelValues(cfg.Tenant, cfg.Collection).Set(float64(r.At.UnixMilli()) / 1000)
}

func (m *Metrics) failed(cfg Config, state State) {
	if m != nil {
		m.failures.WithLabelValues(cfg.Tenant, cfg.Collection, string(state)).Inc()
		m.entered(cfg, state)
	}
}

// entered shows the state that a feed is in.
func (m *Metrics) entered(cfg Config, state State) {
	if m == nil {
		return
	}
	for _, s := range States {
		value := 0.0
		if s == state {
			value = 1
		}
		m.state.WithLabelValues(cfg.Tenant, cfg.Collection, string(s)).Set(value)
	}
}

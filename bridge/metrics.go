package bridge

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DeltaLife is how long the API keeps a delta after the last request for it.
const DeltaLife = 72 * time.Hour

// Metrics are what has happened to one feed since it was made. What it is at the moment its Status says, and a Collector
// shows both. A Metrics is safe for use by many goroutines at once.
type Metrics struct {
	published    *prometheus.CounterVec
	same, stale  prometheus.Counter // skipped
	unreadable   prometheus.Counter
	retries      *prometheus.CounterVec
	resyncs      *prometheus.CounterVec
	losses       prometheus.Counter
	lostRecords  prometheus.Counter
	requests     *prometheus.CounterVec
	requestTimes prometheus.ObserverVec
	pollTime     prometheus.Observer
	appendTime   prometheus.Observer

	all []prometheus.Collector // of the above
}

// NewMetrics returns the metrics of a feed, all at nought: a counter that came into being with its first event would show
// no increase by it.
func NewMetrics(tenant, collection string) *Metrics {
	m := new(Metrics)
	feed := prometheus.Labels{"tenant": tenant, "collection": collection}
	counter := func(name, help string, by ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"tenant", "collection"}, by...))
		m.all = append(m.all, c)
		return c.MustCurryWith(feed)
	}
	histogram := func(name, help string, buckets []float64, by ...string) prometheus.ObserverVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, append([]string{"tenant", "collection"}, by...))
		m.all = append(m.all, h)
		return h.MustCurryWith(feed)
	}
	m.published = counter("clockbridge_published_changes_total", "Changes stored in the stream.", "type", "origin")
	skipped := counter("clockbridge_skipped_changes_total", "Changes that were not published, because the stream has them (same) or newer ones (stale).", "reason")
	m.unreadable = counter("clockbridge_unreadable_changes_total", "Changes that could not be read and were kept aside on the subject .invalid.").WithLabelValues()
	m.retries = counter("clockbridge_retries_total", "Passes that failed and are tried again after a pause, by the state they led to.", "state")
	m.resyncs = counter("clockbridge_resyncs_total", "Deltas that were started anew.", "reason")
	m.losses = counter("clockbridge_losses_total", "Times that the stream was found to have lost messages that it had acknowledged; each is repaired.").WithLabelValues()
	m.lostRecords = counter("clockbridge_lost_records_total", "Records whose messages the stream had lost and that are fetched again.").WithLabelValues()
	m.requests = counter("clockbridge_api_requests_total", "Requests sent to the API and its token endpoint, by HTTP status; none where no answer came.", "endpoint", "code")
	m.requestTimes = histogram("clockbridge_api_request_duration_seconds", "Time from a request to the header of its answer.", seconds, "endpoint")
	m.pollTime = histogram("clockbridge_poll_duration_seconds", "Time of a pass that ended well, from the first request to the last commit; the first pass walks the whole listing.", seconds).WithLabelValues()
	m.appendTime = histogram("clockbridge_append_duration_seconds", "Time of an append, from its first message to its acknowledgement.", prometheus.ExponentialBuckets(0.0005, 2, 14)).WithLabelValues()

	for _, origin := range []string{OriginSnapshot, OriginDelta, OriginResync, OriginRepair, OriginErasure} {
		m.published.WithLabelValues(TypeUpserted, origin)
		m.published.WithLabelValues(TypeDeleted, origin)
	}
	m.same, m.stale = skipped.WithLabelValues("same"), skipped.WithLabelValues("stale")
	for _, state := range []State{StateRetrying, StateUnauthorized, StateMisconfigured} {
		m.retries.WithLabelValues(string(state))
	}
	for _, reason := range resyncReasons {
		m.resyncs.WithLabelValues(reason)
	}
	for _, endpoint := range []string{endpointAPI, endpointToken} {
		m.requests.WithLabelValues(endpoint, "200")
		m.requestTimes.WithLabelValues(endpoint)
	}
	return m
}

// seconds are the buckets of what goes over a network and may take long.
var seconds = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

// Values of the label endpoint.
const (
	endpointAPI   = "api"
	endpointToken = "token"
)

// Requested counts a request to the API, or to the token endpoint: the HTTP status of its answer, 0 if none came, and the time until then.
func (m *Metrics) Requested(token bool, status int, took time.Duration) {
	endpoint, code := endpointAPI, "none"
	if token {
		endpoint = endpointToken
	}
	if status != 0 {
		code = strconv.Itoa(status)
	}
	m.requests.WithLabelValues(endpoint, code).Inc()
	m.requestTimes.WithLabelValues(endpoint).Observe(took.Seconds())
}

func (m *Metrics) appended(fresh []message, took time.Duration) {
	m.appendTime.Observe(took.Seconds())
	counts := map[[2]string]int{}
	for i := range fresh {
		kind := TypeUpserted
		if fresh[i].Deleted {
			kind = TypeDeleted
		}
		counts[[2]string{kind, fresh[i].origin}]++
	}
	for labels, n := range counts {
		m.published.WithLabelValues(labels[:]...).Add(float64(n))
	}
}

func (m *Metrics) judged(t tally) {
	m.same.Add(float64(t.same))
	m.stale.Add(float64(t.stale))
	m.unreadable.Add(float64(t.invalid))
}

func (m *Metrics) polled(took time.Duration) { m.pollTime.Observe(took.Seconds()) }

func (m *Metrics) retried(state State) { m.retries.WithLabelValues(string(state)).Inc() }

func (m *Metrics) resynced(reason string) { m.resyncs.WithLabelValues(reason).Inc() }

// lost counts a loss, and the records whose messages are known to be gone by it.
func (m *Metrics) lost(records int) {
	m.losses.Inc()
	m.lostRecords.Add(float64(records))
}

// What a Collector reckons when it is asked, so that an age grows while its feed hangs.
var (
	descState      = feedDesc("clockbridge_feed_state", "State of the feed: 1 for the state that it is in, 0 for the others.", "state")
	descLease      = feedDesc("clockbridge_feed_lease_held", "1 while this instance holds the feed's lease and follows it, 0 while it does not.")
	descPosition   = feedDesc("clockbridge_feed_position", "Stream sequence of the feed's last message.")
	descChanged    = feedDesc("clockbridge_feed_last_change_timestamp_seconds", "When the last change was stored in the stream, as a Unix time.")
	descAge        = feedDesc("clockbridge_feed_cursor_age_seconds", "Time since the API last answered for the feed's cursor.")
	descExpiry     = feedDesc("clockbridge_feed_cursor_expires_in_seconds", "Time until the API forgets the delta, 72 h after the last answer; negative once it is over.")
	descDiffers    = feedDesc("clockbridge_verify_differences", "Records about which stream and API differed when they were last compared; unchecked are those beyond the limit.", "kind")
	descVerifiedAt = feedDesc("clockbridge_verify_timestamp_seconds", "When the stream was last compared with the API to the end, as a Unix time.")
)

func feedDesc(name, help string, by ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"tenant", "collection"}, by...), nil)
}

// NewCollector shows to Prometheus whatever feeds there are when it is asked; of one that is gone nothing stays behind. An instance
// that stands by shows no more of a feed than that, beside what it has counted before.
func NewCollector(feeds func() []*Feed) prometheus.Collector { return collector{feeds} }

type collector struct{ feeds func() []*Feed }

// Describe is part of prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{descState, descLease, descPosition, descChanged, descAge, descExpiry, descDiffers, descVerifiedAt} {
		ch <- desc
	}
	for _, counted := range NewMetrics("", "").all {
		counted.Describe(ch)
	}
}

// Collect is part of prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, f := range c.feeds() {
		f.collect(ch)
		for _, counted := range f.cfg.Metrics.all {
			counted.Collect(ch)
		}
	}
}

// collect shows what the feed is at the moment.
func (f *Feed) collect(ch chan<- prometheus.Metric) {
	s, leased, verified := f.status.all()
	gauge := func(desc *prometheus.Desc, value float64, by ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append([]string{s.Tenant, s.Collection}, by...)...)
	}
	one := map[bool]float64{true: 1}
	for _, state := range States {
		gauge(descState, one[state == s.State], string(state))
	}
	gauge(descLease, one[leased])
	if s.State == StateStandby {
		return // the holder knows better
	}
	gauge(descPosition, float64(s.Position))
	if !s.ChangedAt.IsZero() {
		gauge(descChanged, unix(s.ChangedAt))
	}
	if !s.FetchedAt.IsZero() {
		age := time.Since(s.FetchedAt)
		gauge(descAge, age.Seconds())
		gauge(descExpiry, (DeltaLife - age).Seconds())
	}
	if verified == nil {
		return
	}
	for _, k := range Kinds {
		gauge(descDiffers, float64(verified.Count(k)), string(k))
	}
	gauge(descDiffers, float64(verified.Unchecked), "unchecked")
	gauge(descVerifiedAt, unix(verified.At))
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

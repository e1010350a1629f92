package bridge

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"clockbridge/protime"
	"clockbridge/store"
)

// verifier is a verification in progress. In its index the fields of an entry mean: Version, Date and Deleted what they always
// mean, of the last message; Position the sum of its data; Walk 1 if the listing showed the record.
type verifier struct {
	cfg    VerifyConfig
	feed   string
	stream *stream
	state  streamState
	room   int
	seed   maphash.Seed
	index  *store.Store
	latest string // date of a record that is alive in the stream
	report VerifyReport

	suspects []suspect // in the order of their last look
	pending  map[string]bool
}

// suspect is a difference that is not certain yet.
type suspect struct {
	Difference
	shown bool      // the listing showed the record
	at    time.Time // of the look that found it
	looks int
}

func newVerifier(cfg VerifyConfig) (*verifier, error) {
	switch {
	case !nameRE.MatchString(cfg.Tenant), !nameRE.MatchString(cfg.Collection):
		return nil, fmt.Errorf("verify %q of %q: both must be lower-case letters, digits and '-'", cfg.Collection, cfg.Tenant)
	case cfg.Source == nil || cfg.NATS == nil:
		return nil, errors.New("a verification needs a source and a NATS connection")
	case cfg.Patience < 0 || cfg.Limit < 0:
		return nil, errors.New("patience and limit of a verification must not be negative")
	}
	if cfg.Patience == 0 {
		cfg.Patience = DefaultPatience
	}
	if cfg.Limit == 0 {
		cfg.Limit = DefaultVerifyLimit
	}
	if cfg.Each == nil {
		cfg.Each = func(Difference) {}
	}
	if cfg.Progress == nil {
		cfg.Progress = func(VerifyProgress) {}
	}
	js, err := jetstream.New(cfg.NATS)
	if err != nil {
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	return &verifier{
		cfg:     cfg,
		feed:    cfg.Tenant + "/" + cfg.Collection,
		stream:  &stream{nc: cfg.NATS, js: js, name: StreamName(cfg.Tenant, cfg.Collection), codec: newCodec(cfg.Tenant, cfg.Collection, "")},
		room:    room(cfg.NATS),
		seed:    maphash.MakeSeed(),
		pending: map[string]bool{},
	}, nil
}

// readStream puts the last message of every record into the index. It need not be exact: what it gets wrong becomes a
// suspect, and those are looked at again. That it comes before the listing makes a record that is created meanwhile a
// suspect, and not one that is missed.
func (v *verifier) readStream(ctx context.Context) (err error) {
	if v.state, err = v.stream.look(ctx); err != nil || v.state.Messages == 0 {
		return err
	}
	var entries []store.Entry
	done := 0
	each := func(msg jetstream.Msg, meta *jetstream.MsgMetadata) error {
		m, err := v.decode(msg.Subject(), msg.Headers(), msg.Data(), meta.Sequence.Stream)
		if err != nil {
			return err
		}
		if m.invalid() {
			return nil
		}
		if !m.Deleted && m.Date > v.latest && isDate(m.Date) {
			v.latest = m.Date
		}
		m.Position, m.Walk = maphash.Bytes(v.seed, m.data), 0
		entries = append(entries, m.Entry)
		if len(entries) < maxRun && meta.NumPending > 0 {
			return nil
		}
		done += len(entries)
		v.cfg.Progress(VerifyProgress{PhaseStream, done, done + int(min(meta.NumPending, math.MaxInt32))})
		err = v.commit(entries)
		entries = entries[:0]
		return err
	}
	consumer := jetstream.OrderedConsumerConfig{FilterSubjects: []string{v.stream.codec.prefix + ".*"}, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy}
	err = v.persist(ctx, func() (bool, error) {
		last, err := v.stream.consume(ctx, consumer, readTimeout, each)
		if err == nil || last == 0 {
			return true, err
		}
		// Last messages come in the order of positions, so what is left is among those behind.
		consumer.DeliverPolicy, consumer.OptStartSeq = jetstream.DeliverByStartSequencePolicy, last+1
		if next, nerr := v.stream.get(ctx, last+1); next == nil && nerr == nil {
			return true, nil
		}
		return true, err
	})
	if err != nil {
		return fmt.Errorf("read stream %s: %w", v.stream.name, err)
	}
	if err := v.commit(entries); err != nil {
		return err
	}
	return v.walkIndex(func(store.Entry) error { v.report.Subjects++; return nil })
}

// decode is the codec's, but for a message that this feed cannot have written: that one says nothing about its record,
// which makes it a stale one.
func (v *verifier) decode(subject string, h nats.Header, data []byte, position uint64) (message, error) {
	m, err := v.stream.codec.decode(subject, h, data, position)
	if !errors.Is(err, errForeign) {
		return m, err
	}
	id, uerr := url.PathUnescape(strings.TrimPrefix(subject, v.stream.codec.prefix+"."))
	if uerr != nil || subject == v.stream.codec.prefix+"."+invalidToken || checkID(id) != "" {
		return message{Entry: store.Entry{ID: invalidKey}}, nil // of no record
	}
	return message{Entry: store.Entry{ID: id, Position: position}}, nil
}

func (v *verifier) commit(entries []store.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	return v.index.Commit(v.feed, store.Checkpoint{}, store.Checkpoint{}, entries)
}

// indexRun is how many entries of the index are held in memory at once.
const indexRun = 10 * maxRun

func (v *verifier) walkIndex(each func(store.Entry) error) error {
	for after := ""; ; {
		entries, err := v.index.Select(v.feed, after, indexRun, func(store.Entry) bool { return true })
		if err != nil || len(entries) == 0 {
			return err
		}
		for i := range entries {
			if err := each(entries[i]); err != nil {
				return err
			}
		}
		after = entries[len(entries)-1].ID
	}
}

// list walks the API's listing and compares every record with what the stream says.
func (v *verifier) list(ctx context.Context) error {
	for _, filter := range windows(v.cfg.Collection, v.cfg.Filter, time.Now(), v.latest) {
		err := v.persist(ctx, func() (bool, error) {
			before := v.report
			read, err := v.listWindow(ctx, filter)
			if err != nil {
				v.report = before // the window is walked again from its start
			}
			return read, err
		})
		if err != nil {
			return fmt.Errorf("list %s: %w", filter, err)
		}
	}
	return nil
}

// listWindow reports whether the API has shown anything.
func (v *verifier) listWindow(ctx context.Context, filter string) (read bool, err error) {
	var changes []protime.Change
	bytes := 0
	compare := func() error {
		err := v.compare(ctx, changes)
		v.cfg.Progress(VerifyProgress{PhaseList, v.report.Records, max(v.report.Subjects, v.report.Records)})
		changes, bytes = changes[:0], 0
		return err
	}
	for c, err := range v.cfg.Source.List(ctx, v.cfg.Collection, filter) {
		if err != nil {
			return read, err
		}
		read = true
		c = v.cfg.Privacy.apply(c)
		changes = append(changes, c)
		if bytes += len(c.Data); len(changes) == maxRun || bytes >= maxRunBytes {
			if err := compare(); err != nil {
				return read, err
			}
		}
	}
	return read, compare()
}

func (v *verifier) compare(ctx context.Context, changes []protime.Change) error {
	ids := make([]string, len(changes))
	for i := range changes {
		ids[i] = changes[i].ID
	}
	known, err := v.index.Lookup(v.feed, ids)
	if err != nil {
		return err
	}
	var shown []store.Entry
	for i := range changes {
		c, was := &changes[i], known[i]
		v.report.Records++
		if unreadable(*c, v.room) != "" {
			v.report.Unreadable++
			continue
		}
		if was.ID != "" && was.Walk == 0 {
			was.Walk = 1
			shown = append(shown, was)
		}
		if was.ID != "" && !was.Deleted && was.Version == c.Version && was.Position == maphash.Bytes(v.seed, c.Data) {
			continue
		}
		m, err := v.last(ctx, c.ID)
		if err != nil {
			return err
		}
		switch {
		case m == nil && v.state.Limited:
			v.report.Dropped++
			continue
		case forgotten(m, c):
			v.report.Forgotten++
			continue
		}
		v.suspect(suspect{Difference: v.judge(c.ID, c, m), shown: true})
	}
	return v.commit(shown)
}

// findPhantoms looks at every record that is alive in the stream and lies inside the filter, but that the listing did not
// show.
func (v *verifier) findPhantoms(ctx context.Context) error {
	return v.walkIndex(func(e store.Entry) error {
		if e.Walk != 0 || e.Deleted || !inside(v.cfg.Filter, e.Date) {
			return nil
		}
		if len(v.suspects) == v.cfg.Limit {
			v.report.Unchecked++
			return nil
		}
		d, err := v.look(ctx, e.ID, false)
		if err != nil {
			return err
		}
		v.suspect(suspect{Difference: d})
		return nil
	})
}

// suspect remembers a difference to look at it again.
func (v *verifier) suspect(s suspect) {
	switch {
	case s.Kind == "" || v.pending[s.ID]:
	case len(v.suspects) == v.cfg.Limit:
		v.report.Unchecked++
	default:
		s.at, s.looks = time.Now(), 1
		v.pending[s.ID] = true
		v.suspects = append(v.suspects, s)
	}
}

// maxLooks is how often a record is looked at that is different in another way every time.
const maxLooks = 6

// settle looks at each suspect again when the patience is over. One that is the same difference as before is certain.
func (v *verifier) settle(ctx context.Context) error {
	total := len(v.suspects)
	for ; len(v.suspects) > 0; v.suspects = v.suspects[1:] {
		s := v.suspects[0]
		v.cfg.Progress(VerifyProgress{PhaseAgain, max(total-len(v.suspects), 0), total})
		if err := sleep(ctx, time.Until(s.at.Add(v.cfg.Patience))); err != nil {
			return err
		}
		now, err := v.look(ctx, s.ID, s.shown)
		switch {
		case err != nil:
			return err
		case now.Kind == "":
		case now == s.Difference:
			*v.report.count(now.Kind)++
			v.cfg.Each(now)
		case s.looks == maxLooks:
			v.report.Unsettled++
		default:
			v.suspects = append(v.suspects, suspect{now, s.shown, time.Now(), s.looks + 1})
		}
	}
	v.cfg.Progress(VerifyProgress{PhaseAgain, total, total})
	return nil
}

// look compares one record as it is now. The stream comes first: if it changes before the API is asked, the difference that
// this makes is gone at the next look.
func (v *verifier) look(ctx context.Context, id string, shown bool) (Difference, error) {
	var d Difference
	err := v.persist(ctx, func() (bool, error) {
		m, err := v.last(ctx, id)
		if err != nil {
			return true, err
		}
		c, err := v.cfg.Source.Get(ctx, v.cfg.Collection, id)
		var api *protime.APIError
		switch {
		case errors.Is(err, protime.ErrNotFound) && (!shown || errors.As(err, &api) && api.Code != ""):
			d = v.judge(id, nil, m)
		case err != nil:
			return true, fmt.Errorf("get record %s: %w", id, err)
		case m == nil && v.state.Limited:
			d = Difference{}
		default:
			c = v.cfg.Privacy.apply(c)
			d = v.judge(id, &c, m)
		}
		return true, nil
	})
	return d, err
}

// last returns the last message of a record from the stream's leader, nil if there is none.
func (v *verifier) last(ctx context.Context, id string) (*message, error) {
	m, err := v.stream.last(ctx, id)
	if errors.Is(err, errForeign) {
		return &message{Entry: store.Entry{ID: id}}, nil
	}
	return m, err
}

// judge says how what the API has of a record (nil = nothing) differs from its last message (nil = none).
func (v *verifier) judge(id string, c *protime.Change, m *message) Difference {
	d := Difference{ID: id, Subject: v.stream.codec.prefix + "." + token(id), API: "gone", Stream: "nothing"}
	if c != nil {
		d.API = "version " + c.Version
	}
	switch {
	case m == nil:
	case m.Version == "":
		d.Stream = "a message that this feed did not write"
	case m.Deleted:
		d.Stream = fmt.Sprintf("deleted, version %s at position %d", m.Version, m.Position)
	default:
		d.Stream = fmt.Sprintf("version %s at position %d", m.Version, m.Position)
	}
	switch {
	case c == nil && (m == nil || m.Deleted), forgotten(m, c):
		return Difference{}
	case c == nil:
		d.Kind = KindPhantom
	case m != nil && m.Version > c.Version:
		d.Kind = KindAhead
	case m == nil || m.Deleted:
		d.Kind = KindMissing
	case m.Version < c.Version:
		d.Kind = KindStale
	case contradict(c.Data, m.data):
		d.Kind = KindStale
		d.Stream += ", with other data"
	default:
		return Difference{}
	}
	return d
}

// forgotten reports whether a record (nil = the API has none) was erased from the stream at the version that the API has.
func forgotten(m *message, c *protime.Change) bool {
	return m != nil && c != nil && m.Erased && m.Version == c.Version
}

// maxTries is how often something is tried that fails for a reason which may pass: for about a minute, or as long as the API asks for.
const maxTries = 8

// persist calls do until it ends well, fails for good, or was tried often enough in vain. do reports whether a refusal by the
// API may pass as well: that of a listing may, once it has shown something.
func (v *verifier) persist(ctx context.Context, do func() (mayPass bool, err error)) error {
	pause := newRetry()
	for try := 1; ; try++ {
		mayPass, err := do()
		if err == nil || try == maxTries || ctx.Err() != nil || !passing(err, mayPass) {
			return err
		}
		var api *protime.APIError
		var token *protime.TokenError
		wait := pause.NextBackOff()
		switch {
		case errors.As(err, &api):
			wait = max(wait, min(api.RetryAfter, retryAfterMax))
		case errors.As(err, &token):
			wait = max(wait, min(token.RetryAfter, retryAfterMax))
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// passing reports whether an error may pass by itself.
func passing(err error, mayPass bool) bool {
	var api *protime.APIError
	var token *protime.TokenError
	switch {
	case errors.As(err, &token):
		return !refused(token.Status) && token.Status != http.StatusBadRequest
	case errors.As(err, &api):
		return !refused(api.Status) && (mayPass || !refusesCursor(api.Status) || api.Status == http.StatusConflict)
	}
	return true
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

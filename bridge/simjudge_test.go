package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"clockbridge/protime/protimetest"
)

// settle waits until the feed is current and says so.
func (s *simulation) settle() {
	for _, m := range s.machines {
		s.with(m, func(p *process) {
			p.mu.Lock()
			p.fuse = nil
			p.mu.Unlock()
		})
	}
	s.note("everything is mended")
	// The longest pauses there are: the API's Retry-After, refused credentials, a delta that somebody ended twice.
	deadline := time.Now().Add(2*time.Hour + 5*s.shape.poll + 10*s.shape.heartbeat)
	mended := time.Now()
	for calm := 0; calm < 3; {
		time.Sleep(max(s.shape.poll, time.Minute))
		if s.failed() {
			return
		}
		why := s.unsettled(mended)
		if why == nil {
			calm++
			continue
		}
		calm = 0
		s.resumeFeed() // a pause may have been asked for so slowly that nobody was told
		if time.Now().After(deadline) {
			s.fail("promise 6: not well again %s after the last fault: %v", time.Since(mended).Round(time.Second), why)
			return
		}
	}
}

// unsettled says why the feed is not well.
func (s *simulation) unsettled(since time.Time) error {
	var bad []error
	healthy := 0
	for _, m := range s.machines {
		p := m.process()
		if p == nil {
			return fmt.Errorf("%s is down", m.name)
		}
		st := p.feed.Status()
		switch {
		case st.State == StateHealthy && st.FetchedAt.After(since):
			healthy++
		case st.State == StateStandby && s.shape.heartbeat > 0:
		default:
			bad = append(bad, fmt.Errorf("%s is %s, %d attempts: %s", m.name, st.State, st.Attempts, st.Error))
		}
	}
	if healthy != 1 && len(bad) == 0 {
		bad = append(bad, fmt.Errorf("%d instances are healthy, want one", healthy))
	}
	if len(bad) == 0 {
		if msgs, err := s.messages(); err != nil {
			bad = append(bad, err)
		} else if err := s.judge(msgs); err != nil {
			bad = append(bad, err)
		}
	}
	return errors.Join(bad...)
}

// judgeEnd holds the stream against the API's truth.
func (s *simulation) judgeEnd() {
	msgs, err := s.messages()
	if err == nil {
		err = s.judge(msgs)
	}
	if err != nil {
		s.fail("promises 1 to 3: %v", err)
	}
}

// judge holds messages against the API's truth. Of a record that the filter does not reach any more nothing is asked but that
// it was not taken for deleted.
func (s *simulation) judge(msgs []stored) error {
	truth := s.api.Truth("clockings")
	last := map[string]stored{}
	for _, m := range msgs {
		last[m.id] = m
	}
	var bad []error
	for id, is := range truth {
		if s.dates[id] >= s.shape.since(time.Now()) {
			continue
		}
		m, ok := last[id]
		if !ok {
			delete(truth, id)
			continue
		}
		gone := is.Removed || s.shape.api.GetDeletedNotFound && bytes.Contains(is.Data, []byte(`"status":"Deleted"`))
		if m.deleted && !gone && !m.erased() {
			bad = append(bad, fmt.Errorf("record %s: deleted at %d, the API still has it", id, m.seq))
		}
		truth[id] = protimetest.Record{ID: id, Version: m.version, Removed: m.deleted, Data: m.data}
	}
	return errors.Join(append(bad, judgeStream(msgs, truth))...)
}

// listen judges promise 6 while things go wrong: a feed that is not current for long says so.
func (s *simulation) listen() {
	s.mu.Lock()
	late, id := time.Now(), ""
	for rec, at := range s.changed {
		if at.Before(late) && s.dates[rec] >= s.shape.since(time.Now()) {
			late, id = at, rec
		}
	}
	if s.disturbed.After(late) {
		late = s.disturbed
	}
	s.mu.Unlock()
	patience := 2*s.shape.poll + 10*time.Minute + 5*s.shape.heartbeat
	if id == "" || time.Since(late) < patience {
		return
	}
	speaks := true
	for _, m := range s.machines {
		if p := m.process(); p != nil && !p.frozen() {
			st := p.feed.Status()
			if !st.Ready() || st.Phase != OriginDelta || time.Since(st.ChangedAt) < patience {
				return // it says that it is not well, or at a listing, or it is seen to get on
			}
			speaks = false
		}
	}
	if speaks {
		return // nobody is there to say anything
	}
	// An append whose answer was lost may be there all the same.
	msgs, err := s.messages()
	if err != nil {
		return
	}
	last := map[string]stored{}
	for _, m := range msgs {
		last[m.id] = m
	}
	truth := s.api.Truth("clockings")
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, at := range s.changed {
		t, m := truth[id], last[id]
		if s.dates[id] < s.shape.since(time.Now()) || m.id == "" && t.Removed || m.version == t.Version || m.deleted {
			delete(s.changed, id)
			continue
		}
		if since := max(s.disturbed.Sub(s.began), at.Sub(s.began)); time.Since(s.began)-since > patience {
			s.failLocked("promise 6: record %s changed at %s and is not in the stream, and all is said to be well", id, at.Sub(s.began))
			return
		}
	}
}

// What goes wrong.

// messages reads the whole stream as a subscriber would.
func (s *simulation) messages() ([]stored, error) {
	s.mu.Lock()
	nc := s.nc
	s.mu.Unlock()
	sub, err := nc.SubscribeSync(nc.NewRespInbox())
	if err != nil {
		return nil, err
	}
	defer sub.Unsubscribe()
	var all []stored
	for next := uint64(1); ; {
		ask := fmt.Sprintf(`{"seq":%d,"batch":1000}`, next)
		if err := nc.PublishRequest("$JS.API.DIRECT.GET."+StreamName(simTenant, "clockings"), sub.Subject, []byte(ask)); err != nil {
			return nil, err
		}
		for {
			m, err := sub.NextMsg(time.Minute)
			if err != nil {
				return nil, fmt.Errorf("read stream: %w", err)
			}
			switch status := m.Header.Get("Status"); status {
			case "":
				seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
				if err != nil {
					return nil, err
				}
				all = append(all, stored{
					seq: seq, id: m.Header.Get(headerSubject), version: m.Header.Get(headerChangeVersion), subject: m.Header.Get("Nats-Subject"),
					deleted: strings.HasSuffix(m.Header.Get(headerType), ".deleted"), origin: m.Header.Get(headerOrigin), data: m.Data,
				})
				next = seq + 1
				continue
			case "204":
				if m.Header.Get("Nats-Num-Pending") != "0" {
					break
				}
				return all, nil
			case "404", "503":
				return all, nil
			default:
				return nil, fmt.Errorf("read stream: %s %s", status, m.Header.Get("Description"))
			}
			break
		}
	}
}

// What the processes do is noted here.

func (s *simulation) apiFails(token bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	bad := s.apiBad
	if token {
		bad = s.tokenBad
	}
	for _, n := range slices.Sorted(maps.Keys(bad)) {
		return bad[n]
	}
	return ""
}

// asked notes a request that moves the delta.
func (s *simulation) asked(p *process, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acted(p, term, "asked for changes")
	if p.feed.Status().State == StatePaused {
		s.failLocked("%s asked for changes while it showed the feed as paused", p.m.name)
	}
}

// acted judges promise 5: whoever acts has the newest lease.
func (s *simulation) acted(p *process, term uint64, what string) {
	if s.shape.heartbeat > 0 && (term != s.term || p.m.name != s.holder) {
		s.failLocked("promise 5: %s %s under lease %d, while %s has lease %d", p.m.name, what, term, s.holder, s.term)
	}
}

func (s *simulation) appended(p *process, term uint64, msgs []message, at uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acted(p, term, "appended")
	for i := range msgs {
		m := msgs[i]
		m.Position = at + uint64(i) + 1
		s.stored[m.ID] = m
		delete(s.changed, m.ID)
	}
}

func (s *simulation) committed(position uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reached = position
}

// forget notes that the evidence of a loss went with a store.
func (s *simulation) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed, s.reached = false, 0
}

func (s *simulation) disturb() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disturbed = time.Now()
}

func (s *simulation) logged(p *process, r slog.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case strings.Contains(r.Message, "stream lost acknowledged messages"):
		s.owed = false
	case strings.Contains(r.Message, "no record misses it") && !s.lostLast:
		s.owed = false // what could not be read has no record
	}
	var b strings.Builder
	fmt.Fprintf(&b, "    %s: %s", p.m.name, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "term" && r.Message == "lease taken" {
			s.term, s.holder = a.Value.Uint64(), p.m.name
		}
		if a.Key != "do" {
			fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		}
		return true
	})
	s.noteLocked("%s", b.String())
}

// showTime moves the clock of the server's caches.
func (s *simulation) showTime() (stop func()) {
	done := make(chan struct{})
	accessTime.Store(time.Now().UnixNano())
	go func() {
		ticker := time.NewTicker(10 * time.Minute)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				accessTime.Store(time.Now().UnixNano())
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}

func (s *simulation) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(format, args...)
}

func (s *simulation) noteLocked(format string, args ...any) {
	since := time.Since(s.began)
	line := fmt.Sprintf("%2dd %02d:%02d:%06.3f ", since/(24*time.Hour), int(since.Hours())%24, int(since.Minutes())%60, math.Mod(since.Seconds(), 60)) +
		fmt.Sprintf(format, args...)
	s.trace = append(s.trace, line)
	if *simSeed != 0 {
		fmt.Println(line) // at once: a history may also fail to end
	}
}

func (s *simulation) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failLocked(format, args...)
}

func (s *simulation) failLocked(format string, args ...any) {
	if s.failure == nil {
		s.failure = fmt.Errorf(format, args...)
		s.noteLocked("FAILED: %v", s.failure)
	}
}

func (s *simulation) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure != nil
}

func (s *simulation) story() string {
	return fmt.Sprintf("%+v\n%s", s.shape, strings.Join(s.trace, "\n"))
}

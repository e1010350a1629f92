package protimetest

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

const (
	deltaLife   = 72 * time.Hour  // after the last request
	repeatSince = 5 * time.Minute // before the start: what the first delta repeats
)

// delta is the active delta of a collection.
type delta struct {
	id      int64
	text    string // its filter, for later changes too
	refs    string // how references are shown, likewise
	filter  *filter
	began   int // changes in the log when it was started
	started time.Time
	touched time.Time
	walking bool // no deltaLink was handed out yet
	serial  int  // of the newest deltaLink
	used    int  // of the newest deltaLink that was used
}

// deltaToken is what a deltaToken holds.
type deltaToken struct {
	DeltaID        int64  `json:"DeltaId"`
	StartingCursor int    `json:"StartingCursor"` // changes in the log up to here were delivered
	TimeStamp      string `json:"TimeStamp"`
	Serial         int    `json:"Serial,omitempty"` // of the link, 0 during the first listing
	Until          int    `json:"Until,omitempty"`  // with pages: the log's end when the first page was made
	Skip           int    `json:"Skip,omitempty"`   // with pages: changes on the pages before
	Salt           string `json:"Salt"`
}

// deltaOwner is whose delta a request is about.
func (s *Server) deltaOwner(g *grant) string {
	if s.o.DeltaPerClient {
		return g.client
	}
	return ""
}

// startDelta begins a delta, which ends the one before, and answers the first page of its listing.
func (s *Server) startDelta(r *http.Request, g *grant, k kind) (*page, *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.URL.Query().Has("continuationToken") {
		return nil, badRequest("delta and continuationToken exclude each other")
	}
	at, f, refs, fail := s.readList(r, g, k, true)
	if fail == nil {
		fail = s.conflict()
	}
	if fail != nil {
		return nil, fail
	}
	c := s.collection(s.tenant(g.tenant), k.name)
	s.deltas++
	at.Delta = s.deltas
	now := s.now()
	d := &delta{
		id: s.deltas, text: at.ValidatedFilter, refs: at.References, filter: f,
		began: len(c.log), started: now, touched: now, walking: true,
	}
	c.deltas[s.deltaOwner(g)] = d
	return s.walkPage(c, d, at, refs), nil
}

// walkDelta answers a later page of a delta's first listing.
func (s *Server) walkDelta(r *http.Request, g *grant, k kind) (*page, *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, _, refs, fail := s.readList(r, g, k, false)
	if fail != nil {
		return nil, fail
	}
	var token deltaToken
	if !decodeToken(r.URL.Query().Get("deltaToken"), &token) || at.Delta == 0 || token.DeltaID != at.Delta {
		return nil, s.badContinuation()
	}
	if fail := s.conflict(); fail != nil {
		return nil, fail
	}
	c := s.collection(s.tenant(g.tenant), k.name)
	d := s.alive(c, g, at.Delta)
	switch now := c.deltas[s.deltaOwner(g)]; {
	case d == nil && now != nil && now.walking:
		return nil, &failure{status: http.StatusConflict, message: "Another delta of this collection is being started"}
	case d == nil, d.used > 0 && !s.o.LenientLinks:
		return nil, gone
	}
	return s.walkPage(c, d, at, refs), nil
}

func (s *Server) walkPage(c *collection, d *delta, at continuation, refs *references) *page {
	p := s.page(c, d.filter, &at)
	p.refs = refs
	token := deltaToken{DeltaID: d.id, TimeStamp: d.started.Format(time.RFC3339)}
	if p.more {
		p.link, p.target = "nextLink", s.nextLink(&at)+"&deltaToken="+encodeToken(&token, &token.Salt)
		return p
	}
	d.walking = false
	d.serial++
	token.Serial, token.StartingCursor = d.serial, d.began
	if !s.o.NoRepeat {
		since := d.started.Add(-repeatSince).Unix()
		for token.StartingCursor > 0 && c.log[token.StartingCursor-1].at >= since {
			token.StartingCursor--
		}
	}
	p.link, p.target = "deltaLink", deltaLink(c, &token)
	return p
}

func deltaLink(c *collection, token *deltaToken) string {
	return Root + "delta/" + c.name + "?deltaToken=" + encodeToken(token, &token.Salt)
}

// followDelta answers a deltaLink: the changes since its cursor, as they are now, and the link that replaces it.
func (s *Server) followDelta(r *http.Request, g *grant, k kind) (*page, *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fail := s.conflict(); fail != nil {
		return nil, fail
	}
	var token deltaToken
	if !decodeToken(r.URL.Query().Get("deltaToken"), &token) || token.Serial <= 0 || min(token.StartingCursor, token.Until, token.Skip) < 0 {
		return nil, badRequest("The delta token is not valid")
	}
	t := s.tenant(g.tenant)
	c := s.collection(t, k.name)
	d := s.alive(c, g, token.DeltaID)
	if d == nil || token.Serial < d.used && !s.o.LenientLinks || max(token.StartingCursor, token.Until) > len(c.log) {
		return nil, gone
	}
	d.used = max(d.used, token.Serial)
	until := len(c.log)
	if token.Until > 0 {
		until = token.Until
	}
	refs, _ := s.references(t, d.refs) // it was checked at the start
	p := &page{
		log: c.log, show: s.changes(c, d, token.StartingCursor, until), wrapped: true, refs: refs,
		left: func(ch *change) []byte { return s.deletion(ch, c.written(c.id(ch.index)), ch.version) },
	}
	p.show = p.show[min(token.Skip, len(p.show)):]
	if s.o.DeltaPages && len(p.show) > s.o.PageSize {
		p.show = p.show[:s.o.PageSize]
		token.Until, token.Skip = until, token.Skip+s.o.PageSize
		p.link, p.target = "nextLink", deltaLink(c, &token)
		return p, nil
	}
	d.serial++
	next := deltaToken{DeltaID: d.id, StartingCursor: until, TimeStamp: s.now().Format(time.RFC3339), Serial: d.serial}
	p.link, p.target = "deltaLink", deltaLink(c, &next)
	return p, nil
}

// changes returns what a delta reports of log[from:until]: of each record the newest change, in the order of the log,
// or by option every version in any order.
func (s *Server) changes(c *collection, d *delta, from, until int) []int32 {
	var show []int32
	if s.o.ShuffleEveryVersion {
		for i := from; i < until; i++ {
			if i, ok := s.shown(c, d, int32(i), from); ok {
				show = append(show, i)
			}
		}
		// The same for the same link, so that the pages of one response fit together.
		order := rand.New(rand.NewPCG(s.o.Seed, uint64(from)<<32|uint64(until)))
		order.Shuffle(len(show), func(i, j int) { show[i], show[j] = show[j], show[i] })
		return show
	}
	seen := map[int32]bool{} // only needed when the log has grown since
	for i := until - 1; i >= from; i-- {
		index := c.log[i].index
		if until == len(c.log) {
			if c.newest[index] != int32(i) {
				continue
			}
		} else if seen[index] {
			continue
		} else {
			seen[index] = true
		}
		if i, ok := s.shown(c, d, int32(i), from); ok {
			show = append(show, i)
		}
	}
	slices.Reverse(show)
	return show
}

// shown says how the change log[i] is to be seen through the delta's filter: i, ^i for a record that left, or not at all.
func (s *Server) shown(c *collection, d *delta, i int32, from int) (int32, bool) {
	if c.inside(d.filter, i) {
		return i, true
	}
	if !s.o.DeleteOnLeave {
		return 0, false
	}
	// It left if it was inside when the delta last looked, or at any time since.
	for was := c.log[i].before; was >= 0; was = c.log[was].before {
		if c.inside(d.filter, was) {
			return ^i, true
		}
		if int(was) < from {
			break
		}
	}
	return 0, false
}

// inside says whether a version of a record is inside the filter; a removed record is where it was last.
func (c *collection) inside(f *filter, i int32) bool {
	from, to := f.span()
	if ch := &c.log[i]; ch.day < from || ch.day > to {
		return false
	}
	if f.onlyDates() {
		return true
	}
	for c.log[i].removed {
		if i = c.log[i].before; i < 0 {
			return false // it came and went in one action
		}
	}
	return f.match(fieldsOf(c.log[i].data))
}

// alive returns the delta of that id if it still answers, and notes the request.
func (s *Server) alive(c *collection, g *grant, id int64) *delta {
	d := c.deltas[s.deltaOwner(g)]
	now := s.now()
	if d == nil || d.id != id {
		return nil
	}
	if now.Sub(d.touched) > deltaLife {
		delete(c.deltas, s.deltaOwner(g))
		return nil
	}
	d.touched = now
	return d
}

var gone = &failure{status: http.StatusGone, message: "The delta has expired, start a new one"}

// conflict is the 409 that comes by chance.
func (s *Server) conflict() *failure {
	if s.o.ConflictChance == 0 || s.rng.Float64() >= s.o.ConflictChance {
		return nil
	}
	return &failure{status: http.StatusConflict, message: "A concurrency conflict occurred, try again"}
}

package protimetest

import (
	"math/rand/v2"
	"net/http"
	"slices"
	"sort"
	"strconv"
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
	filter  *filter
	start   int  // changes in the log when it was started
	walking bool // the deltaLink was not handed out yet
	used    int  // generation of the newest link that was used
	began   time.Time
	touched time.Time // by the last request
}

// deltaToken is what a deltaToken holds.
type deltaToken struct {
	DeltaID        int64  `json:"DeltaId"`
	StartingCursor int    `json:"StartingCursor"` // changes in the log up to here were delivered
	TimeStamp      string `json:"TimeStamp"`
	Generation     int    `json:"Generation"`
	Until          int    `json:"Until,omitempty"` // with pages: the log's end when the first page was read
	Skip           int    `json:"Skip,omitempty"`  // with pages: changes on the pages before
	Salt           string `json:"Salt"`
}

func (s *Server) deltaOwner(g *grant) string {
	if s.o.DeltaPerClient {
		return g.client
	}
	return ""
}

// startDelta begins a delta, which ends the one before, and answers the first page of its listing.
func (s *Server) startDelta(w http.ResponseWriter, r *http.Request, g *grant, k kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	text := r.URL.Query().Get("filter")
	f, err := s.checkFilter(k, text, true, now)
	if err != nil {
		writeError(w, http.StatusBadRequest, "BadRequest", "The request was invalid", err.Error())
		return
	}
	if s.conflict(w) {
		return
	}
	c := s.collection(s.tenant(g.tenant), k.name)
	c.lastID++
	c.deltas[s.deltaOwner(g)] = &delta{id: c.lastID, text: text, filter: f, start: len(c.log), walking: true, began: now, touched: now}
	s.walkPage(w, r, g, c, continuation{ValidatedFilter: text, Delta: c.lastID})
}

// walk answers a later page of a delta's first listing.
func (s *Server) walk(w http.ResponseWriter, r *http.Request, g *grant, k kind, at continuation) {
	if s.conflict(w) {
		return
	}
	c := s.collection(s.tenant(g.tenant), k.name)
	if d := s.alive(c, g, at.Delta); d == nil {
		if d := c.deltas[s.deltaOwner(g)]; d != nil && d.walking {
			writeError(w, http.StatusConflict, "Conflict", "Another delta of this collection is being started")
			return
		}
		s.gone(w)
		return
	}
	s.walkPage(w, r, g, c, at)
}

func (s *Server) walkPage(w http.ResponseWriter, r *http.Request, g *grant, c *collection, at continuation) {
	d := c.deltas[s.deltaOwner(g)]
	page, after, more := s.page(c, d.filter, at)
	token := deltaToken{DeltaID: d.id, TimeStamp: d.began.Format(time.RFC3339)}
	if more {
		at.After, at.Pages, at.Issued = after, at.Pages+1, s.now().Unix()
		link := Root + c.name + "?"
		if d.text != "" {
			link += "filter=" + d.text + "&"
		}
		writePage(w, r, page, false, "nextLink",
			link+"continuationToken="+encodeToken(&at, &at.Salt)+"&deltaToken="+encodeToken(&token, &token.Salt))
		return
	}
	d.walking = false
	token.StartingCursor = d.start
	if !s.o.NoRepeat {
		since := d.began.Add(-repeatSince).Unix()
		token.StartingCursor = sort.Search(d.start, func(i int) bool { return c.log[i].at >= since })
	}
	writePage(w, r, page, false, "deltaLink", Root+"delta/"+c.name+"?deltaToken="+encodeToken(&token, &token.Salt))
}

// serveDelta answers a deltaLink.
func (s *Server) serveDelta(w http.ResponseWriter, r *http.Request, g *grant, k kind) {
	page, name, target, ok := s.deltaPage(w, r, g, k)
	if ok {
		writePage(w, r, page, true, name, target) // without the lock: it may be a backlog of days
	}
}

func (s *Server) deltaPage(w http.ResponseWriter, r *http.Request, g *grant, k kind) (page []*change, name, target string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conflict(w) {
		return nil, "", "", false
	}
	var token deltaToken
	if !decodeToken(r.URL.Query().Get("deltaToken"), &token) {
		writeError(w, http.StatusBadRequest, "BadRequest", "The request was invalid", "The delta token is not valid")
		return nil, "", "", false
	}
	c := s.collection(s.tenant(g.tenant), k.name)
	d := s.alive(c, g, token.DeltaID)
	if d == nil || token.Generation < d.used && !s.o.LenientLinks || token.StartingCursor > len(c.log) {
		s.gone(w)
		return nil, "", "", false
	}
	d.used = max(d.used, token.Generation)
	until := len(c.log)
	if token.Until > 0 {
		until = token.Until
	}
	page = s.changes(c, d, token.StartingCursor, until)
	next := deltaToken{DeltaID: d.id, StartingCursor: until, TimeStamp: s.now().Format(time.RFC3339), Generation: token.Generation + 1}
	name = "deltaLink"
	if rest := page[min(token.Skip, len(page)):]; s.o.DeltaPages && len(rest) > s.o.PageSize {
		page, name = rest[:s.o.PageSize], "nextLink"
		next = token
		next.Until, next.Skip = until, token.Skip+s.o.PageSize
	} else {
		page = rest
	}
	return page, name, Root + "delta/" + c.name + "?deltaToken=" + encodeToken(&next, &next.Salt), true
}

// changes returns what a delta reports of log[from:until]: of each record the newest change, in the order of the log,
// or by option every version in any order.
func (s *Server) changes(c *collection, d *delta, from, until int) []*change {
	var page []*change
	begin, end := d.filter.span()
	if !s.o.ShuffleEveryVersion {
		newest := until == len(c.log) // then a record knows its newest change
		seen := map[int]bool{}
		for i := until - 1; i >= from; i-- {
			ch := &c.log[i]
			if newest && c.records[ch.index].last != i || !newest && seen[ch.index] {
				continue
			}
			if !newest {
				seen[ch.index] = true
			}
			if ch = s.shown(c, ch, begin, end); ch != nil {
				page = append(page, ch)
			}
		}
		slices.Reverse(page)
		return page
	}
	for i := from; i < until; i++ {
		if ch := s.shown(c, &c.log[i], begin, end); ch != nil {
			page = append(page, ch)
		}
	}
	// The same seed for the same link, so that pages of one response fit together.
	order := rand.New(rand.NewPCG(s.o.Seed, uint64(from)<<32|uint64(until)))
	order.Shuffle(len(page), func(i, j int) { page[i], page[j] = page[j], page[i] })
	return page
}

// shown returns the change as the delta's filter lets it be seen, nil if not at all.
func (s *Server) shown(c *collection, ch *change, from, to string) *change {
	date := c.records[ch.index].date
	if date >= from && (to == "" || date <= to) || !c.dated {
		return ch
	}
	if !s.o.DeleteOnLeave || ch.removed {
		return nil
	}
	left := *ch
	left.removed = true
	left.data = render(strconv.FormatInt(c.id(ch.index), 10), versionString(ch.version), nil)
	return &left
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

func (s *Server) gone(w http.ResponseWriter) {
	writeError(w, http.StatusGone, "Gone", "The delta has expired, start a new one")
}

func (s *Server) conflict(w http.ResponseWriter) bool {
	if s.o.ConflictChance == 0 || s.rng.Float64() >= s.o.ConflictChance {
		return false
	}
	writeError(w, http.StatusConflict, "Conflict", "A concurrency conflict occurred, try again")
	return true
}

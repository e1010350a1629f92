package protimetest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// listTokenLife is how long the continuationToken of a plain list is good for; that of a delta lives as long as the delta.
const listTokenLife = time.Hour

// continuation is what a continuationToken holds. Its first key is what the documentation's samples begin with.
type continuation struct {
	ValidatedFilter string `json:"validatedFilter"`
	References      string `json:"references,omitempty"`
	Tenant          string `json:"tenant"`
	Collection      string `json:"collection"`
	After           int32  `json:"after"`           // records up to this one were shown
	Pages           int    `json:"pages"`           // so far
	Delta           int64  `json:"delta,omitempty"` // of the walk, 0 for a plain list
	Issued          int64  `json:"issued"`
	Salt            string `json:"salt"`
}

// list answers a page of a plain list.
func (s *Server) list(r *http.Request, g *grant, k kind) (*page, *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, f, refs, fail := s.readList(r, g, k, false)
	if fail != nil {
		return nil, fail
	}
	if at.Delta != 0 || at.Issued != 0 && s.now().Sub(time.Unix(at.Issued, 0)) > listTokenLife {
		return nil, s.badContinuation()
	}
	c := s.collection(s.tenant(g.tenant), k.name)
	p := s.page(c, f, &at)
	p.refs = refs
	if p.more {
		p.link, p.target = "nextLink", s.nextLink(&at)
	}
	return p, nil
}

// readList reads the parameters of a list: where it continues, its filter, and how to show references.
func (s *Server) readList(r *http.Request, g *grant, k kind, delta bool) (at continuation, f *filter, refs *references, fail *failure) {
	query := r.URL.Query()
	at = continuation{
		ValidatedFilter: query.Get("filter"), References: query.Get("externalReferences"), Tenant: g.tenant, Collection: k.name,
	}
	f, err := k.checkFilter(at.ValidatedFilter, delta, s.now())
	if err == nil {
		refs, err = s.references(s.tenant(g.tenant), at.References)
	}
	if err != nil {
		return at, nil, nil, badRequest(err.Error())
	}
	if query.Has("continuationToken") {
		var token continuation
		ok := decodeToken(query.Get("continuationToken"), &token)
		if !ok || token.After < 0 || token.Tenant != at.Tenant || token.Collection != at.Collection ||
			token.ValidatedFilter != at.ValidatedFilter || token.References != at.References {
			return at, nil, nil, s.badContinuation()
		}
		at = token
	}
	return at, f, refs, nil
}

// nextLink writes a link as the API does: as plain text, with raw spaces and quotes.
func (s *Server) nextLink(at *continuation) string {
	at.Issued = s.now().Unix()
	link := Root + at.Collection + "?"
	if at.ValidatedFilter != "" {
		link += "filter=" + at.ValidatedFilter + "&"
	}
	if at.References != "" {
		link += "externalReferences=" + at.References + "&"
	}
	return link + "continuationToken=" + encodeToken(at, &at.Salt)
}

func (s *Server) badContinuation() *failure {
	status := http.StatusConflict
	if s.o.BadTokenIs400 {
		status = http.StatusBadRequest
	}
	return &failure{status: status, message: "Invalid continuation token"}
}

// page shows the records behind at, at most a page of them, and moves at. Records are walked by id, so that those that
// come or change meanwhile shift nothing.
func (s *Server) page(c *collection, f *filter, at *continuation) *page {
	p := &page{log: c.log}
	at.Pages++
	if s.o.EmptyPages && at.Pages%2 == 1 {
		p.more = true
		return p
	}
	from, to := f.span()
	onlyDates := f.onlyDates()
	for i := at.After; int(i) < len(c.newest); i++ {
		ch := &c.log[c.newest[i]]
		if ch.removed || ch.day < from || ch.day > to || !onlyDates && !f.match(fieldsOf(ch.data)) {
			continue
		}
		if len(p.show) == s.o.PageSize {
			p.more = true
			return p
		}
		p.show = append(p.show, c.newest[i])
		at.After = i + 1
	}
	return p
}

// encodeToken makes Base64 that holds all of + / and =, so that a client that lets one of them be misread shows it.
func encodeToken(v any, salt *string) string {
	for pad := 0; ; pad++ {
		*salt = ">>>>>?????" + strings.Repeat("~", pad)
		b, err := marshalRaw(v)
		if err != nil {
			panic(fmt.Sprintf("protimetest: token: %v", err))
		}
		token := base64.StdEncoding.EncodeToString(b)
		if strings.Contains(token, "+") && strings.Contains(token, "/") && strings.HasSuffix(token, "=") {
			return token
		}
	}
}

func decodeToken(token string, v any) bool {
	b, err := base64.StdEncoding.DecodeString(token)
	return err == nil && json.Unmarshal(b, v) == nil
}

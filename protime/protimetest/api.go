package protimetest

import (
	"net/http"
	"slices"
	"strings"
)

// failure is an answer with the documented error body.
type failure struct {
	status  int
	message string
	reasons []string
}

func (f *failure) Error() string { return f.message }

func (f *failure) write(w http.ResponseWriter) { writeError(w, f.status, f.message, f.reasons...) }

func badRequest(reasons ...string) *failure {
	return &failure{http.StatusBadRequest, "The request was invalid", reasons}
}

var (
	notFound     = &failure{status: http.StatusNotFound, message: "There is no such resource"}
	unauthorized = &failure{status: http.StatusUnauthorized, message: "The token is missing, expired or invalid"}
)

// serveAPI answers below Root, checking what the documentation asks of every request first.
func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request) {
	if s.limited(w, r, "") {
		return
	}
	w, r, answered := s.fail(w, r, false)
	if answered {
		return
	}
	// Go's own name says nothing about the service, so it counts as none; it is what a client sends that forgot to set one.
	if r.UserAgent() == "" || strings.HasPrefix(r.UserAgent(), "Go-http-client/") {
		writeError(w, http.StatusBadRequest, "The header User-Agent is required: ServiceName/Version (Company Name)")
		return
	}
	g := s.authorize(r)
	if g == nil {
		unauthorized.write(w)
		return
	}
	path, isDelta := strings.CutPrefix(strings.TrimPrefix(r.URL.Path, Root), "delta/")
	name, id, one := strings.Cut(path, "/")
	k, ok := s.kindOf(name)
	if !ok || isDelta && one || strings.Contains(id, "/") {
		notFound.write(w)
		return
	}
	allow, right := http.MethodGet, "read"
	if name == "clockings" && !one && !isDelta {
		allow = "GET, POST"
	}
	if r.Method == http.MethodPost {
		right = "write"
	}
	if !slices.Contains(strings.Split(allow, ", "), r.Method) {
		w.Header().Set("Allow", allow)
		writeError(w, http.StatusMethodNotAllowed, "The method is not allowed here")
		return
	}
	if !slices.Contains(g.scopes, scopeFor(k, right)) {
		status := http.StatusForbidden
		if s.o.ScopeMissingIs401 {
			status = http.StatusUnauthorized
		}
		writeError(w, status, "The token lacks the scope "+scopeFor(k, right))
		return
	}
	// Answers are made under the lock and written without it: a client that reads slowly holds up nobody.
	var p *page
	var err *failure
	switch {
	case r.Method == http.MethodPost:
		s.create(w, r, g)
		return
	case one:
		p, err = s.get(r, g, k, id)
	case isDelta:
		p, err = s.followDelta(r, g, k)
	case r.URL.Query().Has("delta"):
		p, err = s.startDelta(r, g, k)
	case r.URL.Query().Has("deltaToken"):
		p, err = s.walkDelta(r, g, k)
	default:
		p, err = s.list(r, g, k)
	}
	if err != nil {
		err.write(w)
		return
	}
	p.write(w, faultOf(r))
}

// get answers a single record.
func (s *Server) get(r *http.Request, g *grant, k kind, id string) (*page, *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tenant(g.tenant)
	c := s.collection(t, k.name)
	refs, err := s.references(t, r.URL.Query().Get("externalReferences"))
	if err != nil {
		return nil, badRequest(err.Error())
	}
	ch := c.find(id)
	if ch == nil || ch.removed || s.o.GetDeletedNotFound && decodeFields(ch.data)["status"] == "Deleted" {
		return nil, notFound
	}
	return &page{log: c.log, show: []int32{c.newest[ch.index]}, refs: refs, single: true}, nil
}

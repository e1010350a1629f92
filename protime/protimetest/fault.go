package protimetest

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"
)

// FaultKind says what goes wrong.
type FaultKind string

// The faults. NoValue, NoLink and Garbage wait for a request for a page, Gone for one with a delta's link.
const (
	Status       FaultKind = "status"       // Fault.Status with the documented body
	Slow         FaultKind = "slow"         // Fault.Delay before the answer
	Cut          FaultKind = "cut"          // the connection ends after Fault.After bytes of the body
	WrongContent FaultKind = "wrongContent" // a page of HTML with status 200
	NoValue      FaultKind = "noValue"      // a page without "value"
	NoLink       FaultKind = "noLink"       // a page without its link
	Garbage      FaultKind = "garbage"      // something behind the page
	TokenDeath   FaultKind = "tokenDeath"   // the token dies early: 401, for every token issued so far
	Gone         FaultKind = "gone"         // 410 for a delta's link; the delta is ended
)

// Fault is something that goes wrong on demand.
type Fault struct {
	Kind        FaultKind
	Times       int                      // how often; 0 = until cancelled
	Chance      float64                  // of each request that matches, by the server's seed; 0 = always
	Match       func(*http.Request) bool // nil = every request to the API, and none to the token endpoint
	Status      int                      // for Status; 0 = 503
	RetryAfter  string                   // for Status: the header's value, "" = none
	After       int                      // for Cut, in bytes
	Delay       time.Duration            // for Slow
	Body        string                   // for WrongContent, "" = a page of HTML; for Status, "" = the documented body
	ContentType string                   // of Body; "" = text/html
}

type fault struct {
	Fault
	left int // uses, -1 for any number
}

// Fail lets something go wrong from now on. The function that it returns ends that.
func (s *Server) Fail(f Fault) (cancel func()) {
	own := &fault{Fault: f, left: f.Times}
	if f.Times == 0 {
		own.left = -1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, own)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.faults = slices.DeleteFunc(s.faults, func(o *fault) bool { return o == own })
	}
}

// concerns says whether the fault can happen to the request at all: one that spoils a page waits for a page.
func (f *fault) concerns(r *http.Request, token bool) bool {
	if f.Match != nil && !f.Match(r) || f.Match == nil && token {
		return false
	}
	path, isDelta := strings.CutPrefix(strings.TrimPrefix(r.URL.Path, Root), "delta/")
	switch f.Kind {
	case NoValue, NoLink, Garbage:
		return r.Method == http.MethodGet && (isDelta || !strings.Contains(path, "/"))
	case Gone:
		return r.Method == http.MethodGet && r.URL.Query().Has("deltaToken")
	}
	return true
}

// due takes the fault that is due for a request, nil if none is.
func (s *Server) due(r *http.Request, token bool) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.faults {
		if !f.concerns(r, token) || f.Chance > 0 && s.rng.Float64() >= f.Chance {
			continue
		}
		if f.left > 0 {
			if f.left--; f.left == 0 {
				s.faults = slices.Delete(s.faults, i, i+1)
			}
		}
		return &f.Fault
	}
	return nil
}

// fail lets the fault that is due happen: it answers the request, or returns what the rest of the answer is to be made with.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, token bool) (http.ResponseWriter, *http.Request, bool) {
	f := s.due(r, token)
	if f == nil {
		return w, r, false
	}
	switch f.Kind {
	case Slow:
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	case Cut:
		return &cutter{w, max(f.After, 0)}, r, false
	case NoValue, NoLink, Garbage:
		return w, r.WithContext(context.WithValue(r.Context(), faultKey{}, f.Kind)), false
	default:
		s.answerFault(w, r, f)
		return w, r, true
	}
	return w, r, false
}

func (s *Server) answerFault(w http.ResponseWriter, r *http.Request, f *Fault) {
	kind, body := f.ContentType, f.Body
	if kind == "" {
		kind = "text/html; charset=utf-8"
	}
	switch f.Kind {
	case Status:
		status := f.Status
		if status == 0 {
			status = http.StatusServiceUnavailable
		}
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		if body == "" {
			writeError(w, status, "A fault on demand")
			return
		}
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(status)
	case WrongContent:
		if body == "" {
			body = "<!DOCTYPE html><html><body><h1>Scheduled maintenance</h1></body></html>"
		}
		w.Header().Set("Content-Type", kind)
	case TokenDeath:
		s.KillTokens()
		unauthorized.write(w)
		return
	case Gone:
		s.expireFor(r)
		gone.write(w)
		return
	}
	w.Write([]byte(body)) //nolint:errcheck // the client is gone
}

// expireFor ends the delta that a request is about.
func (s *Server) expireFor(r *http.Request) {
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, Root), "delta/")
	if _, ok := s.kindOf(name); !ok {
		return
	}
	if g := s.authorize(r); g != nil {
		s.Tenant(g.tenant).Expire(name)
	}
}

type faultKey struct{}

// faultOf tells the page writer what to leave out, or to add.
func faultOf(r *http.Request) FaultKind {
	kind, _ := r.Context().Value(faultKey{}).(FaultKind)
	return kind
}

// cutter ends the connection after some bytes of the body.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		c.ResponseWriter.Write(p[:c.left])                   //nolint:errcheck // the connection ends either way
		http.NewResponseController(c.ResponseWriter).Flush() //nolint:errcheck // likewise
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

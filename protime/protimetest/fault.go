package protimetest

import (
	"context"
	"net/http"
	"slices"
	"time"
)

// FaultKind says what goes wrong.
type FaultKind string

// The faults. Those that change a page (Cut, NoValue, NoLink, Garbage) leave other answers alone, but for Cut.
const (
	Status       FaultKind = "status"       // Fault.Status with a documented body
	Slow         FaultKind = "slow"         // Fault.Delay before the answer
	Cut          FaultKind = "cut"          // the connection ends after Fault.After bytes of the body
	WrongContent FaultKind = "wrongContent" // a page of HTML with status 200
	NoValue      FaultKind = "noValue"      // a page without "value"
	NoLink       FaultKind = "noLink"       // a page without its link
	Garbage      FaultKind = "garbage"      // something behind the page
	TokenDeath   FaultKind = "tokenDeath"   // the token dies early: 401, for every token issued so far
	Gone         FaultKind = "gone"         // 410 for a cursor; the delta is ended
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
	Body        string                   // for WrongContent; "" = a page of HTML
	ContentType string                   // for WrongContent; "" = text/html
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

// faultFor takes the fault that is due for a request, nil if none is.
func (s *Server) faultFor(r *http.Request, token bool) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.faults {
		switch {
		case f.Match == nil && token, f.Match != nil && !f.Match(r):
			continue
		case f.Chance > 0 && s.rng.Float64() >= f.Chance:
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

// applyFault answers the request if the fault is the whole answer.
func (s *Server) applyFault(w http.ResponseWriter, r *http.Request, f *Fault) (answered bool) {
	switch f.Kind {
	case Status:
		status := f.Status
		if status == 0 {
			status = http.StatusServiceUnavailable
		}
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		writeError(w, status, codeOf(status), "A fault on demand")
		return true
	case Slow:
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
			return false
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	case WrongContent:
		body, kind := f.Body, f.ContentType
		if body == "" {
			body = "<!DOCTYPE html><html><body><h1>Scheduled maintenance</h1></body></html>"
		}
		if kind == "" {
			kind = "text/html; charset=utf-8"
		}
		w.Header().Set("Content-Type", kind)
		w.Write([]byte(body)) //nolint:errcheck // the client is gone
		return true
	case TokenDeath:
		s.KillTokens()
		writeError(w, http.StatusUnauthorized, "Unauthorized", "The token is missing, expired or invalid")
		return true
	case Gone:
		s.gone(w)
		return true
	}
	return false
}

func codeOf(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "BadRequest"
	case http.StatusNotFound:
		return "NotFound"
	case http.StatusConflict:
		return "Conflict"
	case http.StatusGone:
		return "Gone"
	case http.StatusTooManyRequests:
		return "TooManyRequests"
	case http.StatusServiceUnavailable:
		return "ServiceUnavailable"
	}
	return "InternalServerError"
}

type faultKey struct{}

// withFault tells the page writer what to leave out.
func withFault(r *http.Request, f *Fault) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), faultKey{}, f.Kind))
}

func faultOf(r *http.Request) FaultKind {
	kind, _ := r.Context().Value(faultKey{}).(FaultKind)
	return kind
}

// cutAfter ends the connection after some bytes of the body.
func cutAfter(w http.ResponseWriter, f *Fault) http.ResponseWriter {
	if f.Kind != Cut {
		return w
	}
	return &cutter{w, f.After}
}

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

// window counts the requests of one tenant in one minute.
type window struct {
	minute time.Time
	n      int
}

// limited answers a request that is one too many, or that meets a server in maintenance.
func (s *Server) limited(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.o.UnavailableChance > 0 && s.rng.Float64() < s.o.UnavailableChance {
		if s.o.RetryAfter != "" {
			w.Header().Set("Retry-After", s.o.RetryAfter)
		}
		writeError(w, http.StatusServiceUnavailable, "ServiceUnavailable", "Scheduled maintenance")
		return true
	}
	if s.o.RateLimit == 0 {
		return false
	}
	key := r.Header.Get("Authorization")
	minute := s.now().Truncate(time.Minute)
	win := s.windows[key]
	if win == nil || !win.minute.Equal(minute) {
		win = &window{minute: minute}
		s.windows[key] = win
	}
	if win.n++; win.n <= s.o.RateLimit {
		return false
	}
	w.Header().Set("Retry-After", "60")
	writeError(w, http.StatusTooManyRequests, "TooManyRequests", "Too many requests")
	return true
}

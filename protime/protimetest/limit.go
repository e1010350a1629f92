package protimetest

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// window counts the requests of one tenant in one minute.
type window struct {
	minute time.Time
	n      int
}

// limited answers a request that is one too many, or that meets a server in maintenance. The tenant is that of the
// request's token, unless it is given.
func (s *Server) limited(w http.ResponseWriter, r *http.Request, tenant string) bool {
	s.mu.Lock()
	status, after := s.limit(r, tenant)
	s.mu.Unlock()
	if status == 0 {
		return false
	}
	if after != "" {
		w.Header().Set("Retry-After", after)
	}
	if status == http.StatusTooManyRequests {
		writeError(w, status, "Too many requests")
	} else {
		writeError(w, status, "Scheduled maintenance")
	}
	return true
}

func (s *Server) limit(r *http.Request, tenant string) (status int, retryAfter string) {
	if s.o.UnavailableChance > 0 && s.rng.Float64() < s.o.UnavailableChance {
		return http.StatusServiceUnavailable, s.o.RetryAfter
	}
	if s.o.RateLimit == 0 {
		return 0, ""
	}
	if tenant == "" {
		if g := s.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]; g != nil {
			tenant = g.tenant
		}
	}
	now := s.now()
	minute := now.Truncate(time.Minute)
	win := s.windows[tenant]
	if win == nil || !win.minute.Equal(minute) {
		win = &window{minute: minute}
		s.windows[tenant] = win
	}
	if win.n++; win.n <= s.o.RateLimit {
		return 0, ""
	}
	seconds := int(minute.Add(time.Minute).Sub(now)/time.Second) + 1
	return http.StatusTooManyRequests, strconv.Itoa(seconds)
}

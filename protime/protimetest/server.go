// Package protimetest simulates the myProtime API: the token endpoint, lists, single records, and deltas of every
// collection that has one. Tests, the demo and `clockbridge sim` share it.
//
// It plays by the vendor's documentation at its strictest, and where the documentation is silent by the assumption that
// is hardest on a client; the alternatives are fields of [Options]. It is never bent to suit a client.
//
// A [Server] is an [http.Handler]. [NewServer] listens on a port of the loopback interface, as httptest.NewServer does;
// [Server.Transport] answers inside the process, without a socket. Time is the server's own: see [Options] and
// [Server.Advance].
//
// # Admin
//
// Below /admin/, and no part of the API, lies what a user of the simulator needs to make things happen. GET /admin/
// lists it. Every other call is a POST with a JSON object; "tenant" may be left out while there is only one.
//
//	/admin/insert  {"tenant","collection","fields":{...}}           a new record
//	/admin/update  {"tenant","collection","id","fields":{...}}      corrects a record
//	/admin/remove  {"tenant","collection","id","hard":true}         status Deleted, or with hard: gone
//	/admin/expire  {"tenant","collection"}                          the active delta answers 410
//	/admin/fault   {"kind","times","chance","status","retryAfter","after","delayMs"}
//	                                                                a fault (see [FaultKind]); kind "none" ends all
//	/admin/advance {"duration":"73h"}                               moves the server's clock
//	/admin/tokens  {}                                               every token issued so far answers 401
package protimetest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Root is the path of the API, and what every link begins with.
const Root = "/connector/protimeapi/api/v1/"

// Options are what a server takes for granted. The zero value is the strictest reading of the documentation.
type Options struct {
	Tenant       string // the only tenant that there is; "" = any name, each with data of its own
	ClientID     string // "" = "demo"
	ClientSecret string // "" = "demo"

	More        []Collection      // further collections, beside the documented ones
	MoreClients map[string]string // further client ids and their secrets
	Prefix      string            // path in front of everything, such as "/sim", as behind a proxy; links do not carry it

	Now      func() time.Time // nil = time.Now; shifted by Advance
	PageSize int              // records on a page of a list; 0 = 100
	Seed     uint64           // of everything that is left to chance
	FirstID  int64            // id of the first clocking; 0 = 19250, the one of the tutorial. Elsewhere ids begin at 1

	ScopeMissingIs401 bool // a token without the scope answers 401 instead of 403
	BadTokenIs400     bool // an expired or foreign continuationToken answers 400 instead of 409
	DeltaPerClient    bool // one active delta for each client id instead of one for each tenant
	LenientLinks      bool // an older deltaLink still answers once a newer one was used
	EmptyPages        bool // every second page of a list is empty
	NoRepeat          bool // the first delta does not repeat what changed shortly before the start
	DeltaPages        bool // delta responses have pages like lists

	ShuffleEveryVersion bool    // a delta response holds every version of a record, in any order
	DeleteMoreFields    bool    // a Delete carries the record's last fields
	DeleteNoVersion     bool    // a Delete carries the id alone
	GetDeletedNotFound  bool    // GET of a soft-deleted record answers 404 instead of 200
	DeleteOnLeave       bool    // a record that leaves the delta's filter is reported as Delete
	ConflictChance      float64 // of a 409 on a delta request

	RateLimit         int     // requests per minute and tenant, for tokens too; 0 = no limit
	UnavailableChance float64 // of a 503
	RetryAfter        string  // Retry-After of those 503s; "" = none
}

// Server is a simulated API. Its methods are safe for use by several goroutines at once.
type Server struct {
	URL string // of a server made by NewServer, for both API and token endpoint

	o     Options
	kinds []kind // what there is, one row for each collection
	serve *http.Server

	mu       sync.Mutex
	rng      *rand.Rand
	shift    time.Duration
	tenants  map[string]*tenant
	first    string // the first tenant that had a name
	tokens   map[string]*grant
	issued   uint64 // tokens so far
	deltas   int64  // started so far
	faults   []*fault
	requests []Request
	count    uint64
	windows  map[string]*window
}

// Request is one request as the server saw it.
type Request struct {
	Time      time.Time // on the server's clock
	Method    string
	Path      string
	Query     string // as it came, undecoded
	UserAgent string
	Status    int
}

// maxRequests is how many requests are remembered.
const maxRequests = 10_000

// New returns a server that listens nowhere.
func New(o Options) *Server {
	if o.ClientID == "" {
		o.ClientID = "demo"
	}
	if o.ClientSecret == "" {
		o.ClientSecret = "demo"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.PageSize == 0 {
		o.PageSize = 100
	}
	if o.FirstID == 0 {
		o.FirstID = 19250
	}
	kinds := slices.Clone(collections)
	for _, c := range o.More {
		kinds = append(kinds, kind{name: c.Name, scope: c.Scope, dated: c.Dated, guid: c.GUID})
	}
	return &Server{
		o:       o,
		kinds:   kinds,
		rng:     rand.New(rand.NewPCG(o.Seed, 0x70726f74696d65)),
		tenants: map[string]*tenant{},
		tokens:  map[string]*grant{},
		windows: map[string]*window{},
	}
}

// NewServer returns a server that listens on a free port of the loopback interface. Close it.
func NewServer(o Options) *Server {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(fmt.Sprintf("protimetest: listen on a loopback port: %v", err))
	}
	s := New(o)
	s.URL = "http://" + l.Addr().String() + s.o.Prefix
	s.serve = &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go s.serve.Serve(l) //nolint:errcheck // it ends with Close
	return s
}

// Close ends a server made by NewServer, its connections included.
func (s *Server) Close() {
	if s.serve != nil {
		s.serve.Close() //nolint:errcheck // nothing is left to do about it
	}
}

// Advance moves the server's clock.
func (s *Server) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shift += d
}

// Now returns what the server's clock shows.
func (s *Server) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now()
}

func (s *Server) now() time.Time { return s.o.Now().Add(s.shift).UTC() }

// Requests returns the newest requests, oldest first; at most 10,000.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests[max(0, len(s.requests)-maxRequests):])
}

// RequestCount returns how many requests there were since the start or the last ResetRequests.
func (s *Server) RequestCount() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// ResetRequests forgets the requests so far.
func (s *Server) ResetRequests() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests, s.count = nil, 0
}

// ServeHTTP answers a request to the token endpoint, to the API, or to /admin/.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &recorder{ResponseWriter: w, status: http.StatusOK}
	defer s.note(rec, r)
	switch {
	case len(r.URL.RequestURI()) > 4096:
		writeError(rec, http.StatusRequestURITooLong, "The request URI is longer than 4096 characters")
	case !strings.HasPrefix(r.URL.Path, s.o.Prefix+"/"):
		writeError(rec, http.StatusNotFound, "There is nothing here; is the prefix "+s.o.Prefix+" missing?")
	default:
		if s.o.Prefix != "" {
			under := *r.URL
			under.Path = strings.TrimPrefix(r.URL.Path, s.o.Prefix)
			r = r.WithContext(r.Context())
			r.URL = &under
		}
		s.route(rec, r)
	}
}

func (s *Server) route(rec http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/admin/"):
		s.serveAdmin(rec, r)
	case strings.HasPrefix(r.URL.Path, "/tenants/"):
		s.serveToken(rec, r)
	case strings.HasPrefix(r.URL.Path, Root):
		s.serveAPI(rec, r)
	default:
		writeError(rec, http.StatusNotFound, "There is nothing at this path")
	}
}

type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (s *Server) note(rec *recorder, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	if len(s.requests) == 2*maxRequests {
		s.requests = append(s.requests[:0], s.requests[maxRequests:]...)
	}
	s.requests = append(s.requests, Request{
		Time: s.now(), Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, UserAgent: r.UserAgent(), Status: rec.status,
	})
}

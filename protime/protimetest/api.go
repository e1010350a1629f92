package protimetest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// listTokenLife is how long the continuationToken of a plain list is good for; that of a delta lives as long as the delta.
const listTokenLife = time.Hour

// serveAPI answers below Root, checking what the documentation asks of every request first.
func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request) {
	if s.limited(w, r) {
		return
	}
	if f := s.faultFor(r, false); f != nil {
		if s.applyFault(w, r, f) {
			return
		}
		r = withFault(r, f)
		w = cutAfter(w, f)
	}
	if r.UserAgent() == "" || strings.HasPrefix(r.UserAgent(), "Go-http-client/") {
		writeError(w, http.StatusBadRequest, "BadRequest", "The header User-Agent is required: ServiceName/Version (Company Name)")
		return
	}
	g := s.authorize(r)
	if g == nil {
		writeError(w, http.StatusUnauthorized, "Unauthorized", "The token is missing, expired or invalid")
		return
	}
	path := strings.TrimPrefix(r.URL.Path, Root)
	path, isDelta := strings.CutPrefix(path, "delta/")
	name, id, one := strings.Cut(path, "/")
	i := slices.IndexFunc(collections, func(k kind) bool { return k.name == name })
	if i < 0 || isDelta && one || strings.Contains(id, "/") {
		writeError(w, http.StatusNotFound, "NotFound", "There is no such resource")
		return
	}
	k := collections[i]
	right := "read"
	if r.Method != http.MethodGet {
		right = "write"
	}
	if r.Method != http.MethodGet && !(r.Method == http.MethodPost && name == "clockings" && !one && !isDelta) {
		writeError(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "The method is not allowed here")
		return
	}
	if !slices.Contains(g.scopes, scopeFor(k, right)) {
		status := http.StatusForbidden
		if s.o.ScopeMissingIs401 {
			status = http.StatusUnauthorized
		}
		writeError(w, status, "Forbidden", "The token lacks the scope "+scopeFor(k, right))
		return
	}
	switch query := r.URL.Query(); {
	case r.Method == http.MethodPost:
		s.create(w, r, g)
	case one:
		s.get(w, g, k, id)
	case isDelta:
		s.serveDelta(w, r, g, k)
	case query.Has("delta"):
		s.startDelta(w, r, g, k)
	default:
		s.list(w, r, g, k)
	}
}

// continuation is what a continuationToken holds. Its first key is what the documentation's samples begin with.
type continuation struct {
	ValidatedFilter string `json:"validatedFilter"`
	After           int64  `json:"after"`           // last id shown
	Pages           int    `json:"pages"`           // so far
	Delta           int64  `json:"delta,omitempty"` // of the walk, 0 for a plain list
	Issued          int64  `json:"issued"`
	Salt            string `json:"salt"`
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

// marshalRaw is json.Marshal without its escapes for HTML.
func marshalRaw(v any) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return []byte(b.String()), err
}

func decodeToken(token string, v any) bool {
	b, err := base64.StdEncoding.DecodeString(token)
	return err == nil && json.Unmarshal(b, v) == nil
}

// list answers a page of a plain list.
func (s *Server) list(w http.ResponseWriter, r *http.Request, g *grant, k kind) {
	query := r.URL.Query()
	text := query.Get("filter")
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.checkFilter(k, text, false, s.now())
	if err != nil {
		writeError(w, http.StatusBadRequest, "BadRequest", "The request was invalid", err.Error())
		return
	}
	at := continuation{ValidatedFilter: text}
	if query.Has("continuationToken") {
		ok := decodeToken(query.Get("continuationToken"), &at)
		if at.Delta != 0 {
			s.walk(w, r, g, k, at)
			return
		}
		if !ok || at.ValidatedFilter != text || s.now().Sub(time.Unix(at.Issued, 0)) > listTokenLife {
			s.refuseContinuation(w)
			return
		}
	}
	c := s.collection(s.tenant(g.tenant), k.name)
	page, after, more := s.page(c, f, at)
	next := ""
	if more {
		at.After, at.Pages, at.Issued = after, at.Pages+1, s.now().Unix()
		next = Root + k.name + "?filter=" + text + "&continuationToken=" + encodeToken(&at, &at.Salt)
	}
	writePage(w, r, page, false, "nextLink", next)
}

func (s *Server) refuseContinuation(w http.ResponseWriter) {
	if s.o.BadTokenIs400 {
		writeError(w, http.StatusBadRequest, "BadRequest", "Invalid continuation token")
		return
	}
	writeError(w, http.StatusConflict, "Conflict", "Invalid continuation token")
}

// page returns the records behind at.After, at most a page of them, and whether there are more.
func (s *Server) page(c *collection, f *filter, at continuation) (page []*change, after int64, more bool) {
	after = at.After
	if s.o.EmptyPages && at.Pages%2 == 0 {
		return nil, after, true
	}
	from, to := f.span()
	onlyDates := f == nil || f.field == "date" || f.op == "and" && !f.mentions("person") && !f.mentions("kind") && !f.mentions("status")
	for i := max(0, int(after-c.first+1)); i < len(c.records); i++ {
		r := &c.records[i]
		if r.removed || r.date < from || to != "" && r.date > to || !onlyDates && !f.match(fieldsOf(r)) {
			continue
		}
		if len(page) == s.o.PageSize {
			return page, after, true
		}
		page = append(page, &c.log[r.last])
		after = c.id(i)
	}
	return page, after, false
}

// fieldsOf gives a filter the fields of a record.
func fieldsOf(r *record) func(string) string {
	fields := decodeFields(r.data)
	return func(name string) string {
		v := fields[name]
		if o, ok := v.(map[string]any); ok {
			v = o["id"]
		}
		if v == nil {
			return ""
		}
		return fmt.Sprint(v)
	}
}

func (s *Server) get(w http.ResponseWriter, g *grant, k kind, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.collection(s.tenant(g.tenant), k.name).find(id)
	if r == nil || r.removed || s.o.GetDeletedNotFound && decodeFields(r.data)["status"] == "Deleted" {
		writeError(w, http.StatusNotFound, "NotFound", "There is no such resource")
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Write(r.data) //nolint:errcheck // the client is gone
}

// create posts a clocking.
func (s *Server) create(w http.ResponseWriter, r *http.Request, g *grant) {
	fields := map[string]any{}
	body := json.NewDecoder(io.LimitReader(r.Body, 1<<20))
	body.UseNumber()
	var problems []map[string]string
	problem := func(field, message string) {
		problems = append(problems, map[string]string{"field": field, "message": message})
	}
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		problem("Content-Type", "must be application/json")
	} else if err := body.Decode(&fields); err != nil {
		problem("", "The body is not JSON")
	} else {
		checkClocking(fields, problem)
	}
	if len(problems) > 0 {
		writeJSON(w, http.StatusBadRequest, map[string]any{"code": "BadRequest", "message": "The request was invalid", "validationErrors": problems})
		return
	}
	id := s.Tenant(g.tenant).Insert("clockings", fields)
	w.Header().Set("Location", Root+"clockings/"+id)
	w.WriteHeader(http.StatusCreated)
}

// writable are the fields of a clocking that a POST may carry, and the kinds that some are for.
var writable = map[string]string{
	"person": "", "date": "", "timeOfDayInMinutes": "", "kind": "", "terminal": "", "geolocation": "",
	"reason": "Reason", "isOpen": "Reason", "activityLevels": "Activity",
}

func checkClocking(fields map[string]any, problem func(field, message string)) {
	person, _ := fields["person"].(map[string]any)
	if id, ok := person["id"].(json.Number); person["externalReferences"] == nil && (!ok || strings.ContainsAny(string(id), ".eE-")) {
		problem("person", "person.id or person.externalReferences is required")
	}
	date, _ := fields["date"].(string)
	if _, err := time.Parse(time.DateOnly, date); err != nil {
		problem("date", "must be a date as YYYY-MM-DD")
	}
	minutes, _ := fields["timeOfDayInMinutes"].(json.Number)
	if n, err := strconv.Atoi(string(minutes)); err != nil || n < -1440 || n > 2880 {
		problem("timeOfDayInMinutes", "must be an integer from -1440 to 2880")
	}
	kind, _ := fields["kind"].(string)
	if !slices.Contains([]string{"InOut", "Reason", "Activity", "ActivityEnd"}, kind) {
		problem("kind", "must be InOut, Reason, Activity or ActivityEnd")
	}
	for name := range fields {
		switch only, ok := writable[name]; {
		case !ok:
			delete(fields, name) // read-only and unknown fields are ignored
		case only != "" && only != kind:
			problem(name, "is allowed for the kind "+only+" only")
		}
	}
}

// writePage streams a page: records as they are, or wrapped as changes.
func writePage(w http.ResponseWriter, r *http.Request, page []*change, wrapped bool, link, target string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	fault := faultOf(r)
	out := &buffered{w: w}
	defer out.flush()
	out.add(`{`)
	if fault != NoValue {
		out.add(`"value":[`)
		for i, c := range page {
			if i > 0 {
				out.add(`,`)
			}
			switch {
			case !wrapped:
				out.addBytes(c.data)
			case c.removed:
				out.add(`{"changeType":"Delete","data":`)
				out.addBytes(c.data)
				out.add(`}`)
			default:
				out.add(`{"changeType":"InsertOrUpdate","data":`)
				out.addBytes(c.data)
				out.add(`}`)
			}
		}
		out.add(`]`)
		if target != "" && fault != NoLink {
			out.add(`,`)
		}
	}
	if target != "" && fault != NoLink {
		// Raw spaces and quotes, as documented; a Base64 token needs no escapes in JSON, nor does a filter.
		out.add(`"` + link + `":"` + target + `"`)
	}
	out.add(`}`)
	if fault == Garbage {
		out.add(`<!-- trailing -->`)
	}
}

// buffered writes in pieces of 64 KiB, however small what it is given.
type buffered struct {
	w   io.Writer
	b   []byte
	err error
}

func (b *buffered) add(s string) { b.b = append(b.b, s...) }

func (b *buffered) addBytes(p []byte) {
	b.b = append(b.b, p...)
	if len(b.b) >= 64<<10 {
		b.flush()
	}
}

func (b *buffered) flush() {
	if b.err == nil {
		_, b.err = b.w.Write(b.b)
	}
	b.b = b.b[:0]
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := marshalRaw(v)
	if err != nil {
		panic(fmt.Sprintf("protimetest: answer: %v", err))
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b) //nolint:errcheck // the client is gone
}

func writeError(w http.ResponseWriter, status int, code, message string, reasons ...string) {
	body := map[string]any{"code": code, "message": message}
	if len(reasons) > 0 {
		body["reasons"] = reasons
	}
	writeJSON(w, status, map[string]any{"error": body})
}

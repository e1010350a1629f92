package protimetest

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

const adminHelp = `What a user of the simulator can make happen. POST a JSON object:

/admin/insert  {"collection":"clockings","fields":{"person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"}}
/admin/update  {"collection":"clockings","id":"19250","fields":{"timeOfDayInMinutes":505}}
/admin/remove  {"collection":"clockings","id":"19250"}               status Deleted; "hard":true takes it away for good
/admin/expire  {"collection":"clockings"}                            the active delta answers 410
/admin/fault   {"kind":"status","status":503,"times":5}              or slow (delayMs), cut (after), wrongContent, noValue,
                                                                     noLink, garbage, tokenDeath, gone; times 0 = until "none",
                                                                     which ends all; with chance 0.1, one request in ten
/admin/advance {"duration":"73h"}                                    moves the server's clock
/admin/tokens  {}                                                    every token issued so far answers 401

With several tenants, name one: "tenant":"acme".
`

type adminCall struct {
	Tenant     string         `json:"tenant"`
	Collection string         `json:"collection"`
	ID         string         `json:"id"`
	Fields     map[string]any `json:"fields"`
	Hard       bool           `json:"hard"`
	Kind       FaultKind      `json:"kind"`
	Times      int            `json:"times"`
	Status     int            `json:"status"`
	After      int            `json:"after"`
	DelayMS    int            `json:"delayMs"`
	RetryAfter string         `json:"retryAfter"`
	Chance     float64        `json:"chance"`
	Duration   string         `json:"duration"`
}

func (s *Server) serveAdmin(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && r.URL.Path == "/admin/" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Write([]byte(adminHelp)) //nolint:errcheck // the client is gone
		return
	}
	bad := func(reason string) { badRequest(reason).write(w) }
	if r.Method != http.MethodPost {
		writeError(w, http.StatusMethodNotAllowed, "Use POST; GET /admin/ explains")
		return
	}
	var call adminCall
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
	d.UseNumber()
	d.DisallowUnknownFields()
	if err := d.Decode(&call); err != nil {
		bad(err.Error())
		return
	}
	what := strings.TrimPrefix(r.URL.Path, "/admin/")
	t := s.Tenant(call.Tenant)
	switch what {
	case "insert", "update", "remove", "expire":
		if _, ok := s.kindOf(call.Collection); !ok {
			bad("collection: there is none of that name")
			return
		}
	}
	switch what {
	case "update", "remove":
		if !s.has(t.name, call.Collection, call.ID) {
			writeError(w, http.StatusNotFound, "There is no such record")
			return
		}
	}
	switch what {
	case "insert":
		writeJSON(w, http.StatusOK, map[string]string{"id": t.Insert(call.Collection, call.Fields)})
		return
	case "update":
		t.Update(call.Collection, call.ID, call.Fields)
	case "remove":
		if call.Hard {
			t.Remove(call.Collection, call.ID)
		} else {
			t.SoftDelete(call.Collection, call.ID)
		}
	case "expire":
		t.Expire(call.Collection)
	case "fault":
		if call.Kind == "none" {
			s.mu.Lock()
			s.faults = nil
			s.mu.Unlock()
			break
		}
		if !knownFault(call.Kind) {
			bad("kind: there is no such fault; GET /admin/ lists them")
			return
		}
		if call.Status != 0 && (call.Status < 200 || call.Status > 599) {
			bad("status: must be from 200 to 599")
			return
		}
		s.Fail(Fault{Kind: call.Kind, Times: call.Times, Status: call.Status, RetryAfter: call.RetryAfter, After: call.After, Chance: call.Chance,
			Delay: time.Duration(call.DelayMS) * time.Millisecond})
	case "advance":
		by, err := time.ParseDuration(call.Duration)
		if err != nil {
			bad("duration: " + err.Error())
			return
		}
		s.Advance(by)
	case "tokens":
		s.KillTokens()
	default:
		writeError(w, http.StatusNotFound, "GET /admin/ lists what there is")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) has(tenant, collection, id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.collection(s.tenant(tenant), collection).find(id)
	return r != nil && !r.removed
}

func knownFault(kind FaultKind) bool {
	switch kind {
	case Status, Slow, Cut, WrongContent, NoValue, NoLink, Garbage, TokenDeath, Gone:
		return true
	}
	return false
}

package protimetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"time"
)

// kind is a collection as the documentation lists it.
type kind struct {
	name  string
	scope string
	dated bool // the filter on date is required
}

// collections are those with a delta.
var collections = []kind{
	{"clockings", "clockings", true},
	{"access-clockings", "access-clockings", true},
	{"absences", "absences", true},
	{"absence-definitions", "absence-definitions", false},
	{"absence-groups", "absence-groups", false},
	{"activity-durations", "activity-durations", true},
	{"assignments", "assignments", true},
	{"break-definitions", "break-definitions", false},
	{"breaks", "breaks", true},
	{"calculated-totals", "calculated-totals", true},
	{"paid-presences", "calculated-totals", true},
	{"contracts", "contracts", false},
	{"counters", "counters", true},
	{"counter-definitions", "counter-definitions", false},
	{"counter-groups", "counter-groups", false},
	{"people", "people", false},
	{"shift-definitions", "shift-definitions", false},
	{"work-interruptions", "work-interruptions", true},
}

// Record is one record, or one version of it.
type Record struct {
	ID      string
	Version string // changeVersion
	Removed bool   // physically: GET answers 404, the delta says Delete
	Data    []byte // what the API sends for it, a Delete's included
}

// tenant is one customer's data.
type tenant struct {
	name        string
	collections map[string]*collection
	version     uint64 // of the last action; its low 64 bits behind a fixed prefix make the changeVersion
}

// collection holds records by id, ascending, and every change to them in order.
type collection struct {
	kind
	first   int64 // id of records[0]; the others follow without a gap
	records []record
	log     []change
	deltas  map[string]*delta // the active one, by client if there is one for each
	lastID  int64             // of deltas
}

type record struct {
	date    string
	last    int // index of its newest change in the log
	data    []byte
	removed bool
}

// change is one version of a record.
type change struct {
	at      int64 // unix seconds
	index   int   // of the record
	version uint64
	removed bool
	data    []byte
}

func (s *Server) tenant(name string) *tenant {
	if name == "" {
		name = s.o.Tenant
	}
	if name == "" && len(s.tenants) == 1 {
		for only := range s.tenants {
			name = only
		}
	}
	t := s.tenants[name]
	if t == nil {
		// What tests put in before the first request belongs to whoever asks first.
		if t = s.tenants[""]; t != nil {
			delete(s.tenants, "")
			t.name = name
		} else {
			t = &tenant{name: name, collections: map[string]*collection{}, version: 0x4BD0_0009}
		}
		s.tenants[name] = t
	}
	return t
}

func (s *Server) collection(t *tenant, name string) *collection {
	c := t.collections[name]
	if c == nil {
		i := slices.IndexFunc(collections, func(k kind) bool { return k.name == name })
		if i < 0 {
			panic(fmt.Sprintf("protimetest: no collection %q", name))
		}
		c = &collection{kind: collections[i], first: s.o.FirstID, deltas: map[string]*delta{}}
		t.collections[name] = c
	}
	return c
}

func (c *collection) find(id string) *record {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil || n < c.first || n >= c.first+int64(len(c.records)) {
		return nil
	}
	return &c.records[n-c.first]
}

func (c *collection) id(index int) int64 { return c.first + int64(index) }

func versionString(v uint64) string { return fmt.Sprintf("00000902%012X", v) }

// Tenant gives the methods below for one tenant by name; those of Server are for the only one.
func (s *Server) Tenant(name string) *Tenant { return &Tenant{s, name} }

// Tenant is one customer's data in a server.
type Tenant struct {
	s    *Server
	name string
}

// Tx is one action of a user, or of the calculation: all its changes share one changeVersion.
type Tx struct {
	s  *Server
	t  *tenant
	at time.Time // when it happened
}

// Action runs do as one action.
func (t *Tenant) Action(do func(tx *Tx)) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	data := t.s.tenant(t.name)
	data.version++
	do(&Tx{t.s, data, t.s.now()})
}

// Insert adds a record and returns its id.
func (tx *Tx) Insert(collection string, fields map[string]any) string {
	c := tx.s.collection(tx.t, collection)
	c.records = append(c.records, record{})
	index := len(c.records) - 1
	if c.name == "clockings" {
		with := map[string]any{"isGenerated": false, "status": "Active", "calculatedTimeOfDayInMinutes": fields["timeOfDayInMinutes"]}
		for k, v := range fields {
			with[k] = v
		}
		fields = with
	}
	tx.put(c, index, fields)
	return strconv.FormatInt(c.id(index), 10)
}

// Update changes fields of a record. It does nothing to a record that is not there, or not any more.
func (tx *Tx) Update(collection, id string, fields map[string]any) {
	c := tx.s.collection(tx.t, collection)
	r := c.find(id)
	if r == nil || r.removed {
		return
	}
	old := decodeFields(r.data)
	if _, edited := fields["timeOfDayInMinutes"]; edited && c.name == "clockings" {
		if old["originalTimeOfDayInMinutes"] == nil {
			old["originalTimeOfDayInMinutes"] = old["timeOfDayInMinutes"]
		}
		old["calculatedTimeOfDayInMinutes"] = fields["timeOfDayInMinutes"]
	}
	for k, v := range fields {
		old[k] = v
	}
	tx.put(c, indexOf(c, id), old)
}

// SoftDelete is what a deletion by hand does: the record stays, with the status Deleted.
func (tx *Tx) SoftDelete(collection, id string) {
	tx.Update(collection, id, map[string]any{"status": "Deleted"})
}

// Remove takes a record away for good; a delta reports it as Delete.
func (tx *Tx) Remove(collection, id string) {
	c := tx.s.collection(tx.t, collection)
	r := c.find(id)
	if r == nil || r.removed {
		return
	}
	fields := map[string]any{}
	if tx.s.o.DeleteMoreFields {
		fields = decodeFields(r.data)
	}
	data := render(id, versionString(tx.t.version), fields)
	if tx.s.o.DeleteNoVersion {
		data = []byte(`{"id":` + id + `}`)
	}
	index := indexOf(c, id)
	tx.log(c, index, data, true)
}

func (tx *Tx) put(c *collection, index int, fields map[string]any) {
	delete(fields, "id")
	delete(fields, "changeVersion")
	data := render(strconv.FormatInt(c.id(index), 10), versionString(tx.t.version), fields)
	if date, ok := fields["date"].(string); ok {
		c.records[index].date = date
	}
	tx.log(c, index, data, false)
}

func (tx *Tx) log(c *collection, index int, data []byte, removed bool) {
	c.log = append(c.log, change{at: tx.at.Unix(), index: index, version: tx.t.version, removed: removed, data: data})
	r := &c.records[index]
	r.last, r.data, r.removed = len(c.log)-1, data, removed
}

func indexOf(c *collection, id string) int {
	n, _ := strconv.ParseInt(id, 10, 64) // find has accepted it
	return int(n - c.first)
}

func decodeFields(data []byte) map[string]any {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	fields := map[string]any{}
	if err := d.Decode(&fields); err != nil {
		panic(fmt.Sprintf("protimetest: a stored record is not JSON: %v", err))
	}
	return fields
}

// order is that of the documentation's samples; other fields follow by name.
var order = []string{
	"originalTimeOfDayInMinutes", "calculatedTimeOfDayInMinutes", "isGenerated", "status", "person", "date", "timeOfDayInMinutes", "kind",
}

func render(id, version string, fields map[string]any) []byte {
	b := fmt.Appendf(nil, `{"changeVersion":%q,"id":%s`, version, id)
	put := func(k string) {
		v, err := json.Marshal(fields[k])
		if err != nil {
			panic(fmt.Sprintf("protimetest: field %s: %v", k, err))
		}
		b = fmt.Appendf(b, `,%q:%s`, k, v)
	}
	var others []string
	for k := range fields {
		if !slices.Contains(order, k) {
			others = append(others, k)
		}
	}
	sort.Strings(others)
	for _, k := range order {
		if fields[k] != nil {
			put(k)
		}
	}
	for _, k := range others {
		put(k)
	}
	return append(b, '}')
}

// Truth returns every record there ever was, as it is now.
func (t *Tenant) Truth(collection string) map[string]Record {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	c := t.s.collection(t.s.tenant(t.name), collection)
	truth := make(map[string]Record, len(c.records))
	for i, r := range c.records {
		id := strconv.FormatInt(c.id(i), 10)
		truth[id] = Record{ID: id, Version: versionString(c.log[r.last].version), Removed: r.removed, Data: r.data}
	}
	return truth
}

// Versions returns every version of every record, oldest first.
func (t *Tenant) Versions(collection string) map[string][]Record {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	c := t.s.collection(t.s.tenant(t.name), collection)
	all := make(map[string][]Record, len(c.records))
	for _, ch := range c.log {
		id := strconv.FormatInt(c.id(ch.index), 10)
		all[id] = append(all[id], Record{ID: id, Version: versionString(ch.version), Removed: ch.removed, Data: ch.data})
	}
	return all
}

// Expire makes the active delta of a collection answer 410, as after 72 idle hours.
func (t *Tenant) Expire(collection string) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	clear(t.s.collection(t.s.tenant(t.name), collection).deltas)
}

// Regress makes all later changeVersions smaller than those before, as after a database was restored.
func (t *Tenant) Regress() {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	t.s.tenant(t.name).version = 0x1000_0000
}

// Fill adds n clockings of about size bytes each, dated this year and changed long ago. It is quick: for benchmarks.
func (t *Tenant) Fill(collection string, n, size int) {
	t.fill(collection, n, size, false)
}

// Touch gives the first n records of a collection a new version each, as a recalculation would. It is quick.
func (t *Tenant) Touch(collection string, n, size int) {
	t.fill(collection, n, size, true)
}

func (t *Tenant) fill(name string, n, size int, again bool) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	data := t.s.tenant(t.name)
	c := t.s.collection(data, name)
	if !again {
		c.records = slices.Grow(c.records, n)
	}
	c.log = slices.Grow(c.log, n)
	now := t.s.now()
	date := now.Format(time.DateOnly)
	at := now.Add(-30 * 24 * time.Hour).Unix()
	if again {
		at = now.Unix()
	}
	pad := ""
	for i := range n {
		index := i
		if !again {
			c.records = append(c.records, record{date: date})
			index = len(c.records) - 1
		}
		if i%20 == 0 {
			data.version++
		}
		id, version := c.id(index), versionString(data.version)
		b := fmt.Appendf(make([]byte, 0, max(size, 256)), `{"changeVersion":%q,"id":%d,"calculatedTimeOfDayInMinutes":%d,"isGenerated":false,"status":"Active",`+
			`"person":{"id":%d},"date":%q,"timeOfDayInMinutes":%d,"kind":"InOut","remark":%q}`,
			version, id, i%1440, 1+i%500, date, i%1440, pad)
		if pad == "" && len(b) < size {
			pad = string(bytes.Repeat([]byte("x"), size-len(b)))
		}
		c.log = append(c.log, change{at: at, index: index, version: data.version, data: b})
		r := &c.records[index]
		r.last, r.data, r.removed = len(c.log)-1, b, false
	}
}

// The same for the server's only tenant.

func (s *Server) only() *Tenant { return s.Tenant("") }

// Insert adds a record in an action of its own and returns its id.
func (t *Tenant) Insert(collection string, fields map[string]any) (id string) {
	t.Action(func(tx *Tx) { id = tx.Insert(collection, fields) })
	return id
}

// Update changes fields of a record in an action of its own.
func (t *Tenant) Update(collection, id string, fields map[string]any) {
	t.Action(func(tx *Tx) { tx.Update(collection, id, fields) })
}

// SoftDelete sets a record's status to Deleted in an action of its own.
func (t *Tenant) SoftDelete(collection, id string) {
	t.Action(func(tx *Tx) { tx.SoftDelete(collection, id) })
}

// Remove takes a record away for good in an action of its own.
func (t *Tenant) Remove(collection, id string) {
	t.Action(func(tx *Tx) { tx.Remove(collection, id) })
}

// Insert, Update, SoftDelete, Remove, Action, Truth, Versions, Expire, Regress, Fill and Touch are those of the only tenant.
func (s *Server) Insert(collection string, fields map[string]any) string {
	return s.only().Insert(collection, fields)
}
func (s *Server) Update(collection, id string, fields map[string]any) {
	s.only().Update(collection, id, fields)
}
func (s *Server) SoftDelete(collection, id string)          { s.only().SoftDelete(collection, id) }
func (s *Server) Remove(collection, id string)              { s.only().Remove(collection, id) }
func (s *Server) Action(do func(tx *Tx))                    { s.only().Action(do) }
func (s *Server) Truth(collection string) map[string]Record { return s.only().Truth(collection) }
func (s *Server) Versions(collection string) map[string][]Record {
	return s.only().Versions(collection)
}
func (s *Server) Expire(collection string)             { s.only().Expire(collection) }
func (s *Server) Regress()                             { s.only().Regress() }
func (s *Server) Fill(collection string, n, size int)  { s.only().Fill(collection, n, size) }
func (s *Server) Touch(collection string, n, size int) { s.only().Touch(collection, n, size) }

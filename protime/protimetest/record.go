package protimetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// kind is a collection as the documentation lists it.
type kind struct {
	name  string
	scope string
	dated bool // the filter on date is required
	guid  bool // ids are GUIDs, not integers
}

// Collection is one more collection, for what the documentation does not list.
type Collection struct {
	Name  string
	Scope string // the part of its scope between connector-protimeapi- and .read
	Dated bool   // the filter on date is required
	GUID  bool   // ids are GUIDs, not integers
}

// collections are those with a delta.
var collections = []kind{
	{name: "clockings", scope: "clockings", dated: true},
	{name: "access-clockings", scope: "access-clockings", dated: true},
	{name: "absences", scope: "absences", dated: true},
	{name: "absence-definitions", scope: "absence-definitions"},
	{name: "absence-groups", scope: "absence-groups"},
	{name: "activity-durations", scope: "activity-durations", dated: true},
	{name: "assignments", scope: "assignments", dated: true},
	{name: "break-definitions", scope: "break-definitions"},
	{name: "breaks", scope: "breaks", dated: true},
	{name: "calculated-totals", scope: "calculated-totals", dated: true},
	{name: "paid-presences", scope: "calculated-totals", dated: true},
	{name: "contracts", scope: "contracts"},
	{name: "counters", scope: "counters", dated: true},
	{name: "counter-definitions", scope: "counter-definitions"},
	{name: "counter-groups", scope: "counter-groups"},
	{name: "people", scope: "people"},
	{name: "shift-definitions", scope: "shift-definitions"},
	{name: "work-interruptions", scope: "work-interruptions", dated: true},
}

func (s *Server) kindOf(name string) (kind, bool) {
	i := slices.IndexFunc(s.kinds, func(k kind) bool { return k.name == name })
	if i < 0 {
		return kind{}, false
	}
	return s.kinds[i], true
}

// tenant is one customer's data.
type tenant struct {
	name        string
	collections map[string]*collection
	version     uint64 // of the last action; with a fixed prefix it makes the changeVersion
	floor       uint64 // what the last Regress, or the start, began from
}

// firstVersion is the number before that of the documentation's first clocking.
const firstVersion = 0x4CE0_0009

// collection holds records by id, ascending, and every change to them in order.
type collection struct {
	kind
	first  int64   // id of the first record; the others follow without a gap
	newest []int32 // of each record, its newest change in the log
	log    []change
	deltas map[string]*delta // the active one, by client if there is one for each
}

// change is one version of a record. Once its action is over, a change in the log is never altered, so that answers may
// be written from it while the log grows.
type change struct {
	at      int64 // unix seconds
	version uint64
	data    []byte // what the API sends
	index   int32  // of the record
	before  int32  // the record's change before this one, -1 = none
	day     int32  // see dayOf
	removed bool
}

func (s *Server) tenant(name string) *tenant {
	if name == "" {
		name = s.o.Tenant
	}
	if name == "" {
		name = s.first
	}
	t := s.tenants[name]
	if t == nil {
		// What tests put in before the first request belongs to whoever asks first.
		if t = s.tenants[""]; t != nil {
			delete(s.tenants, "")
			t.name = name
		} else {
			t = &tenant{name: name, collections: map[string]*collection{}, version: firstVersion, floor: firstVersion}
		}
		s.tenants[name] = t
		if s.first == "" {
			s.first = name
		}
	}
	return t
}

func (s *Server) collection(t *tenant, name string) *collection {
	c := t.collections[name]
	if c == nil {
		k, ok := s.kindOf(name)
		if !ok {
			panic(fmt.Sprintf("protimetest: no collection %q", name))
		}
		c = &collection{kind: k, first: 1, deltas: map[string]*delta{}}
		if name == "clockings" {
			c.first = s.o.FirstID
		}
		t.collections[name] = c
	}
	return c
}

// find returns the newest change of a record, nil if there never was one of that id.
func (c *collection) find(id string) *change {
	i, ok := c.indexOf(id)
	if !ok {
		return nil
	}
	return &c.log[c.newest[i]]
}

func (c *collection) indexOf(id string) (index int32, ok bool) {
	digits, base := id, 10
	if c.guid {
		digits, base = strings.TrimPrefix(id, guidPrefix), 16
	}
	n, err := strconv.ParseInt(digits, base, 64)
	if err != nil || n < c.first || n >= c.first+int64(len(c.newest)) || c.id(int32(n-c.first)) != id {
		return 0, false
	}
	return int32(n - c.first), true
}

// guidPrefix is what the GUIDs of a collection begin with; the number of the record follows.
const guidPrefix = "7c0e5a52-91d4-4b6e-8f3a-"

func (c *collection) id(index int32) string {
	n := c.first + int64(index)
	if c.guid {
		return fmt.Sprintf("%s%012x", guidPrefix, n)
	}
	return strconv.FormatInt(n, 10)
}

// written is an id as JSON writes it.
func (c *collection) written(id string) string {
	if c.guid {
		return strconv.Quote(id)
	}
	return id
}

// versionString makes 20 upper-case hexadecimal digits, as in the documentation's samples.
func versionString(v uint64) string { return fmt.Sprintf("00000902%012X", v) }

// put adds a change to the log. A changeVersion is unique to a version of a record, so an action that changes a record
// twice leaves only the last: nobody has seen the one that it replaces.
func (c *collection) put(ch change) {
	ch.before = -1
	if int(ch.index) < len(c.newest) {
		i := c.newest[ch.index]
		if c.log[i].version == ch.version {
			ch.before = c.log[i].before
			c.log[i] = ch
			return
		}
		ch.before = i
	} else {
		c.newest = append(c.newest, 0)
	}
	c.newest[ch.index] = int32(len(c.log))
	c.log = append(c.log, ch)
}

// Tx is one action of a user, or of the calculation: all its changes share one changeVersion.
type Tx struct {
	s  *Server
	t  *tenant
	at time.Time // of its changes; zero = the server's now
}

// Insert adds a record and returns its id.
func (tx *Tx) Insert(collection string, fields map[string]any) (id string) {
	c := tx.s.collection(tx.t, collection)
	with := map[string]any{}
	if c.name == "clockings" {
		with["isGenerated"], with["status"] = false, "Active"
		with["calculatedTimeOfDayInMinutes"] = fields["timeOfDayInMinutes"]
	}
	for k, v := range fields {
		with[k] = v
	}
	index := int32(len(c.newest))
	tx.put(c, index, with)
	return c.id(index)
}

// Update changes fields of a record; a field that is nil is left out from then on. It does nothing to a record that is
// not there, or not any more.
func (tx *Tx) Update(collection, id string, fields map[string]any) {
	c := tx.s.collection(tx.t, collection)
	old := c.find(id)
	if old == nil || old.removed {
		return
	}
	with := decodeFields(old.data)
	if _, edited := fields["timeOfDayInMinutes"]; edited && c.name == "clockings" {
		if with["originalTimeOfDayInMinutes"] == nil {
			with["originalTimeOfDayInMinutes"] = with["timeOfDayInMinutes"]
		}
		with["calculatedTimeOfDayInMinutes"] = fields["timeOfDayInMinutes"]
	}
	for k, v := range fields {
		with[k] = v
	}
	tx.put(c, old.index, with)
}

// SoftDelete is what a deletion by hand does: the record stays, with the status Deleted.
func (tx *Tx) SoftDelete(collection, id string) {
	tx.Update(collection, id, map[string]any{"status": "Deleted"})
}

// Remove takes a record away for good; a delta reports it as Delete.
func (tx *Tx) Remove(collection, id string) {
	c := tx.s.collection(tx.t, collection)
	old := c.find(id)
	if old == nil || old.removed {
		return
	}
	c.put(change{at: tx.now(), version: tx.t.version, data: tx.s.deletion(old, c.written(id), tx.t.version), index: old.index, day: old.day, removed: true})
}

// deletion is what a Delete carries in its data. The id is as JSON writes it.
func (s *Server) deletion(old *change, id string, version uint64) []byte {
	switch {
	case s.o.DeleteNoVersion:
		return []byte(`{"id":` + id + `}`)
	case s.o.DeleteMoreFields:
		return render(id, versionString(version), decodeFields(old.data))
	}
	return render(id, versionString(version), nil)
}

func (tx *Tx) put(c *collection, index int32, fields map[string]any) {
	delete(fields, "id")
	delete(fields, "changeVersion")
	date, _ := fields["date"].(string)
	if c.name == "assignments" && date == "" {
		date, _ = fields["from"].(string)
	}
	c.put(change{
		at: tx.now(), version: tx.t.version, data: render(c.written(c.id(index)), versionString(tx.t.version), fields), index: index, day: dayOf(date),
	})
}

func (tx *Tx) now() int64 {
	if !tx.at.IsZero() {
		return tx.at.Unix()
	}
	return tx.s.now().Unix()
}

func decodeFields(data []byte) map[string]any {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	fields := map[string]any{}
	if err := d.Decode(&fields); err != nil {
		panic(fmt.Sprintf("protimetest: a stored record is not JSON: %v", err))
	}
	delete(fields, "id")
	delete(fields, "changeVersion")
	return fields
}

// order is that of the documentation's samples; other fields follow by name.
var order = []string{
	"originalTimeOfDayInMinutes", "calculatedTimeOfDayInMinutes", "isGenerated", "status", "person", "date", "timeOfDayInMinutes", "kind",
}

// render writes a record as the API sends it. It is done once for each version.
func render(id, version string, fields map[string]any) []byte {
	b := fmt.Appendf(nil, `{"changeVersion":%q,"id":%s`, version, id)
	put := func(k string) {
		if fields[k] == nil {
			return // absent rather than null
		}
		v, err := json.Marshal(fields[k])
		if err != nil {
			panic(fmt.Sprintf("protimetest: field %s: %v", k, err))
		}
		name, _ := json.Marshal(k) // a string always marshals
		b = append(append(append(append(b, ','), name...), ':'), v...)
	}
	var others []string
	for k := range fields {
		if !slices.Contains(order, k) {
			others = append(others, k)
		}
	}
	sort.Strings(others)
	for _, k := range order {
		put(k)
	}
	for _, k := range others {
		put(k)
	}
	return append(b, '}')
}

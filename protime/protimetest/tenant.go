package protimetest

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Record is one record, or one version of it.
type Record struct {
	ID      string
	Version string // changeVersion
	Removed bool   // physically: GET answers 404, the delta says Delete
	Data    []byte // what the API sends for it, a Delete's included
}

// Tenant is one customer's data in a server.
type Tenant struct {
	s    *Server
	name string
}

// Tenant gives the methods below for one tenant by name; "" is the only one, or the first that there was.
func (s *Server) Tenant(name string) *Tenant { return &Tenant{s, name} }

// Action runs do as one action. It must not call methods of the server, only those of tx.
func (t *Tenant) Action(do func(tx *Tx)) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	data := t.s.tenant(t.name)
	data.version++
	do(&Tx{s: t.s, t: data})
}

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

// Truth returns every record there ever was, as it is now.
func (t *Tenant) Truth(collection string) map[string]Record {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	c := t.s.collection(t.s.tenant(t.name), collection)
	truth := make(map[string]Record, len(c.newest))
	for _, i := range c.newest {
		r := c.record(&c.log[i])
		truth[r.ID] = r
	}
	return truth
}

// Versions returns every version of every record, oldest first.
func (t *Tenant) Versions(collection string) map[string][]Record {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	c := t.s.collection(t.s.tenant(t.name), collection)
	all := make(map[string][]Record, len(c.newest))
	for i := range c.log {
		r := c.record(&c.log[i])
		all[r.ID] = append(all[r.ID], r)
	}
	return all
}

func (c *collection) record(ch *change) Record {
	return Record{ID: c.id(ch.index), Version: versionString(ch.version), Removed: ch.removed, Data: ch.data}
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
	data := t.s.tenant(t.name)
	data.floor -= 0x100_0000
	data.version = data.floor
}

// Fill adds n records in the shape of clockings, of about size bytes each, dated today and changed long ago. It is quick
// and adds little to their bytes: a million take about a second.
func (t *Tenant) Fill(collection string, n, size int) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	data := t.s.tenant(t.name)
	c := t.s.collection(data, collection)
	c.newest = slices.Grow(c.newest, n)
	first := int32(len(c.newest))
	t.bulk(data, c, t.s.now().Add(-30*24*time.Hour), size, func(yield func(int32) bool) {
		for i := range int32(n) {
			if !yield(first + i) {
				return
			}
		}
	}, n)
}

// Touch gives the first n records of a collection a new version each, of about size bytes, as a recalculation would. It
// is quick. Records that were removed stay so.
func (t *Tenant) Touch(collection string, n, size int) {
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	data := t.s.tenant(t.name)
	c := t.s.collection(data, collection)
	t.bulk(data, c, t.s.now(), size, func(yield func(int32) bool) {
		for i := range int32(min(n, len(c.newest))) {
			if !c.log[c.newest[i]].removed && !yield(i) {
				return
			}
		}
	}, n)
}

// bulk writes a version of each record, twenty to an action. Their bytes lie together in large pieces of memory, which
// spares the garbage collector a million objects.
func (t *Tenant) bulk(data *tenant, c *collection, at time.Time, size int, indexes func(func(int32) bool), n int) {
	c.log = slices.Grow(c.log, n)
	now := t.s.now()
	date, day := now.Format(time.DateOnly), dayOf(now.Format(time.DateOnly))
	var piece []byte
	pad, i := "", 0
	for index := range indexes {
		if i%20 == 0 {
			data.version++
		}
		if cap(piece)-len(piece) < size+512 {
			piece = make([]byte, 0, max(1<<20, size+512))
		}
		from := len(piece)
		piece = fmt.Appendf(piece, `{"changeVersion":"00000902%012X","id":%s,"calculatedTimeOfDayInMinutes":%d,"isGenerated":false,"status":"Active",`+
			`"person":{"id":%d},"date":"%s","timeOfDayInMinutes":%d,"kind":"InOut","remark":"%s"}`,
			data.version, c.written(c.id(index)), i%1440, 1+i%500, date, i%1440, pad)
		b := piece[from:len(piece):len(piece)]
		if i == 0 && len(b) < size {
			pad = strings.Repeat("x", size-len(b))
		}
		c.put(change{at: at.Unix(), version: data.version, data: b, index: index, day: day})
		i++
	}
}

func (s *Server) only() *Tenant { return s.Tenant("") }

// Insert and the methods below are those of Tenant(""): the only tenant, or the first.
func (s *Server) Insert(collection string, fields map[string]any) (id string) {
	return s.only().Insert(collection, fields)
}

// Update is that of Tenant("").
func (s *Server) Update(collection, id string, fields map[string]any) {
	s.only().Update(collection, id, fields)
}

// SoftDelete is that of Tenant("").
func (s *Server) SoftDelete(collection, id string) { s.only().SoftDelete(collection, id) }

// Remove is that of Tenant("").
func (s *Server) Remove(collection, id string) { s.only().Remove(collection, id) }

// Action is that of Tenant("").
func (s *Server) Action(do func(tx *Tx)) { s.only().Action(do) }

// Truth is that of Tenant("").
func (s *Server) Truth(collection string) map[string]Record { return s.only().Truth(collection) }

// Versions is that of Tenant("").
func (s *Server) Versions(collection string) map[string][]Record {
	return s.only().Versions(collection)
}

// Expire is that of Tenant("").
func (s *Server) Expire(collection string) { s.only().Expire(collection) }

// Regress is that of Tenant("").
func (s *Server) Regress() { s.only().Regress() }

// Fill is that of Tenant("").
func (s *Server) Fill(collection string, n, size int) { s.only().Fill(collection, n, size) }

// Touch is that of Tenant("").
func (s *Server) Touch(collection string, n, size int) { s.only().Touch(collection, n, size) }

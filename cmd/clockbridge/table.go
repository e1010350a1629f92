package main

import (
	"encoding/csv"
	"io"
	"slices"
	"strconv"
	"strings"

	"clockbridge/bridge/subscribe"
)

// clockingColumns are the members that the API documents of a clocking, in its order. Geolocation has had two spellings.
var clockingColumns = []string{
	"status", "person.id", "date", "timeOfDayInMinutes", "kind", "terminal.id", "geolocation.longitude", "geolocation.latitude",
	"reason.id", "isOpen", "activityLevels", "originalTimeOfDayInMinutes", "calculatedTimeOfDayInMinutes", "isGenerated",
}

// tableSample is how many records tell the columns of a collection that nobody has named.
const tableSample = 1000

// table writes records as CSV.
type table struct {
	w       *csv.Writer
	columns []string // nil until they are known
	deleted bool     // with a column that says so
	sample  []tableRow
}

type tableRow struct {
	id, version, position string
	deleted               bool
	members               []member
}

func newTable(w io.Writer, collection string, columns []string, deleted bool) *table {
	t := &table{w: csv.NewWriter(w), columns: columns, deleted: deleted}
	if len(columns) == 0 && collection == "clockings" {
		t.columns = clockingColumns
	}
	if len(t.columns) > 0 {
		t.head()
	}
	return t
}

func (t *table) add(m *subscribe.Message) error {
	r := tableRow{m.ID, m.Version, strconv.FormatUint(m.Position, 10), m.Deleted, members(m.Data)}
	if len(t.columns) > 0 {
		return t.row(r)
	}
	if t.sample = append(t.sample, r); len(t.sample) < tableSample {
		return nil
	}
	return t.decide()
}

// decide takes the columns from the sample, in the order in which they first come, and writes it.
func (t *table) decide() error {
	for _, r := range t.sample {
		for _, m := range r.members {
			if m.path != "id" && m.path != "changeVersion" && !slices.Contains(t.columns, m.path) {
				t.columns = append(t.columns, m.path)
			}
		}
	}
	t.head()
	for _, r := range t.sample {
		if err := t.row(r); err != nil {
			return err
		}
	}
	t.sample = nil
	return nil
}

func (t *table) head() {
	head := []string{"id", "changeVersion", "position"}
	if t.deleted {
		head = append(head, "deleted")
	}
	for _, c := range t.columns {
		head = append(head, harmless(c))
	}
	_ = t.w.Write(head) // its errors stay until end
}

func (t *table) row(r tableRow) error {
	cells := []string{harmless(r.id), harmless(r.version), r.position}
	if t.deleted {
		cells = append(cells, strconv.FormatBool(r.deleted))
	}
	first := len(cells)
	cells = append(cells, make([]string, len(t.columns))...)
	for _, m := range r.members {
		i := slices.Index(t.columns, m.path)
		if i < 0 || m.value.Kind() == 'n' {
			continue
		}
		cells[first+i] = m.text()
		if m.isString() {
			cells[first+i] = harmless(cells[first+i])
		}
	}
	return t.w.Write(cells)
}

// harmless puts ' in front of a text that a spreadsheet would take for a formula. Numbers stay as they are.
func harmless(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}

// end writes what is left.
func (t *table) end() error {
	if len(t.columns) == 0 {
		if err := t.decide(); err != nil {
			return err
		}
	}
	t.w.Flush()
	return t.w.Error()
}

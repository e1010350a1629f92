package protime

import (
	"regexp"
	"slices"
)

// Collection is what is known of one of the API's collections with a delta. The ids of all of them are integers, which
// nothing depends on: an id may be any string.
type Collection struct {
	Name     string
	Scope    string   // collection that its scope is named after, most often itself
	Dated    bool     // a filter on date is required, and its records carry a date
	DateName string   // what lists call the date, and lists alone; "" = date
	Filters  []string // fields that a delta may be filtered on as well
	Note     string   // for whoever follows it; "" = nothing
}

const allAtOnce = "saving one announces all: new versions, same content"

// collections are the documented ones, by name.
var collections = []Collection{
	{Name: "absence-definitions", Scope: "absence-definitions"},
	{Name: "absence-groups", Scope: "absence-groups", Note: allAtOnce},
	{Name: "absences", Scope: "absences", Dated: true, Note: "planned ahead: dates lie in the future too"},
	{Name: "access-clockings", Scope: "access-clockings", Dated: true},
	{Name: "activity-durations", Scope: "activity-durations", Dated: true},
	{Name: "assignments", Scope: "assignments", Dated: true, DateName: "from", Note: "refused (403) where the tenant uses Planning Flex or Shift"},
	{Name: "break-definitions", Scope: "break-definitions"},
	{Name: "breaks", Scope: "breaks", Dated: true, Note: "scope and filter are assumed"},
	{Name: "calculated-totals", Scope: "calculated-totals", Dated: true, Note: "one record for each person and day"},
	{Name: "clockings", Scope: "clockings", Dated: true, Note: "deleted by hand: stays, with status Deleted"},
	{Name: "contracts", Scope: "contracts"},
	{Name: "counter-definitions", Scope: "counter-definitions", Filters: []string{"counter-group", "enabled"}},
	{Name: "counter-groups", Scope: "counter-groups", Note: allAtOnce},
	{Name: "counters", Scope: "counters", Dated: true, Filters: []string{"counter-definition", "status"}},
	{Name: "paid-presences", Scope: "calculated-totals", Dated: true, Note: "scope of calculated-totals"},
	{Name: "people", Scope: "people", Note: "sensitive: birth date, bank account, social security number"},
	{Name: "shift-definitions", Scope: "shift-definitions"},
	{Name: "work-interruptions", Scope: "work-interruptions", Dated: true},
}

// Collections returns the collections that are known to have a delta, by name.
func Collections() []Collection { return slices.Clone(collections) }

// CollectionOf returns what is known of a collection. Of any other, which works if the API accepts it, it assumes the
// rule: a scope of its own name, and no filter.
func CollectionOf(name string) (c Collection, known bool) {
	i := slices.IndexFunc(collections, func(c Collection) bool { return c.Name == name })
	if i < 0 {
		return Collection{Name: name, Scope: name}, false
	}
	return collections[i], true
}

var dateField = regexp.MustCompile(`\bdate (eq|ge|le)\b`)

// ListFilter returns what a delta's filter is in a list of the collection, where the date may have another name.
func (c Collection) ListFilter(filter string) string {
	if c.DateName == "" {
		return filter
	}
	return dateField.ReplaceAllString(filter, c.DateName+" $1")
}

// SinceFilter returns the filter of a delta that begins at a date (YYYY-MM-DD), "" for a collection without dates.
func (c Collection) SinceFilter(date string) string {
	if !c.Dated {
		return ""
	}
	return "date ge '" + date + "'"
}

// ReadScope returns the scope for reading a collection, its delta included.
func ReadScope(collection string) string { return scope(collection) + ".read" }

// WriteScope returns the scope for creating records of a collection.
func WriteScope(collection string) string { return scope(collection) + ".write" }

func scope(collection string) string {
	c, _ := CollectionOf(collection)
	return "connector-protimeapi-" + c.Scope
}

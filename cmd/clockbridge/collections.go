package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"clockbridge/protime"
)

type collectionsCmd struct {
	JSON bool `help:"An array of objects."`
}

// listedCollection is one collection as JSON.
type listedCollection struct {
	Name            string   `json:"name"`
	Scope           string   `json:"scope"`
	Filter          string   `json:"filter"`                    // "date" or ""
	OptionalFilters []string `json:"optionalFilters,omitempty"` // of a delta
	Note            string   `json:"note,omitempty"`
}

// Run lists what is known of the API's collections.
func (c *collectionsCmd) Run(p *program) error {
	var all []listedCollection
	for _, known := range protime.Collections() {
		l := listedCollection{Name: known.Name, Scope: protime.ReadScope(known.Name), OptionalFilters: known.Filters, Note: known.Note}
		if known.Dated {
			l.Filter = "date"
		}
		all = append(all, l)
	}
	if c.JSON {
		encoder := json.NewEncoder(p.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(all)
	}
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "COLLECTION\tSCOPE\tFILTER\tNOTE")
	for _, l := range all {
		filter := l.Filter
		if filter == "" {
			filter = "-"
		}
		if len(l.OptionalFilters) > 0 {
			filter += " [" + strings.Join(l.OptionalFilters, ", ") + "]"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", l.Name, l.Scope, filter, l.Note)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(p.stdout, "\nFILTER: date is set from PROTIME_SINCE; those in brackets are optional. Any other collection gets the scope of its name and no filter.")
	return err
}

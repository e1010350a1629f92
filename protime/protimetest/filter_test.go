package protimetest

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
)

func TestFilter_Refused(t *testing.T) {
	c := newCaller(t, Options{})
	for _, row := range []struct{ name, target, reason string }{
		{"UnknownField", "clockings?filter=date ge '2026-01-01' and shoe eq 1", `\"shoe\"`},
		{"UnknownOperator", "clockings?filter=date gt '2026-01-01'", `\"gt\" is no operator`},
		{"UpperCase", "clockings?filter=date GE '2026-01-01'", "no operator"},
		{"NoConstant", "clockings?filter=date ge", "takes a date in quotes"},
		{"NoQuotes", "clockings?filter=date ge 2026-01-01", "takes a date in quotes"},
		{"NotADate", "clockings?filter=date ge '2026-13-01'", "takes a date in quotes"},
		{"OpenQuote", "clockings?filter=date ge '2026-01-01", "takes a date in quotes"},
		{"DoubledQuote", "clockings?filter=date ge '2026-01-01' and kind eq 'In''Out'", "not understood"},
		{"PersonIsText", "clockings?filter=date ge '2026-01-01' and person eq '1'", "takes an integer"},
		{"KindIsNumber", "clockings?filter=date ge '2026-01-01' and kind eq 1", "takes a text in quotes"},
		{"PersonRange", "clockings?filter=date ge '2026-01-01' and person ge 1", "ge is not allowed on the field person"},
		{"DateList", "clockings?filter=date in ('2026-01-01')", "in is not allowed on the field date"},
		{"DateOr", "clockings?filter=date eq '2026-01-01' or date eq '2026-01-03'", "or is not allowed on the field date"},
		{"DateOrPerson", "clockings?filter=date ge '2026-01-01' or person eq 1", "or is not allowed on the field date"},
		{"ParenthesisMissing", "clockings?filter=(date ge '2026-01-01'", "parenthesis"},
		{"ParenthesisExtra", "clockings?filter=date ge '2026-01-01')", "not understood from"},
		{"ListEmpty", "clockings?filter=date ge '2026-01-01' and person in ()", "takes an integer"},
		{"ListOpen", "clockings?filter=date ge '2026-01-01' and person in (1, 2", "does not end"},
		{"ListUnknown", "clockings?filter=date ge '2026-01-01' and person in square(1)", `no list \"square\"`},
		{"AndMissing", "clockings?filter=date ge '2026-01-01' kind eq 'InOut'", "not understood from"},
		{"AndAtTheEnd", "clockings?filter=date ge '2026-01-01' and ", "not understood from"},
		{"OnlyKind", "clockings?filter=kind eq 'InOut'", "A filter on date is required"},
		{"MoreThanAYear", "clockings?filter=date ge '2024-01-01' and date le '2025-01-02'", "The provided date range is invalid"},
		{"EndBeforeStart", "clockings?filter=date ge '2026-01-02' and date le '2026-01-01'", "The provided date range is invalid"},
		{"NothingToFilterOn", "absence-groups?filter=date ge '2026-01-01'", `\"date\" cannot be filtered on`},
		{"DeltaPerson", "clockings?filter=date ge '2026-01-01' and person eq 1&delta", `\"person\" cannot be filtered on`},
		{"DeltaPersonOfContracts", "contracts?filter=person eq 1&delta", `\"person\" cannot be filtered on`},
		{"DeltaKind", "clockings?filter=date ge '2026-01-01' and kind eq 'InOut'&delta", `\"kind\" cannot be filtered on`},
		{"DeltaOpenStart", "clockings?filter=date le '2026-01-31'&delta", "A filter on date is required"},
		{"DeltaTooOld", "clockings?filter=date ge '2024-12-31'&delta", "before 1 January of the previous year"},
		{"DeltaMoreThanAYear", "clockings?filter=date ge '2025-01-01' and date le '2026-01-02'&delta", "The provided date range is invalid"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := *c
			c.t = t
			got := c.get(row.target)
			c.want(got, 400, `{"error":{"code":"BadRequest","message":"The request was invalid","reasons":["`)
			c.want(got, 400, row.reason)
		})
	}
}

func TestFilter_Accepted(t *testing.T) {
	c := newCaller(t, Options{})
	in := func(person int, date, kind string) string {
		f := clocking(person, 510)
		f["date"], f["kind"] = date, kind
		return c.s.Insert("clockings", f)
	}
	a, b := in(1, "2024-06-01", "InOut"), in(1, "2026-01-10", "InOut")
	d, e := in(2, "2026-01-11", "Reason"), in(3, "2026-01-12", "InOut")
	for _, row := range []struct {
		filter string
		want   []string
	}{
		{"date ge '2026-01-01'", []string{b, d, e}},
		{"date ge '2023-01-01'", []string{a, b, d, e}}, // an open end is no range
		{"date le '2026-01-10'", []string{a, b}},
		{"date eq '2026-01-11'", []string{d}},
		{"date ge '2026-01-10' and date le '2026-01-11'", []string{b, d}},
		{"date ge '2026-01-01' and date ge '2026-01-11'", []string{d, e}},
		{"date ge '2025-01-20' and date le '2026-01-20'", []string{b, d, e}}, // exactly a year
		{"date ge '2026-01-01' and person eq 2", []string{d}},
		{"date ge '2026-01-01' and person in (1, 3)", []string{b, e}},
		{"date ge '2026-01-01' and (person eq 1 or person eq 2)", []string{b, d}},
		{"(person eq 1 or kind eq 'Reason') and date ge '2026-01-01'", []string{b, d}},
		{"date ge '2026-01-01' and kind eq 'InOut'", []string{b, e}},
		{"date ge '2026-01-01' and person in circle(2, 8)", nil},
	} {
		t.Run(row.filter, func(t *testing.T) {
			c := *c
			c.t = t
			got, _ := c.walk("clockings?filter=" + row.filter)
			if strings.Join(got, " ") != strings.Join(row.want, " ") {
				t.Errorf("got %v, want %v", got, row.want)
			}
			if got, _ := c.walk("clockings?filter=" + strings.ReplaceAll(url.QueryEscape(row.filter), "+", " ")); fmt.Sprint(got) != fmt.Sprint(row.want) {
				t.Errorf("escaped: got %v, want %v", got, row.want)
			}
		})
	}
	t.Run("DeltaFromLastYear", func(t *testing.T) {
		c.page("clockings?filter=date ge '2025-01-01'&delta")
	})
	t.Run("DeltaOfCounters", func(t *testing.T) {
		c.page("counters?filter=date ge '2026-01-01' and counter-definition eq 3&delta")
	})
	t.Run("AssignmentsFrom", func(t *testing.T) {
		id := c.s.Insert("assignments", map[string]any{"from": "2026-01-10"})
		if got, _ := c.walk("assignments?filter=from ge '2026-01-01'"); fmt.Sprint(got) != "["+id+"]" {
			t.Errorf("got %v, want %s", got, id)
		}
	})
}

package protimetest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// filter is a parsed filter expression:
//
//	expression = term { "or" term }    term = condition { "and" condition }
//	condition  = "(" expression ")" | field ("eq" | "ge" | "le") constant | field "in" [name] "(" constant { "," constant } ")"
type filter struct {
	op     string // "or", "and", or the operator of a condition
	left   *filter
	right  *filter
	field  string
	values []string
	named  bool // a list by name, such as circle(2): nobody is in one here
}

// fields that filters may name, by the collections that have them; every dated collection has date.
var filterFields = map[string][]string{
	"clockings": {"date", "person", "kind"},
	"counters":  {"date", "person", "counter-definition", "counter-definitions", "status"},
}

var lexeme = regexp.MustCompile(`^\s*(?:('[^']*')|([A-Za-z][A-Za-z0-9-]*)|(-?\d+)|([(),]))`)

type parser struct {
	rest   string
	fields []string
}

// parseFilter returns the expression, nil for an empty one, or the reason why it is refused.
func parseFilter(text string, fields []string) (*filter, error) {
	if text == "" {
		return nil, nil
	}
	p := &parser{rest: text, fields: fields}
	f, err := p.expression()
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(p.rest) != "" {
		return nil, fmt.Errorf("The filter is not understood from %q on", p.rest) //nolint:staticcheck // the API's wording
	}
	return f, nil
}

func (p *parser) peek() string {
	return strings.TrimSpace(lexeme.FindString(p.rest))
}

func (p *parser) next() string {
	m := lexeme.FindString(p.rest)
	p.rest = p.rest[len(m):]
	return strings.TrimSpace(m)
}

func (p *parser) expression() (*filter, error) {
	left, err := p.term()
	for err == nil && p.peek() == "or" {
		p.next()
		var right *filter
		right, err = p.term()
		left = &filter{op: "or", left: left, right: right}
		if err == nil && (left.mentions("date")) {
			return nil, fmt.Errorf("The operator or is not allowed on the field date") //nolint:staticcheck // the API's wording
		}
	}
	return left, err
}

func (p *parser) term() (*filter, error) {
	left, err := p.condition()
	for err == nil && p.peek() == "and" {
		p.next()
		var right *filter
		right, err = p.condition()
		left = &filter{op: "and", left: left, right: right}
	}
	return left, err
}

func (p *parser) condition() (*filter, error) {
	bad := func(what string) error {
		return fmt.Errorf("The filter is not understood: %s", what) //nolint:staticcheck // the API's wording
	}
	if p.peek() == "(" {
		p.next()
		f, err := p.expression()
		if err == nil && p.next() != ")" {
			err = bad("a parenthesis is missing")
		}
		return f, err
	}
	f := &filter{field: p.next()}
	if !slices.Contains(p.fields, f.field) {
		return nil, fmt.Errorf("The field %q cannot be filtered on", f.field) //nolint:staticcheck // the API's wording
	}
	f.op = p.next()
	switch f.op {
	case "eq", "ge", "le":
		v, ok := constant(p.next())
		if !ok {
			return nil, bad("a constant is missing behind " + f.op)
		}
		f.values = []string{v}
	case "in":
		if p.peek() != "(" {
			p.next()
			f.named = true
		}
		if p.next() != "(" {
			return nil, bad("a list is missing behind in")
		}
		for {
			v, ok := constant(p.next())
			if !ok {
				return nil, bad("a constant is missing in a list")
			}
			f.values = append(f.values, v)
			if sep := p.next(); sep == ")" {
				break
			} else if sep != "," {
				return nil, bad("a list does not end")
			}
		}
	default:
		return nil, bad(fmt.Sprintf("%q is no operator", f.op))
	}
	if f.field == "date" {
		for _, v := range f.values {
			if _, err := time.Parse(time.DateOnly, v); err != nil {
				return nil, bad(fmt.Sprintf("%q is not a date", v))
			}
		}
	}
	return f, nil
}

func constant(lexeme string) (string, bool) {
	switch {
	case lexeme == "", strings.ContainsAny(lexeme, "(),"):
		return "", false
	case lexeme[0] == '\'':
		return strings.Trim(lexeme, "'"), true
	case lexeme[0] == '-' || lexeme[0] >= '0' && lexeme[0] <= '9', lexeme == "true", lexeme == "false":
		return lexeme, true
	}
	return "", false
}

func (f *filter) mentions(field string) bool {
	return f != nil && (f.field == field || f.left.mentions(field) || f.right.mentions(field))
}

// span returns the dates between which the filter holds, "" where it is open. Dates are never joined by or.
func (f *filter) span() (from, to string) {
	if f == nil {
		return "", ""
	}
	if f.op == "and" {
		a, b := f.left.span()
		c, d := f.right.span()
		if b == "" || d != "" && d < b {
			b = d
		}
		return max(a, c), b
	}
	if f.field != "date" {
		return "", ""
	}
	switch f.op {
	case "ge":
		return f.values[0], ""
	case "le":
		return "", f.values[0]
	}
	return slices.Min(f.values), slices.Max(f.values)
}

// match reports whether a record is inside; get returns its value of a field.
func (f *filter) match(get func(field string) string) bool {
	switch {
	case f == nil:
		return true
	case f.op == "and":
		return f.left.match(get) && f.right.match(get)
	case f.op == "or":
		return f.left.match(get) || f.right.match(get)
	case f.named:
		return false
	}
	v := get(f.field)
	switch f.op {
	case "ge":
		return v >= f.values[0]
	case "le":
		return v <= f.values[0]
	}
	return slices.Contains(f.values, v)
}

// checkFilter parses the filter of a request and holds it against the rules of the collection.
func (s *Server) checkFilter(k kind, text string, delta bool, now time.Time) (*filter, error) {
	fields := filterFields[k.name]
	if fields == nil && k.dated {
		fields = []string{"date", "person", "status"}
	}
	if delta && k.name == "clockings" {
		fields = []string{"date", "person"} // the latter is understood, and refused below
	}
	f, err := parseFilter(text, fields)
	if err != nil {
		return nil, err
	}
	if delta && f.mentions("person") {
		return nil, fmt.Errorf("Person filters are not allowed in a delta") //nolint:staticcheck // the API's wording
	}
	if !k.dated {
		return f, nil
	}
	from, to := f.span()
	if from == "" && (delta || to == "") {
		return nil, fmt.Errorf("A filter on date is required") //nolint:staticcheck // the API's wording
	}
	if delta && from < fmt.Sprintf("%04d-01-01", now.Year()-1) {
		return nil, fmt.Errorf("The start date lies before 1 January of the previous year") //nolint:staticcheck // the API's wording
	}
	if from != "" && to != "" {
		begin, _ := time.Parse(time.DateOnly, from)
		end, _ := time.Parse(time.DateOnly, to)
		if end.Before(begin) || end.After(begin.AddDate(1, 0, 0)) {
			return nil, fmt.Errorf("The provided date range is invalid") //nolint:staticcheck // the API's wording
		}
	}
	return f, nil
}

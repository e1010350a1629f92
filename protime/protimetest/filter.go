package protimetest

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
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

// field is what may be filtered on. A date is of the category Range: eq, ge and le, never joined by or. Everything else is
// of the category Multiple: eq and in, and or is allowed.
type field struct {
	name  string
	kind  byte // 'd' date, 'n' integer, 's' string, 'b' boolean
	delta bool // also when a delta is started
}

// fields returns what the collection may be filtered on.
func (k kind) fields() []field {
	var fields []field
	if k.dated {
		fields = []field{{"date", 'd', true}, {"person", 'n', false}}
	}
	switch k.name {
	case "clockings":
		return append(fields, field{"kind", 's', false})
	case "absences", "access-clockings":
		return append(fields, field{"status", 's', false})
	case "assignments":
		return append(fields, field{"from", 'd', false})
	case "contracts":
		return append(fields, field{"person", 'n', false})
	case "counters":
		return append(fields, field{"counter-definition", 'n', true}, field{"counter-definitions", 'n', true}, field{"status", 's', true})
	case "counter-definitions":
		return append(fields, field{"counter-group", 'n', true}, field{"enabled", 'b', true})
	}
	return fields
}

// refusal is a reason that the API gives, in its own wording.
type refusal string

func (r refusal) Error() string { return string(r) }

func refuse(format string, args ...any) error { return refusal(fmt.Sprintf(format, args...)) }

// lexeme: constants hold none of the characters that would change the meaning of a link, which carries them as they are.
var lexeme = regexp.MustCompile(`^\s*(?:('[^'"&#%+\\[:cntrl:]]*')|([A-Za-z][A-Za-z0-9-]*)|(-?\d+)|([(),]))`)

type parser struct {
	rest   string
	fields []field
}

// parseFilter returns the expression, nil for an empty one, or the reason why it is refused.
func parseFilter(text string, fields []field) (*filter, error) {
	if text == "" {
		return nil, nil
	}
	p := &parser{rest: text, fields: fields}
	f, err := p.expression()
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(p.rest) != "" {
		return nil, refuse("The filter is not understood from %q on", p.rest)
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
		if err == nil && left.mentions("date") {
			err = refuse("The operator or is not allowed on the field date")
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
	if p.peek() == "(" {
		p.next()
		f, err := p.expression()
		if err == nil && p.next() != ")" {
			err = refuse("The filter is not understood: a parenthesis is missing")
		}
		return f, err
	}
	rest := p.rest
	f := &filter{field: p.next()}
	if f.field == "" {
		return nil, refuse("The filter is not understood from %q on", rest)
	}
	i := slices.IndexFunc(p.fields, func(o field) bool { return o.name == f.field })
	if i < 0 {
		return nil, refuse("The field %q cannot be filtered on here", f.field)
	}
	of := p.fields[i]
	f.op = p.next()
	switch f.op {
	case "eq", "ge", "le":
		if f.op != "eq" && of.kind != 'd' {
			return nil, refuse("The operator %s is not allowed on the field %s", f.op, f.field)
		}
		if err := p.constant(f, of); err != nil {
			return nil, err
		}
	case "in":
		if of.kind == 'd' {
			return nil, refuse("The operator in is not allowed on the field %s", f.field)
		}
		if err := p.list(f, of); err != nil {
			return nil, err
		}
	default:
		return nil, refuse("The filter is not understood: %q is no operator", f.op)
	}
	if of.kind == 'd' {
		f.field = "date" // assignments call it from in lists
	}
	return f, nil
}

func (p *parser) list(f *filter, of field) error {
	if p.peek() != "(" {
		f.named = true
		if name := p.next(); f.field != "person" || !slices.Contains([]string{"circle", "org-group", "org-tree"}, name) {
			return refuse("The filter is not understood: there is no list %q for the field %s", name, f.field)
		}
	}
	if p.next() != "(" {
		return refuse("The filter is not understood: a list is missing behind in")
	}
	for {
		if err := p.constant(f, of); err != nil {
			return err
		}
		switch p.next() {
		case ")":
			return nil
		case ",":
		default:
			return refuse("The filter is not understood: a list does not end")
		}
	}
}

// constant reads a constant of the field's type and adds it to the condition's values.
func (p *parser) constant(f *filter, of field) error {
	text := p.next()
	var ok bool
	switch of.kind {
	case 'n':
		_, err := strconv.ParseInt(text, 10, 64)
		ok = err == nil
	case 'b':
		ok = text == "true" || text == "false"
	default:
		if ok = strings.HasPrefix(text, "'"); !ok {
			break
		}
		text = strings.Trim(text, "'")
		if of.kind == 'd' {
			_, err := time.Parse(time.DateOnly, text)
			ok = err == nil
		}
	}
	if !ok {
		what := map[byte]string{'n': "an integer", 'b': "true or false", 's': "a text in quotes", 'd': "a date in quotes"}[of.kind]
		return refuse("The filter is not understood: the field %s takes %s", f.field, what)
	}
	f.values = append(f.values, text)
	return nil
}

func (f *filter) mentions(field string) bool {
	return f != nil && (f.field == field || f.left.mentions(field) || f.right.mentions(field))
}

// onlyDates says whether span tells all.
func (f *filter) onlyDates() bool {
	switch {
	case f == nil:
		return true
	case f.op == "and":
		return f.left.onlyDates() && f.right.onlyDates()
	}
	return f.field == "date"
}

// span returns the dates between which the filter holds, as dayOf numbers; 0 and math.MaxInt32 where it is open. Dates
// are never joined by or.
func (f *filter) span() (from, to int32) {
	switch {
	case f == nil, f.op != "and" && f.field != "date":
		return 0, math.MaxInt32
	case f.op == "and":
		a, b := f.left.span()
		c, d := f.right.span()
		return max(a, c), min(b, d)
	case f.op == "ge":
		return dayOf(f.values[0]), math.MaxInt32
	case f.op == "le":
		return 0, dayOf(f.values[0])
	}
	return dayOf(f.values[0]), dayOf(f.values[0])
}

// dayOf turns YYYY-MM-DD into the number YYYYMMDD; 0 if it is no such date.
func dayOf(date string) int32 {
	t, err := time.Parse(time.DateOnly, date)
	if err != nil {
		return 0
	}
	return int32(t.Year()*10000 + int(t.Month())*100 + t.Day())
}

func timeOf(day int32) time.Time {
	return time.Date(int(day/10000), time.Month(day/100%100), int(day%100), 0, 0, 0, 0, time.UTC)
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
	switch v := get(f.field); f.op {
	case "ge":
		return v >= f.values[0]
	case "le":
		return v != "" && v <= f.values[0]
	default:
		return slices.Contains(f.values, v)
	}
}

// fieldsOf gives a filter the fields of a record: counter-definition is the id in counterDefinition.
func fieldsOf(data []byte) func(string) string {
	fields := decodeFields(data)
	return func(name string) string {
		v := fields[camelCase(name)]
		if o, ok := v.(map[string]any); ok {
			v = o["id"]
		}
		if v == nil {
			return ""
		}
		return fmt.Sprint(v)
	}
}

func camelCase(name string) string {
	words := strings.Split(name, "-")
	for i, word := range words[1:] {
		words[i+1] = string(unicode.ToUpper(rune(word[0]))) + word[1:]
	}
	return strings.Join(words, "")
}

// checkFilter parses the filter of a request and holds it against the rules of the collection.
func (k kind) checkFilter(text string, delta bool, now time.Time) (*filter, error) {
	fields := k.fields()
	if delta {
		fields = slices.DeleteFunc(fields, func(of field) bool { return !of.delta })
	} else if k.name == "assignments" { // from is the date's name in its lists
		fields = slices.DeleteFunc(fields, func(of field) bool { return of.name == "date" })
	}
	f, err := parseFilter(text, fields)
	if err != nil {
		return nil, err
	}
	if !k.dated {
		return f, nil
	}
	from, to := f.span()
	if from == 0 && (delta || to == math.MaxInt32) {
		return nil, refuse("A filter on date is required")
	}
	if delta && timeOf(from).Year() < now.Year()-1 {
		return nil, refuse("The start date lies before 1 January of the previous year")
	}
	if from != 0 && to != math.MaxInt32 {
		if to < from || timeOf(to).After(timeOf(from).AddDate(1, 0, 0)) {
			return nil, refuse("The provided date range is invalid")
		}
	}
	return f, nil
}

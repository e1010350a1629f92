package protime

import (
	"bytes"
	"errors"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// lenient lets bytes pass as they are: names may repeat and strings need not be UTF-8.
var lenient = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

// errNotObject is ParseRecord's answer to valid JSON of another kind.
var errNotObject = errors.New("parse record: not an object")

// ParseRecord reads what a change needs to know of one record's JSON: see Change for the three strings. It is an error
// if data is not one JSON object.
func ParseRecord(data []byte) (id, version, date string, err error) {
	if !jsontext.Value(data).IsValid(lenient...) {
		return "", "", "", errors.New("parse record: not valid JSON")
	}
	i := skipSpace(data, 0)
	if data[i] != '{' {
		return "", "", "", errNotObject
	}
	var r record
	r.scan(data, i)
	id, version, date = r.strings()
	return id, version, date, nil
}

// record holds the values of three members of a JSON object, as written; nil = absent. Of members of one name the
// last one wins.
type record struct{ id, version, date []byte }

// scan reads the object that begins at b[i] and returns where it ends. b must be valid JSON.
func (r *record) scan(b []byte, i int) (end int) {
	m := members{b: b, i: i + 1}
	for m.next() {
		switch name := m.name(); string(name) {
		case "id":
			r.id = m.value()
		case "changeVersion":
			r.version = m.value()
		case "date":
			r.date = m.value()
		default:
			m.i = skipValue(b, m.i)
		}
	}
	return m.i
}

// strings decodes the three values. They share one allocation, since they live as long as each other.
func (r *record) strings() (id, version, date string) {
	var room [64]byte
	buf := room[:0]
	if len(r.id) > 0 && (r.id[0] == '-' || '0' <= r.id[0] && r.id[0] <= '9') {
		buf = append(buf, r.id...)
	} else {
		buf, _ = unquote(buf, r.id)
	}
	endID := len(buf)
	buf, _ = unquote(buf, r.version)
	endVersion := len(buf)
	buf, _ = unquote(buf, r.date)
	s := string(buf)
	return s[:endID], s[endID:endVersion], s[endVersion:]
}

// item is a delta's entry: {"changeType":...,"data":{...}}. Of members of one name the last one wins.
type item struct {
	kind, data []byte // as written; nil = absent
	record     record
}

// scan reads the item b, which must be a valid JSON object that begins at b[0].
func (t *item) scan(b []byte) {
	m := members{b: b, i: 1}
	for m.next() {
		switch name := m.name(); string(name) {
		case "changeType":
			t.kind = m.value()
		case "data":
			t.record = record{}
			if start := m.i; b[start] == '{' {
				m.i = t.record.scan(b, start)
				t.data = b[start:m.i]
			} else {
				t.data = m.value()
			}
		default:
			m.i = skipValue(b, m.i)
		}
	}
}

// members walks the members of a JSON object, which must be valid. After each next comes one name, then one value (or
// i moved past it).
type members struct {
	b    []byte
	i    int      // the next byte to look at
	room [16]byte // for a name with escapes: longer than each name that is looked for
}

// next moves to the next name, or past the closing brace.
func (m *members) next() bool {
	m.i = skipSpace(m.b, m.i)
	if m.b[m.i] == ',' {
		m.i = skipSpace(m.b, m.i+1)
	}
	if m.b[m.i] == '}' {
		m.i++
		return false
	}
	return true
}

// name returns the decoded name, or nil if it is longer than any that matters, and moves to the value.
func (m *members) name() []byte {
	start := m.i
	end, plain := skipString(m.b, start)
	m.i = skipSpace(m.b, end)
	m.i = skipSpace(m.b, m.i+1) // the colon
	if plain {
		return m.b[start+1 : end-1]
	}
	if end-start > 6*len(m.room) {
		return nil
	}
	name, _ := unquote(m.room[:0], m.b[start:end])
	return name
}

func (m *members) value() []byte {
	start := m.i
	m.i = skipValue(m.b, start)
	return m.b[start:m.i]
}

func skipSpace(b []byte, i int) int {
	for b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t' {
		i++
	}
	return i
}

// skipValue returns the end of the value that begins at b[i].
func skipValue(b []byte, i int) int {
	switch b[i] {
	case '"':
		i, _ = skipString(b, i)
		return i
	case '{', '[':
		for depth := 0; ; {
			switch b[i] {
			case '"':
				i, _ = skipString(b, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
				if depth == 0 {
					return i + 1
				}
			}
			i++
		}
	}
	// A number or a literal. It is a member's value, so something follows it.
	for b[i] != ',' && b[i] != '}' && b[i] > ' ' {
		i++
	}
	return i
}

// skipString returns the end of the string that begins at b[i], and whether it is free of escapes.
func skipString(b []byte, i int) (end int, plain bool) {
	plain = true
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			plain = false
			i++
		}
	}
	return i + 1, plain
}

// unquote appends the value of the JSON string q, which must be valid, and reports whether it could. Bytes that are not
// UTF-8 pass through. What is not a string, or escapes half of a surrogate pair and so stands for no text, leaves dst
// as it was.
func unquote(dst, q []byte) ([]byte, bool) {
	if len(q) < 2 || q[0] != '"' {
		return dst, false
	}
	q = q[1 : len(q)-1]
	if bytes.IndexByte(q, '\\') < 0 {
		return append(dst, q...), true
	}
	start := len(dst)
	for i := 0; i < len(q); i++ {
		if q[i] != '\\' {
			dst = append(dst, q[i])
			continue
		}
		i++
		switch q[i] {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hex4(q[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				if len(q)-i < 7 || q[i+1] != '\\' || q[i+2] != 'u' {
					return dst[:start], false
				}
				r = utf16.DecodeRune(r, hex4(q[i+3:]))
				i += 6
				if r == utf8.RuneError {
					return dst[:start], false
				}
			}
			dst = utf8.AppendRune(dst, r)
		default: // " \ /
			dst = append(dst, q[i])
		}
	}
	return dst, true
}

// hex4 reads four hexadecimal digits.
func hex4(b []byte) (r rune) {
	for _, c := range b[:4] {
		switch {
		case c <= '9':
			c -= '0'
		default:
			c = c&^0x20 - 'A' + 10
		}
		r = r<<4 | rune(c)
	}
	return r
}

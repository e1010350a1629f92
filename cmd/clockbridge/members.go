package main

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
)

// member is one value in a record: what is in an object in the record stands by its path, such as person.id. An array is one value.
type member struct {
	path  string
	value jsontext.Value // as written
}

// text is the value as a person writes it: a string without its quotes.
func (m member) text() string {
	if m.isString() {
		if s, err := jsontext.AppendUnquote(nil, m.value); err == nil {
			return string(s)
		}
	}
	return string(m.value)
}

func (m member) isString() bool { return m.value.Kind() == '"' }

// members lists the values of a record in the order in which they stand there; nil if it is no JSON object.
func members(data []byte) []member {
	d := jsontext.NewDecoder(bytes.NewReader(data), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if d.PeekKind() != '{' {
		return nil
	}
	all, err := appendMembers(nil, d, "")
	if err != nil {
		return nil
	}
	return all
}

func appendMembers(all []member, d *jsontext.Decoder, prefix string) ([]member, error) {
	if _, err := d.ReadToken(); err != nil { // {
		return nil, err
	}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		path := prefix + name.String()
		if d.PeekKind() == '{' {
			if all, err = appendMembers(all, d, path+"."); err != nil {
				return nil, err
			}
			continue
		}
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		all = append(all, member{path, value.Clone()})
	}
	_, err := d.ReadToken() // }
	return all, err
}

// change is a member that differs between two versions of a record.
type change struct {
	path     string
	old, new *member // nil = there was none
}

// changes lists what differs: what has changed or gone in the order of the old version, then what has come.
func changes(was, is []member) []change {
	find := func(all []member, path string) *member {
		for i := len(all) - 1; i >= 0; i-- { // of members of one name the last one counts
			if all[i].path == path {
				return &all[i]
			}
		}
		return nil
	}
	var all []change
	for i := range was {
		now := find(is, was[i].path)
		if find(was, was[i].path) == &was[i] && (now == nil || !bytes.Equal(now.value, was[i].value)) {
			all = append(all, change{was[i].path, &was[i], now})
		}
	}
	for i := range is {
		if find(is, is[i].path) == &is[i] && find(was, is[i].path) == nil {
			all = append(all, change{is[i].path, nil, &is[i]})
		}
	}
	return all
}

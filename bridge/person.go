package bridge

import (
	"bytes"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// Person is somebody whom records may name.
type Person struct {
	ids    []string // as they may stand in the data of a record
	people bool     // the records of the collection are people
}

// NewPerson returns the person with an id as the API writes it, for the records of a collection. A feed with that privacy may have put a
// hash in place of the id.
func NewPerson(collection, id string, privacy *Privacy) Person {
	ids := []string{id}
	if privacy != nil && len(privacy.key) > 0 {
		quoted, _ := jsontext.AppendQuote(nil, id)
		for _, literal := range [][]byte{[]byte(id), quoted} {
			digest := privacy.digest(nil, literal)
			ids = append(ids, string(digest[1:len(digest)-1]))
		}
	}
	return Person{ids, collection == "people"}
}

// NamedBy reports whether the data of a message names the person: by a member "person", wherever it stands, that is the id or an object
// with that id; or, where the records are people, by being that one's own. A deleted record of which no more is left than its id and version
// names nobody. Data that breaks off is read as far as it goes.
func (p *Person) NamedBy(data []byte, deleted bool) bool {
	mayHold := func(id string) bool { return bytes.Contains(data, []byte(id)) }
	if !slices.ContainsFunc(p.ids, mayHold) && !bytes.Contains(data, []byte(`\`)) {
		return false // nearly all do not
	}
	found, _ := p.search(decoder(data), p.people && (!deleted || !bare(data))) // what breaks off names nobody behind
	return found
}

// decoder reads JSON as the API may send it, and not only as it should be.
func decoder(data []byte) *jsontext.Decoder {
	return jsontext.NewDecoder(bytes.NewReader(data), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// bare reports whether data is an object without any other members than id and changeVersion.
func bare(data []byte) bool {
	d := decoder(data)
	if _, err := d.ReadToken(); err != nil {
		return false
	}
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil || name.String() != "id" && name.String() != "changeVersion" || d.SkipValue() != nil {
			return false
		}
	}
	return d.PeekKind() == '}'
}

// in is NamedBy, of a message of the feed's.
func (p *Person) in(m *message) bool { return p.NamedBy(m.data, m.Deleted && !m.invalid()) }

// search reads one value, up to where it names the person. somebody: it is the id of a person, or an object with one.
func (p *Person) search(d *jsontext.Decoder, somebody bool) (found bool, err error) {
	begin, err := d.ReadToken()
	if err != nil {
		return false, err
	}
	switch begin.Kind() {
	case '{', '[':
	case '"', '0':
		return somebody && slices.Contains(p.ids, begin.String()), nil
	default:
		return false, nil
	}
	for d.PeekKind() != '}' && d.PeekKind() != ']' {
		inner := somebody
		if begin.Kind() == '{' {
			name, err := d.ReadToken()
			if err != nil {
				return false, err
			}
			inner = name.String() == "person" || somebody && name.String() == "id"
		}
		if found, err := p.search(d, inner); found || err != nil {
			return found, err
		}
	}
	_, err = d.ReadToken()
	return false, err
}

package bridge

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"clockbridge/protime"
)

// Privacy takes fields out of the data of records, or puts a keyed hash in their place, before anything else of the engine sees
// them. All other bytes stay as the API sent them. Nil = nothing is changed.
type Privacy struct {
	root *field
	key  []byte
}

// field is what is done to a member of an object, or to members below it.
type field struct {
	drop, hash bool
	below      map[string]*field
}

// MinHashKey is the least number of bytes of a key: whoever can try all keys can try all ids.
const MinHashKey = 16

// untouchable are the members without which the stream does not tell what it holds.
var untouchable = []string{"id", "changeVersion", "date"}

// NewPrivacy returns what drops and hashes the members at those paths, such as person.firstName. A path leads through every element of an
// array. It returns nil if there are none. key is that of HMAC-SHA256.
func NewPrivacy(drop, hash []string, key []byte) (*Privacy, error) {
	if len(drop)+len(hash) == 0 {
		return nil, nil
	}
	if len(hash) > 0 && len(key) < MinHashKey {
		return nil, fmt.Errorf("hash: the key has %d bytes, must have at least %d", len(key), MinHashKey)
	}
	p := &Privacy{root: new(field), key: key}
	for _, path := range drop {
		if err := p.root.add(path, field{drop: true}); err != nil {
			return nil, fmt.Errorf("drop: %q: %w", path, err)
		}
	}
	for _, path := range hash {
		if err := p.root.add(path, field{hash: true}); err != nil {
			return nil, fmt.Errorf("hash: %q: %w", path, err)
		}
	}
	return p, nil
}

func (f *field) add(path string, leaf field) error {
	names := strings.Split(path, ".")
	switch {
	case slices.Contains(names, ""):
		return errors.New("must be names with dots between them, such as person.firstName")
	case slices.Contains(untouchable, path):
		return errors.New("must stay as it is: the feed needs it")
	}
	for i, name := range names {
		next := f.below[name]
		if next == nil {
			next = new(field)
			if f.below == nil {
				f.below = map[string]*field{}
			}
			f.below[name] = next
		}
		last := i == len(names)-1
		if next.drop || next.hash || last && next.below != nil {
			return errors.New("stands here twice, or lies inside another one")
		}
		if last {
			*next = leaf
		}
		f = next
	}
	return nil
}

// apply returns the change as it may be seen.
func (p *Privacy) apply(c protime.Change) protime.Change {
	if p == nil {
		return c
	}
	data, err := p.value(make([]byte, 0, len(c.Data)), c.Data, p.root)
	if err != nil {
		data = []byte("null") // the API's client has read it, so this cannot be; but nothing may slip through
	}
	c.Data = data
	return c
}

// withhold takes the payload away from a change that is kept aside: who knows where in it a field stands.
func (p *Privacy) withhold(m message) message {
	if p != nil {
		m.data, m.reason = []byte("{}"), m.reason+"; the payload is withheld, since fields are dropped or hashed"
	}
	return m
}

// value appends to out the JSON value v, which is at a field or an element of it.
func (p *Privacy) value(out []byte, v jsontext.Value, at *field) ([]byte, error) {
	object := v.Kind() == '{'
	switch {
	case at.hash:
		return p.digest(out, v), nil
	case !object && v.Kind() != '[':
		return append(out, v...), nil
	}
	d := decoder(v)
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	done, kept := d.InputOffset(), false
	out = append(out, v[:done]...)
	for d.PeekKind() != '}' && d.PeekKind() != ']' {
		child, begin := at, int64(-1)
		if object {
			quoted, err := d.ReadValue()
			if err != nil {
				return nil, err
			}
			begin = d.InputOffset() - int64(len(quoted))
			name, _ := jsontext.AppendUnquote(nil, quoted) // what is no text has no rule
			child = at.below[string(name)]
		}
		item, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		end := d.InputOffset()
		start := end - int64(len(item))
		if begin < 0 {
			begin = start
		}
		if child != nil && child.drop {
			done = end // the comma before it goes as well
			continue
		}
		between := v[done:begin]
		if !kept {
			between = bytes.Replace(between, []byte(","), nil, 1) // the one behind what was dropped
		}
		out = append(append(out, between...), v[begin:start]...)
		if child == nil {
			out = append(out, v[start:end]...)
		} else if out, err = p.value(out, v[start:end], child); err != nil {
			return nil, err
		}
		done, kept = end, true
	}
	return append(out, v[done:]...), nil
}

// digest appends the keyed hash of a value, as the API writes it, as a string. Null stays null: it names nobody.
func (p *Privacy) digest(out []byte, v jsontext.Value) []byte {
	if v.Kind() == 'n' {
		return append(out, v...)
	}
	mac := hmac.New(sha256.New, p.key)
	mac.Write(v) //nolint:errcheck // never fails
	out = append(out, '"')
	return append(hex.AppendEncode(out, mac.Sum(nil)), '"')
}

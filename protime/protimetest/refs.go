package protimetest

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// references add external references to records, as asked for by externalReferences=(people,@badge-number). Only people
// have values here: @badge-number and @employee-number are the fields badgeNumber and employeeNumber of a person's record.
type references struct {
	people map[string]string // by id of the person, the object to add
}

// predefined are the references that begin with @, by collection.
var predefined = map[string][]string{
	"absence-definitions":  {"@absence-code"},
	"activity-definitions": {"@data-entry-code", "@external-reference"},
	"counter-definitions":  {"@counter-code"},
	"people":               {"@badge-number", "@employee-number"},
	"shift-definitions":    {"@shift-code"},
	"terminals":            {"@external-code"},
}

var referenceList = regexp.MustCompile(`^(\([a-z-]+,@?[A-Za-z0-9_-]+\))+$`)

// references reads the parameter externalReferences; nil if it is empty.
func (s *Server) references(t *tenant, text string) (*references, error) {
	if text == "" {
		return nil, nil
	}
	if !referenceList.MatchString(text) {
		return nil, refuse("The external references are not understood")
	}
	refs := &references{people: map[string]string{}}
	for _, one := range strings.Split(strings.Trim(text, "()"), ")(") {
		of, key, _ := strings.Cut(one, ",")
		names, ok := predefined[of]
		if !ok || strings.HasPrefix(key, "@") && !slices.Contains(names, key) {
			return nil, refuse("There is no external reference %s for %s", key, of)
		}
		if of == "people" && strings.HasPrefix(key, "@") {
			s.personReferences(t, key, refs.people)
		}
	}
	return refs, nil
}

func (s *Server) personReferences(t *tenant, key string, people map[string]string) {
	c := s.collection(t, "people")
	for _, i := range c.newest {
		ch := &c.log[i]
		if value, ok := decodeFields(ch.data)[camelCase(key[1:])].(string); ok && !ch.removed {
			b, _ := json.Marshal(map[string]string{key: value}) // strings always marshal
			people[c.id(ch.index)] = string(b)
		}
	}
}

var personField = []byte(`"person":{"id":`)

// add returns the record with the references of its person.
func (refs *references) add(data []byte) []byte {
	if refs == nil || len(refs.people) == 0 {
		return data
	}
	i := bytes.Index(data, personField)
	if i < 0 {
		return data
	}
	i += len(personField)
	end := i + bytes.IndexAny(data[i:], ",}")
	object, ok := refs.people[string(data[i:end])]
	if !ok || data[end] != '}' {
		return data
	}
	return slices.Concat(data[:end], []byte(`,"externalReferences":`+object), data[end:])
}

// personOf resolves a reference in a POST, "" if nobody has it.
func (s *Server) personOf(t *tenant, wanted map[string]any) (id string) {
	c := s.collection(t, "people")
	for _, i := range c.newest {
		fields := decodeFields(c.log[i].data)
		for key, value := range wanted {
			if strings.HasPrefix(key, "@") && value != nil && fields[camelCase(key[1:])] == value && !c.log[i].removed {
				return c.id(c.log[i].index)
			}
		}
	}
	return ""
}

package main

import (
	"encoding/json"
	"strconv"
	"strings"
)

// office is what somebody who reads the streams of people and absences from their start knows. It puts the next change into
// words.
type office struct {
	names    map[string]string // of people, by id; who left keeps the name
	absences map[string]officeAbsence
}

type officeAbsence struct {
	Person     struct{ ID json.Number }
	Date       string
	Status     string
	PeriodType string
}

func newOffice() *office {
	return &office{names: map[string]string{}, absences: map[string]officeAbsence{}}
}

func (o *office) tell(collection string, m published) line {
	if collection == "people" {
		return o.person(m)
	}
	return o.absence(m)
}

func (o *office) person(m published) line {
	was := o.names[m.id]
	if m.deleted {
		return line{kind: "person", person: was, words: "left the company", gone: true}
	}
	var p struct{ FirstName, LastName string }
	_ = json.Unmarshal(m.data, &p) // what was not understood stays empty, and shows as empty
	name := strings.TrimSpace(p.FirstName + " " + p.LastName)
	o.names[m.id] = name
	switch was {
	case "":
		return line{kind: "person", person: name, words: "joined the company"}
	case name:
		return line{kind: "person", person: name, words: "changed, under the same name", changed: true}
	}
	return line{kind: "person", person: name, words: "was called " + was, changed: true}
}

func (o *office) absence(m published) line {
	was, known := o.absences[m.id]
	a := was
	words := "cancelled"
	if !m.deleted {
		a = officeAbsence{}
		_ = json.Unmarshal(m.data, &a) // what was not understood stays empty, and shows as empty
		o.absences[m.id] = a
		words = strings.ToLower(a.Status)
	}
	if a.Date != "" {
		words += " for " + a.Date + ", " + strings.ToLower(strings.Replace(a.PeriodType, "FullDay", "full day", 1))
	}
	return line{kind: "absence", person: o.nameOf(a.Person.ID), words: words, gone: m.deleted, changed: known}
}

// nameOf names a person; by the id alone where the stream of people has not brought the record yet.
func (o *office) nameOf(id json.Number) string {
	if name := o.names[id.String()]; name != "" {
		return name
	}
	if _, err := strconv.Atoi(id.String()); err != nil {
		return ""
	}
	return "person " + id.String()
}

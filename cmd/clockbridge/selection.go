package main

import (
	"strings"
	"time"

	"clockbridge/bridge"
	"clockbridge/bridge/subscribe"
)

// selection are the flags that choose messages. The record is chosen by the server, everything else here.
type selection struct {
	ID     string `name:"id" help:"Of one record."`
	Person string `placeholder:"ID" help:"Of one person. A deletion does not say whose the record was: this leaves it out, and so do --kind and --date."`
	Kind   string `placeholder:"KIND" help:"Of one kind, such as InOut."`
	Date   string `placeholder:"DAY[..DAY]" help:"Of these days, both included; either may be left out: 2026-01-01.. is that day and all later ones."`
	Type   string `enum:",upserted,deleted,unreadable" default:"" placeholder:"TYPE" help:"upserted, deleted or unreadable."`
	Origin string `enum:",snapshot,delta,resync,repair,erasure" default:"" placeholder:"ORIGIN" help:"snapshot, delta, resync, repair or erasure."`

	from, to string // of Date
}

// check reads what the parser has not.
func (c *selection) check() error {
	if c.Date == "" {
		return nil
	}
	from, to, span := strings.Cut(c.Date, "..")
	if !span {
		to = from
	}
	for _, day := range []string{from, to} {
		if _, err := time.Parse(time.DateOnly, day); err != nil && (day != "" || !span || from+to == "") {
			return usagef("date: %q: must be a day such as 2026-01-31, or two with .. between them", c.Date)
		}
	}
	c.from, c.to = from, to
	return nil
}

// match reports whether the flags choose a message.
func (c *selection) match(m *subscribe.Message) bool {
	if c.Type != "" && c.Type != typeOf(m) || c.Origin != "" && c.Origin != m.Origin {
		return false
	}
	if c.Date != "" && (m.Date == "" || m.Date < c.from || c.to != "" && m.Date > c.to) {
		return false
	}
	if c.Person == "" && c.Kind == "" {
		return true
	}
	if c.Person != "" {
		person := bridge.NewPerson(collectionOf(m), c.Person, nil)
		if !person.NamedBy(m.Data, m.Deleted) {
			return false
		}
	}
	return c.Kind == "" || readClocking(m.Data).Kind == c.Kind
}

// collectionOf is the part of the message's subject that names it.
func collectionOf(m *subscribe.Message) string {
	if part := strings.Split(m.Subject, "."); len(part) > 2 {
		return part[2]
	}
	return ""
}

// typeOf is the last part of the message's ce-type.
func typeOf(m *subscribe.Message) string {
	switch {
	case m.Unreadable():
		return bridge.TypeUnreadable
	case m.Deleted:
		return bridge.TypeDeleted
	}
	return bridge.TypeUpserted
}

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"clockbridge/bridge/subscribe"
)

type historyCmd struct {
	subscriber
	form
	ID string `arg:"" help:"Id of the record."`
}

// Run tells what became of one record.
func (c *historyCmd) Run(ctx context.Context, p *program) error {
	s, err := c.open(ctx, p)
	if err != nil {
		return err
	}
	defer s.close()
	out := &story{lines: c.lines(p)}
	if s.state.Last > 0 {
		err = s.Read(ctx, subscribe.Range{To: s.state.Last, Record: c.ID}, out.tell)
	}
	if err == nil {
		err = out.w.Flush()
	}
	if err == nil && out.told == 0 {
		return fmt.Errorf("%s holds no message of the record %q", s.Name, c.ID)
	}
	if err == nil && s.state.First > 1 {
		fmt.Fprintf(p.stderr, "clockbridge: %s begins at position %d: earlier versions may have been dropped\n", s.Name, s.state.First)
	}
	if err == nil && s.state.PerSubject > 0 {
		fmt.Fprintf(p.stderr, "clockbridge: %s keeps %d messages of each record\n", s.Name, s.state.PerSubject)
	}
	return ended(ctx, err)
}

// story is one record's, version by version.
type story struct {
	*lines
	told int
	last []member // of the version before
}

func (o *story) tell(m subscribe.Message) error {
	is := members(m.Data)
	if m.Deleted {
		is = nil
	}
	differ := changes(o.last, is)
	if o.ndjson {
		o.line = append(appendChanges(appendMessage(o.line[:0], &m), differ), "}\n"...)
	} else {
		o.line = o.appendBlock(o.line[:0], &m, differ)
	}
	o.told++
	o.last = is
	_, err := o.w.Write(o.line)
	return err
}

func appendChanges(b []byte, all []change) []byte {
	b = append(b, `,"changed":{`...)
	for i, c := range all {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, c.path), `:{`...)
		if c.old != nil {
			b = appendData(append(b, `"from":`...), c.old.value)
		}
		if c.old != nil && c.new != nil {
			b = append(b, ',')
		}
		if c.new != nil {
			b = appendData(append(b, `"to":`...), c.new.value)
		}
		b = append(b, '}')
	}
	return append(b, '}')
}

// appendBlock shows a version: where and when it was published, and what is new in it.
func (o *story) appendBlock(b []byte, m *subscribe.Message, differ []change) []byte {
	if o.told > 0 {
		b = append(b, '\n')
	}
	when := m.Time
	if t := parseTime(m); !t.IsZero() {
		when = t.Local().Format(time.DateTime)
	}
	b = fmt.Appendf(b, "%s  position %d  %s  %s  version %s\n", when, m.Position, o.paint(m, typeOf(m)), m.Origin, m.Version)
	if m.Deleted {
		return append(b, "  the record is gone\n"...)
	}
	if len(differ) == 0 {
		return append(b, "  nothing differs\n"...)
	}
	for _, c := range differ {
		switch {
		case c.path == "changeVersion" && c.old != nil && c.new != nil: // the line above says it
		case c.old == nil && o.told == 0:
			b = fmt.Appendf(b, "  %s: %s\n", printable(c.path), shown(c.new))
		case c.old == nil:
			b = append(b, o.coloured("32", fmt.Sprintf("  + %s: %s", printable(c.path), shown(c.new)))...)
		case c.new == nil:
			b = append(b, o.coloured("31", fmt.Sprintf("  - %s: %s", printable(c.path), shown(c.old)))...)
		default:
			b = append(b, o.coloured("33", fmt.Sprintf("  ~ %s: %s → %s", printable(c.path), shown(c.old), shown(c.new)))...)
		}
	}
	return b
}

func (o *story) coloured(colour, text string) string {
	if o.colour {
		text = "\x1b[" + colour + "m" + text + "\x1b[0m"
	}
	return text + "\n"
}

// shown is a value on one line.
func shown(m *member) string {
	value := m.value.Clone()
	_ = value.Compact(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)) // it was read before
	return printable(member{m.path, value}.text())
}

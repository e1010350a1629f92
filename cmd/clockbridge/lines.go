package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"clockbridge/bridge"
	"clockbridge/bridge/subscribe"
)

// form is the flag that says how messages are shown.
type form struct {
	Format string `enum:",table,ndjson" default:"" placeholder:"FORM" help:"table, a line for people; or ndjson, one JSON object a line, with the record as the API sent it. Default: table on a terminal, ndjson in a pipe."`
}

// lines writes messages, one a line.
type lines struct {
	w      *bufio.Writer
	ndjson bool
	colour bool
	line   []byte // used again
}

func (c *form) lines(p *program) *lines {
	return &lines{
		w:      bufio.NewWriterSize(p.stdout, 64<<10),
		ndjson: c.Format == "ndjson" || c.Format == "" && !p.terminal,
		colour: p.terminal && os.Getenv("NO_COLOR") == "",
	}
}

func (l *lines) write(m *subscribe.Message) error {
	l.line = l.line[:0]
	if l.ndjson {
		l.line = append(appendMessage(l.line, m), "}\n"...)
	} else {
		l.line = l.appendRow(l.line, m)
	}
	_, err := l.w.Write(l.line)
	return err
}

// appendMessage appends a message as a JSON object, without the last brace.
func appendMessage(b []byte, m *subscribe.Message) []byte {
	b = strconv.AppendUint(append(b, `{"position":`...), m.Position, 10)
	b = appendMember(b, "time", m.Time)
	b = appendMember(b, "type", typeOf(m))
	if m.Unreadable() {
		b = appendMember(b, "reason", m.Reason)
	} else {
		b = appendMember(b, "id", m.ID)
		b = appendMember(b, "changeVersion", m.Version)
	}
	b = appendMember(b, "origin", m.Origin)
	return appendData(append(b, `,"data":`...), m.Data)
}

func appendMember(b []byte, name, value string) []byte {
	b = append(append(append(b, `,"`...), name...), `":`...)
	return appendString(b, value)
}

func appendString(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s) // bytes that are no UTF-8 become U+FFFD
	return b
}

// appendData appends the record as the API sent it, on one line; what is no JSON as a string.
func appendData(b, data []byte) []byte {
	switch {
	case !jsontext.Value(data).IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)):
		return appendString(b, string(data))
	case bytes.ContainsAny(data, "\r\n"):
		for _, c := range data {
			if c != '\r' && c != '\n' { // no string holds one as it is
				b = append(b, c)
			}
		}
		return b
	}
	return append(b, data...)
}

const tableHead = "TIME                  POSITION  TYPE        ID            ORIGIN    RECORD\n"

func (l *lines) appendRow(b []byte, m *subscribe.Message) []byte {
	when := m.Stored.Local().Format("2006-01-02 15:04:05")
	kind := typeOf(m)
	b = fmt.Appendf(b, "%s  %9d  %s  %-12s  %-8s  %s\n", when, m.Position, l.paint(m, fmt.Sprintf("%-10s", kind)), printable(m.ID), m.Origin, summarise(m))
	return b
}

func (l *lines) paint(m *subscribe.Message, text string) string {
	if !l.colour {
		return text
	}
	colour := "32"
	switch typeOf(m) {
	case bridge.TypeDeleted:
		colour = "31"
	case bridge.TypeUnreadable:
		colour = "35"
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// summarise is what a line shows of a record: of a clocking the person, the day, the time and the kind, of others the beginning.
func summarise(m *subscribe.Message) string {
	if m.Unreadable() {
		return printable(m.Reason)
	}
	if r := readClocking(m.Data); r.Minutes != nil {
		words := fmt.Sprintf("person %s  %s %s  %s", r.Person.ID, printable(r.Date), timeOfDay(r.Minutes), printable(r.Kind))
		if r.Status == "Deleted" {
			words += "  deleted by hand"
		}
		return words
	}
	const room = 100
	text := []rune(printable(string(m.Data)))
	if len(text) > room {
		text = append(text[:room], '…')
	}
	return string(text)
}

// printable takes out of a text what would move the cursor of a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || 0x7f <= r && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// parseTime reads when a message was read; the zero time where it does not say.
func parseTime(m *subscribe.Message) time.Time {
	t, _ := time.Parse(time.RFC3339Nano, m.Time)
	return t
}

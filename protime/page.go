package protime

import (
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// MaxItem is the most bytes that one item of a page, or one token of what surrounds the items, may have. It bounds the
// memory that reading a page takes; the number of items is not bounded.
const MaxItem = 64 << 20

const (
	maxLink   = 64 << 10    // bytes of a link; the API itself takes 4,096
	maxBeside = 4 * MaxItem // bytes of members that nobody knows, all together
)

// A ChangeType says what happened to a record.
type ChangeType string

// The change types that the API documents.
const (
	Upsert ChangeType = "InsertOrUpdate"
	Delete ChangeType = "Delete"
)

// Change is one entry of a page. An entry that is not what the API documents is still a change: it says what could be
// read, and Data is there to be kept aside.
type Change struct {
	Type    ChangeType // Upsert for every entry of a plain listing; else what the API wrote, "" if that is no string
	ID      string     // data.id: a number as it is written, a string's value; "" if absent or of another kind
	Version string     // data.changeVersion; "" if absent or not a string
	Date    string     // data.date, YYYY-MM-DD; "" if absent or not a string
	Data    []byte     // data exactly as received (without data, the whole entry); the caller may keep it
}

// Page reads one answer of the API as a stream: memory stays flat, however many changes there are. It is not safe for
// use by several goroutines at once.
//
// Objects may hold members in any order and members that nobody knows. Names may not repeat on the top level; in an item,
// the last one of a name wins. Text that is not UTF-8 passes through untouched.
type Page struct {
	in       pageReader
	body     io.Closer
	dec      *jsontext.Decoder
	delta    bool
	linkless bool                    // a plain list, whose last page has no link
	content  string                  // " (text/html)" if the answer claimed not to be JSON
	check    func(link string) error // says why a link may not be followed

	step        func() (Change, error) // what to read next
	beside      int64                  // bytes of members that nobody knows
	value       bool                   // value was there
	next, after link                   // nextLink, deltaLink
	err         error                  // io.EOF once all is well; anything else is final too
}

type link struct {
	seen bool // the member was there, be it null
	text string
}

// NewPage reads a page of a delta from body. In a page of a deltaLink (delta) the items are
// {"changeType":...,"data":{...}}; in a page of the listing that comes first they are the records themselves.
// Exactly one of the two links must be there, of which Fetch also checks where it leads.
func NewPage(body io.ReadCloser, delta bool) *Page {
	p := &Page{in: pageReader{r: body}, body: body, delta: delta, check: func(string) error { return nil }}
	p.in.allow(0)
	p.dec = jsontext.NewDecoder(&p.in, lenient...)
	p.step = p.open
	return p
}

// Next returns the next change. It returns io.EOF once the body was read to its end and is well formed, with what must
// follow it named: then, and only then, the links may be asked for. Every other error, always a *PageError, is final, and
// says that the page names no successor; the changes returned before it are true all the same.
func (p *Page) Next() (Change, error) {
	if p.err != nil {
		return Change{}, p.err
	}
	c, err := p.step()
	if err != nil {
		p.err = err
	}
	return c, err
}

// NextLink returns where the listing goes on; "" until Next has returned io.EOF, or if it does not.
func (p *Page) NextLink() string { return p.link(p.next) }

// DeltaLink returns where later changes will be found; "" until Next has returned io.EOF, or if the listing goes on.
func (p *Page) DeltaLink() string { return p.link(p.after) }

func (p *Page) link(l link) string {
	if !errors.Is(p.err, io.EOF) {
		return ""
	}
	return l.text
}

// Close releases the connection. A page that was not read to its end stays without links.
func (p *Page) Close() error {
	if p.err == nil {
		p.err = &PageError{Reason: "page is closed"}
	}
	return p.body.Close()
}

// open reads the brace that begins the page.
func (p *Page) open() (Change, error) {
	t, err := p.token()
	var bad *PageError
	switch {
	case err == nil && t.Kind() != '{', errors.As(err, &bad) && bad.Reason == malformed:
		return Change{}, &PageError{Reason: "not a JSON object" + p.content}
	case err != nil:
		return Change{}, err
	}
	p.step = p.members
	return p.step()
}

// members reads the top level up to the first item, or to the end of the body.
func (p *Page) members() (Change, error) {
	for {
		begin := p.dec.InputOffset()
		name, err := p.token()
		if err != nil {
			return Change{}, err
		}
		if name.Kind() == '}' {
			return Change{}, p.end()
		}
		switch name := name.String(); name {
		case "value":
			if p.value {
				return Change{}, &PageError{Reason: "value is there twice"}
			}
			p.value = true
			if kind := p.dec.PeekKind(); kind != '[' && kind != 0 {
				return Change{}, &PageError{Reason: "value is not an array"}
			}
			if _, err := p.token(); err != nil {
				return Change{}, err
			}
			p.step = p.items
			return p.step()
		case "nextLink":
			err = p.readLink(&p.next, name)
		case "deltaLink":
			err = p.readLink(&p.after, name)
		default:
			err = p.skip(begin)
		}
		if err != nil {
			return Change{}, err
		}
	}
}

func (p *Page) readLink(l *link, name string) error {
	if l.seen {
		return &PageError{Reason: name + " is there twice"}
	}
	l.seen = true
	p.in.allow(p.dec.InputOffset())
	v, err := p.dec.ReadValue()
	if err != nil {
		return p.broken(err)
	}
	if v.Kind() == 'n' {
		return nil // the same as absent
	}
	text, ok := unquote(nil, v)
	switch {
	case !ok || len(text) == 0:
		return &PageError{Reason: name + " is not a link"}
	case len(text) > maxLink:
		return &PageError{Reason: fmt.Sprintf("%s of %d bytes, more than %d", name, len(text), maxLink)}
	}
	l.text = string(text)
	return nil
}

// items reads one item, or what follows the last one.
func (p *Page) items() (Change, error) {
	p.in.allow(p.dec.InputOffset())
	if p.dec.PeekKind() == ']' {
		if _, err := p.token(); err != nil {
			return Change{}, err
		}
		p.step = p.members
		return p.step()
	}
	v, err := p.dec.ReadValue()
	if err != nil {
		return Change{}, p.broken(err)
	}
	if len(v) > MaxItem {
		return Change{}, p.broken(errTooLong)
	}
	return newChange(v, p.delta), nil
}

// newChange reads one item, which must be valid JSON without space around it, and copies what it keeps.
func newChange(v []byte, delta bool) Change {
	c := Change{Type: Upsert}
	var r record
	if delta {
		c.Type = ""
		var t item
		if v[0] == '{' {
			t.scan(v)
			c.Type = changeType(t.kind)
		}
		if t.data != nil {
			v = t.data
		}
		r = t.record
	} else if v[0] == '{' {
		r.scan(v, 0)
	}
	c.Data = append(make([]byte, 0, len(v)), v...)
	c.ID, c.Version, c.Date = r.strings()
	return c
}

func changeType(kind []byte) ChangeType {
	switch string(kind) {
	case `"InsertOrUpdate"`:
		return Upsert
	case `"Delete"`:
		return Delete
	}
	text, _ := unquote(nil, kind)
	return ChangeType(text)
}

// end judges the whole page once its closing brace was read.
func (p *Page) end() error {
	p.in.allow(p.dec.InputOffset())
	if _, err := p.dec.ReadToken(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("a second JSON value")
		}
		return &PageError{Reason: "something follows the end", Err: p.cause(err)}
	}
	switch {
	case !p.value:
		return &PageError{Reason: "no value"}
	case p.next.text != "" && p.after.text != "":
		return &PageError{Reason: "both nextLink and deltaLink"}
	case p.next.text == "" && p.after.text == "" && !p.linkless:
		return &PageError{Reason: "neither nextLink nor deltaLink"}
	}
	for _, l := range []link{p.next, p.after} {
		if l.text == "" {
			continue
		}
		if err := p.check(l.text); err != nil {
			return &PageError{Reason: "bad link", Err: err}
		}
	}
	return io.EOF
}

// token reads one token.
func (p *Page) token() (jsontext.Token, error) {
	p.in.allow(p.dec.InputOffset())
	t, err := p.dec.ReadToken()
	if err != nil {
		return t, p.broken(err)
	}
	return t, nil
}

// skip reads the value of a member that nobody knows and that began at begin, token by token, so that no memory is needed for it.
func (p *Page) skip(begin int64) error {
	for depth := p.dec.StackDepth(); ; {
		_, err := p.token()
		beside := p.beside + p.dec.InputOffset() - begin
		switch {
		case err != nil:
			return err
		case beside > maxBeside:
			return &PageError{Reason: fmt.Sprintf("more than %d bytes that nobody knows", maxBeside)}
		case p.dec.StackDepth() <= depth:
			p.beside = beside
			return nil
		}
	}
}

// broken shapes an error of the decoder.
func (p *Page) broken(err error) error {
	err = p.cause(err)
	reason := malformed
	switch {
	case errors.Is(err, errTooLong):
		return &PageError{Reason: err.Error()}
	case err == p.in.err, //nolint:errorlint // this very error, not one like it
		errors.Is(err, io.ErrUnexpectedEOF):
		reason = "cut short"
	}
	return &PageError{Reason: reason, Err: err}
}

// cause prefers what the connection said to what the decoder made of it, and never lets io.EOF through: callers take
// that for a good end.
func (p *Page) cause(err error) error {
	if p.in.err != nil && !errors.Is(p.in.err, io.EOF) {
		return p.in.err
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

const malformed = "not well formed"

var errTooLong = fmt.Errorf("an item of more than %d bytes", MaxItem)

// pageReader bounds how far the decoder may read ahead, skips a byte order mark and remembers how the body ended.
type pageReader struct {
	r     io.Reader
	read  int64 // bytes handed on
	limit int64 // the most of them
	begun bool
	err   error
}

// allow lets the decoder, which has consumed offset bytes, read one more item.
func (r *pageReader) allow(offset int64) { r.limit = offset + MaxItem + 64<<10 }

func (r *pageReader) Read(b []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.read >= r.limit {
		r.err = errTooLong
		return 0, r.err
	}
	if int64(len(b)) > r.limit-r.read {
		b = b[:r.limit-r.read]
	}
	var n int
	if !r.begun && len(b) >= len(byteOrderMark) {
		r.begun = true
		n, r.err = io.ReadAtLeast(r.r, b, len(byteOrderMark))
		if errors.Is(r.err, io.ErrUnexpectedEOF) {
			r.err = io.EOF
		}
		if n >= len(byteOrderMark) && string(b[:len(byteOrderMark)]) == byteOrderMark {
			n = copy(b, b[len(byteOrderMark):n])
		}
	} else {
		n, r.err = r.r.Read(b)
	}
	r.read += int64(n)
	if n > 0 {
		return n, nil
	}
	return 0, r.err
}

// byteOrderMark may come first in JSON texts of some servers, and means nothing there (RFC 8259, section 8.1).
const byteOrderMark = "\ufeff"

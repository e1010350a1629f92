package protimetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// page is an answer that is ready to be written. It holds no bytes of its own: records were rendered when they changed.
type page struct {
	log     []change // as it was when the answer was made
	show    []int32  // indexes into log; ^i = a Delete in place of log[i], which left the filter
	left    func(*change) []byte
	more    bool // there are records behind this page
	wrapped bool // {"changeType","data"} instead of plain records
	single  bool // one record and nothing around it
	refs    *references
	link    string // name of the link, "" = none
	target  string
}

// buffers are of the size in which bodies are written.
var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 128<<10)} }}

// buffer writes in pieces of about 64 KiB, however small what it is given.
type buffer struct {
	w   io.Writer
	b   []byte
	err error
}

func (b *buffer) flush() {
	if b.err == nil && len(b.b) > 0 {
		_, b.err = b.w.Write(b.b)
	}
	b.b = b.b[:0]
}

// write streams the page; fault is what must be wrong with it.
func (p *page) write(w http.ResponseWriter, fault FaultKind) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	out := buffers.Get().(*buffer)
	out.w, out.b, out.err = w, out.b[:0], nil
	defer func() {
		out.w = nil
		buffers.Put(out)
	}()
	if p.single {
		out.b = append(out.b, p.refs.add(p.log[p.show[0]].data)...)
		out.flush()
		return
	}
	out.b = append(out.b, '{')
	if fault != NoValue {
		out.b = append(out.b, `"value":[`...)
		p.items(out)
		out.b = append(out.b, ']')
	}
	if p.link != "" && fault != NoLink {
		if fault != NoValue {
			out.b = append(out.b, ',')
		}
		target, _ := marshalRaw(p.target) // a string always marshals
		out.b = fmt.Appendf(out.b, `%q:%s`, p.link, target)
	}
	out.b = append(out.b, '}')
	if fault == Garbage {
		out.b = append(out.b, "<!-- trailing -->"...)
	}
	out.flush()
}

func (p *page) items(out *buffer) {
	for n, i := range p.show {
		if out.err != nil {
			return // the client is gone
		}
		if n > 0 {
			out.b = append(out.b, ',')
		}
		left := i < 0
		if left {
			i = ^i
		}
		switch ch := &p.log[i]; {
		case !p.wrapped:
			out.b = append(out.b, p.refs.add(ch.data)...)
		case left:
			out.b = append(out.b, `{"changeType":"Delete","data":`...)
			out.b = append(append(out.b, p.left(ch)...), '}')
		case ch.removed:
			out.b = append(out.b, `{"changeType":"Delete","data":`...)
			out.b = append(append(out.b, ch.data...), '}')
		default:
			out.b = append(out.b, `{"changeType":"InsertOrUpdate","data":`...)
			out.b = append(append(out.b, p.refs.add(ch.data)...), '}')
		}
		if len(out.b) >= 64<<10 {
			out.flush()
		}
	}
}

// marshalRaw is json.Marshal without its escapes for HTML.
func marshalRaw(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := marshalRaw(v)
	if err != nil {
		panic(fmt.Sprintf("protimetest: answer: %v", err))
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b) //nolint:errcheck // the client is gone
}

// errorBody is the documented one.
type errorBody struct {
	Error struct {
		Code    string   `json:"code"`
		Message string   `json:"message"`
		Reasons []string `json:"reasons,omitempty"`
	} `json:"error"`
}

func writeError(w http.ResponseWriter, status int, message string, reasons ...string) {
	var body errorBody
	body.Error.Code, body.Error.Message, body.Error.Reasons = codeOf(status), message, reasons
	writeJSON(w, status, body)
}

func codeOf(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "BadRequest"
	case http.StatusUnauthorized:
		return "Unauthorized"
	case http.StatusForbidden:
		return "Forbidden"
	case http.StatusNotFound:
		return "NotFound"
	case http.StatusMethodNotAllowed:
		return "MethodNotAllowed"
	case http.StatusRequestTimeout:
		return "RequestTimeout"
	case http.StatusConflict:
		return "Conflict"
	case http.StatusGone:
		return "Gone"
	case http.StatusRequestURITooLong:
		return "UriTooLong"
	case http.StatusTooManyRequests:
		return "TooManyRequests"
	case http.StatusServiceUnavailable:
		return "ServiceUnavailable"
	}
	return "InternalServerError"
}

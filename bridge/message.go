package bridge

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"clockbridge/protime"
	"clockbridge/store"
)

// Origins: how a change came to be published.
const (
	OriginSnapshot = "snapshot" // the first listing of a feed
	OriginDelta    = "delta"    // a change reported by a deltaLink
	OriginResync   = "resync"   // found different by a listing after the first
	OriginRepair   = "repair"   // fetched again because the stream had lost it
	OriginErasure  = "erasure"  // no change of the API's: a deletion in place of what was erased to forget a person
)

// Headers of a message: CloudEvents 1.0, NATS binding, binary mode, with two extensions; and four that are no attributes of the event.
const (
	headerSpecVersion   = "ce-specversion"
	headerID            = "ce-id"
	headerSource        = "ce-source"
	headerType          = "ce-type"
	headerSubject       = "ce-subject"
	headerTime          = "ce-time"
	headerDataType      = "ce-datacontenttype"
	headerContentType   = "content-type" // the same, where other bindings and some SDKs look for it
	headerChangeVersion = "ce-changeversion"
	headerOrigin        = "ce-origin"
	headerWalk          = "clockbridge-walk"   // number of the walk before it was read
	headerReason        = "clockbridge-reason" // on unreadable changes only: why it was kept aside
	headerTraceParent   = "traceparent"        // where the round is traced: the span of the append
)

// invalidToken is the last subject token of changes that could not be read.
const invalidToken = "invalid"

// invalidKey begins the index key of a change that was kept aside, in place of a record id: such a change
// has no usable id, so it is known by the hash of its bytes. No record id may hold a NUL: see checkID.
const invalidKey = "\x00"

// maxID is the longest record id, in bytes, that gets a subject. The API documents integers and GUIDs.
const maxID = 128

// message is one message of the stream: what the index will say of it, and what subscribers see.
type message struct {
	store.Entry        // ID (or invalidKey and a hash), Version, Date, Walk, Deleted; Position once stored
	prev        uint64 // position of the record's message before this one; 0 = none, or prevUnknown
	data        []byte
	origin      string
	reason      string // why a change is kept aside; "" for readable ones
}

// prevUnknown stands for a position before that nobody knows: of a record whose last message the stream has lost, since an
// older one may survive, and of unreadable changes, which share a subject.
const prevUnknown = ^uint64(0)

func (m *message) invalid() bool { return isInvalidKey(m.ID) }

func isInvalidKey(id string) bool { return strings.HasPrefix(id, invalidKey) }

// StreamName returns the name of a feed's stream, such as PROTIME_ACME_CLOCKINGS.
func StreamName(tenant, collection string) string {
	return "PROTIME_" + strings.ToUpper(tenant) + "_" + strings.ToUpper(collection)
}

// SubjectPrefix returns what the subjects of a feed begin with, such as "protime.acme.clockings".
func SubjectPrefix(tenant, collection string) string {
	return "protime." + tenant + "." + collection
}

// Subject returns the subject of one record. Every id has exactly one subject and every subject one id: bytes that a
// subject token cannot hold are written as %XX, and so is the first letter of an id that reads "invalid".
func Subject(tenant, collection, id string) string {
	return SubjectPrefix(tenant, collection) + "." + token(id)
}

func token(id string) string {
	if id == invalidToken {
		return fmt.Sprintf("%%%02X", id[0]) + id[1:]
	}
	return escape(id, func(c byte) bool {
		return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-' || c == '_'
	})
}

// isText reports whether s may be the value of a CloudEvents attribute: Unicode without controls and noncharacters.
func isText(s string) bool {
	for _, r := range s {
		if unicode.IsControl(r) || r&0xfffe == 0xfffe || 0xfdd0 <= r && r <= 0xfdef {
			return false
		}
	}
	return utf8.ValidString(s)
}

// attribute writes the value of a CloudEvents attribute as a header value: the binding asks for printable ASCII, with
// spaces, double quotes and percent signs escaped.
func attribute(v string) string {
	return escape(v, func(c byte) bool { return 0x21 <= c && c <= 0x7e && c != '"' && c != '%' })
}

// escape writes the bytes of s that are not plain as %XX. Most strings here are plain from end to end.
func escape(s string, plain func(byte) bool) string {
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	b := []byte(s[:i])
	for ; i < len(s); i++ {
		if plain(s[i]) {
			b = append(b, s[i])
		} else {
			b = fmt.Appendf(b, "%%%02X", s[i])
		}
	}
	return string(b)
}

// checkID says why id cannot name a record, or "".
func checkID(id string) string {
	switch {
	case id == "":
		return "no id"
	case len(id) > maxID:
		return fmt.Sprintf("id of %d bytes, more than %d", len(id), maxID)
	case !isText(id):
		return "id is not text"
	}
	return ""
}

// keepAside makes the message for a change that cannot be published under its record's subject.
func keepAside(c protime.Change, reason, origin string, room int) message {
	sum := sha256.Sum256(c.Data)
	data := c.Data
	if len(data) > room {
		// It cannot be published as it is, here as little as elsewhere; what fits lets a person find the record.
		reason = fmt.Sprintf("%s; the first %d of %d bytes are kept", reason, room, len(data))
		data = data[:room]
	}
	return message{
		Entry:  store.Entry{ID: invalidKey + hex.EncodeToString(sum[:]), Deleted: true},
		data:   data,
		origin: origin,
		reason: reason,
	}
}

// codec turns messages of one feed into NATS messages and back.
type codec struct {
	prefix  string   // subject prefix, without the last dot
	idBase  string   // what ids of events begin with, "<tenant>/<collection>/"
	source  []string // the collection's URL
	upsert  []string // ce-type of an InsertOrUpdate
	delete  []string
	invalid []string
}

var (
	specVersion = []string{"1.0"}
	typeJSON    = []string{"application/json"}
	typeBytes   = []string{"application/octet-stream"} // of a change that had to be cut short
)

func newCodec(tenant, collection, source string) codec {
	kind := "eu.myprotime." + collection
	return codec{
		prefix:  SubjectPrefix(tenant, collection),
		idBase:  tenant + "/" + collection + "/",
		source:  []string{attribute(source)},
		upsert:  []string{kind + "." + TypeUpserted},
		delete:  []string{kind + "." + TypeDeleted},
		invalid: []string{kind + "." + TypeUnreadable},
	}
}

// headerRoom bounds what the headers of a message take, ids and changeVersions included, in bytes.
const headerRoom = 5120

// stamp holds the headers that are the same for all messages of an append.
type stamp struct{ time, walk, parent []string } // parent: nil = none

// stampOf says that what was read in the time of a walk is being sent now.
func stampOf(walk uint64, now time.Time) stamp {
	return stamp{time: []string{now.UTC().Format(time.RFC3339Nano)}, walk: []string{strconv.FormatUint(walk, 10)}}
}

// encode fills msg, whose Header is cleared first, for m. msg and what it holds may be used again once it was published, which
// saves most of what a message costs.
func (c *codec) encode(msg *nats.Msg, m *message, s stamp) {
	h := msg.Header
	clear(h)
	h[headerSpecVersion] = specVersion
	h[headerSource] = c.source
	h[headerTime] = s.time
	h[headerWalk] = s.walk
	h[headerDataType], h[headerContentType] = typeJSON, typeJSON
	h[headerOrigin] = []string{m.origin}
	if s.parent != nil {
		h[headerTraceParent] = s.parent
	}
	msg.Data, msg.Reply = m.data, ""
	if m.invalid() {
		h[headerID] = []string{c.idBase + invalidToken + "/" + m.ID[len(invalidKey):] + m.suffix()}
		h[headerType] = c.invalid
		h[headerReason] = []string{strings.Map(printable, m.reason)}
		if !json.Valid(m.data) {
			h[headerDataType], h[headerContentType] = typeBytes, typeBytes
		}
		msg.Subject = c.prefix + "." + invalidToken
		return
	}
	h[headerType] = c.upsert
	if m.Deleted {
		h[headerType] = c.delete
	}
	h[headerID] = []string{attribute(c.idBase + eventID(m))}
	h[headerSubject] = []string{attribute(m.ID)}
	h[headerChangeVersion] = []string{attribute(m.Version)}
	msg.Subject = c.prefix + "." + token(m.ID)
}

// eventID names one change of a record within its feed. A deletion that a resync found has the version of the change before it, and
// whoever drops events that it has seen goes by the id, so a deletion's id says that it is one.
func eventID(m *message) string {
	id := token(m.ID) + "/" + token(m.Version)
	if m.Deleted {
		id += cmp.Or(m.suffix(), "/"+TypeDeleted)
	}
	return id
}

// suffix ends the name of an erasure, which is an event of its own.
func (m *message) suffix() string {
	if m.Erased {
		return "/erased"
	}
	return ""
}

// errForeign is wrapped by decode for a message that this feed cannot have written.
var errForeign = errors.New("foreign message")

// decode reads back what encode wrote.
func (c *codec) decode(subject string, h nats.Header, data []byte, position uint64) (message, error) {
	foreign := func(why string) (message, error) {
		return message{}, fmt.Errorf("%w at position %d, subject %s: %s", errForeign, position, subject, why)
	}
	var bad error
	get := func(k string) string {
		v, err := url.PathUnescape(h.Get(k))
		bad = errors.Join(bad, err)
		return v
	}
	tok, ok := strings.CutPrefix(subject, c.prefix+".")
	if !ok || strings.Contains(tok, ".") {
		return foreign("not a subject of this feed")
	}
	rest, ok := strings.CutPrefix(get(headerID), c.idBase)
	if !ok {
		return foreign(fmt.Sprintf("header %s is %q", headerID, get(headerID)))
	}
	m := message{data: data, origin: get(headerOrigin), reason: h.Get(headerReason)}
	m.Position = position
	m.Walk, _ = strconv.ParseUint(h.Get(headerWalk), 10, 64) // without it, it is older than all of them
	erased := m.origin == OriginErasure
	if tok == invalidToken {
		m.Erased = erased
		sum, ok := strings.CutPrefix(rest, invalidToken+"/")
		sum = strings.TrimSuffix(sum, m.suffix())
		if !ok || get(headerType) != c.invalid[0] {
			return foreign("not an unreadable change of this feed")
		}
		m.ID, m.Deleted = invalidKey+sum, true
		return m, nil
	}
	m.ID, m.Version = get(headerSubject), get(headerChangeVersion)
	switch {
	case bad != nil:
		return foreign(bad.Error())
	case token(m.ID) != tok:
		return foreign(fmt.Sprintf("header %s is %q", headerSubject, m.ID))
	}
	switch get(headerType) {
	case c.upsert[0]:
		_, _, m.Date, _ = protime.ParseRecord(data)
	case c.delete[0]:
		m.Deleted, m.Erased = true, erased
	default:
		return foreign(fmt.Sprintf("header %s is %q", headerType, get(headerType)))
	}
	// Streams hold messages from when the id was made of the two as they are.
	if rest != eventID(&m) && rest != m.ID+"/"+m.Version || m.Version == "" {
		return foreign(fmt.Sprintf("header %s is %q", headerID, get(headerID)))
	}
	return m, nil
}

// deletedData is the payload of a deletion that a resync found: the API sent none.
func deletedData(id string) []byte {
	literal := []byte(id)
	if !json.Valid(literal) || strings.Trim(id, "+-.0123456789Ee") != "" {
		literal, _ = json.Marshal(id) // a string always marshals
	}
	return fmt.Appendf(nil, `{"id":%s}`, literal)
}

func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return ' '
	}
	return r
}

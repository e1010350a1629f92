package bridge

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"clockbridge/protime"
	"clockbridge/store"
)

func encoded(c *codec, m *message) *nats.Msg {
	msg := &nats.Msg{Header: nats.Header{"left": {"over"}}}
	c.encode(msg, m, stampOf(m.Walk, time.Now()))
	return msg
}

func TestSubject(t *testing.T) {
	tests := []struct{ id, want string }{
		{"1050", "protime.acme.clockings.1050"},
		{"-7", "protime.acme.clockings.-7"},
		{"6f9619ff-8b86-d011-b42d-00c04fc964ff", "protime.acme.clockings.6f9619ff-8b86-d011-b42d-00c04fc964ff"},
		{"a.b c*>", "protime.acme.clockings.a%2Eb%20c%2A%3E"},
		{"100%", "protime.acme.clockings.100%25"},
		{"invalid", "protime.acme.clockings.%69nvalid"},
		{"é", "protime.acme.clockings.%C3%A9"},
	}
	for _, tt := range tests {
		if got := Subject("acme", "clockings", tt.id); got != tt.want {
			t.Errorf("Subject(%q) = %s, want %s", tt.id, got, tt.want)
		}
	}
}

// FuzzMessage checks that whatever a record is called, its message says so and nothing else.
func FuzzMessage(f *testing.F) {
	f.Add("1050", "0000090200004BD0000A", []byte(`{"id":1050,"date":"2026-01-15"}`), false)
	f.Add("invalid", "A", []byte(`{}`), true)
	f.Add("a b.c", "\r\nX: y", []byte(" "), false)
	f.Add("%41", "1%", []byte(nil), false)
	c := newCodec("acme", "clockings", "https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings")
	f.Fuzz(func(t *testing.T, id, version string, data []byte, deleted bool) {
		if unreadable(protime.Change{Type: protime.Upsert, ID: id, Version: version}, 0) != "" {
			return
		}
		m := message{Entry: store.Entry{ID: id, Version: version, Deleted: deleted, Position: 7}, data: data, origin: OriginDelta}
		msg := encoded(&c, &m)
		for k, v := range msg.Header {
			if strings.ContainsAny(v[0], "\r\n") || strings.TrimSpace(v[0]) != v[0] {
				t.Fatalf("header %s is %q", k, v[0])
			}
		}
		if strings.ContainsAny(msg.Subject[len(c.prefix)+1:], ". *>\r\n") || strings.HasSuffix(msg.Subject, ".invalid") {
			t.Fatalf("subject is %q", msg.Subject)
		}
		got, err := c.decode(msg.Subject, msg.Header, msg.Data, 7)
		if err != nil {
			t.Fatal(err)
		}
		got.Date = ""
		if got.Entry != m.Entry || !bytes.Equal(got.data, m.data) || got.origin != m.origin {
			t.Fatalf("decoded %+v, want %+v", got, m)
		}
	})
}

// FuzzDecode reads whatever may lie in a stream.
func FuzzDecode(f *testing.F) {
	f.Add("protime.acme.clockings.1", "acme/clockings/1/A", "eu.myprotime.clockings.upserted", "1", "A", []byte(`{"id":1}`))
	f.Add("protime.acme.clockings.invalid", "acme/clockings/invalid/ff", "eu.myprotime.clockings.unreadable", "", "", []byte(`x`))
	c := newCodec("acme", "clockings", "https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings")
	f.Fuzz(func(t *testing.T, subject, id, kind, record, version string, data []byte) {
		h := nats.Header{headerID: {id}, headerType: {kind}, headerSubject: {record}, headerChangeVersion: {version}}
		m, err := c.decode(subject, h, data, 1)
		if err != nil {
			if !errors.Is(err, errForeign) {
				t.Fatalf("error is %v, want %v", err, errForeign)
			}
			return
		}
		if again := encoded(&c, &m); again.Subject != subject {
			t.Fatalf("message on %q was read as one of %q", subject, again.Subject)
		}
	})
}

// TestAttribute is the example of the NATS binding, and what else must be written otherwise.
func TestAttribute(t *testing.T) {
	for v, want := range map[string]string{
		"Euro € 😀": "Euro%20%E2%82%AC%20%F0%9F%98%80", `"100%"`: "%22100%25%22", "\u007f\u0085": "%7F%C2%85", "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~": "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~",
	} {
		if got := attribute(v); got != want {
			t.Errorf("%q is written %s, want %s", v, got, want)
		}
	}
	c := newCodec("acme", "clockings", "http://[fe80::1%eth0]/clockings")
	m := message{Entry: store.Entry{ID: "1", Version: "A"}, origin: OriginDelta}
	if got, want := encoded(&c, &m).Header.Get(headerSource), "http://[fe80::1%25eth0]/clockings"; got != want {
		t.Errorf("header %s is %s, want %s", headerSource, got, want)
	}
}

// TestEventID: no two changes of a feed are one event.
func TestEventID(t *testing.T) {
	seen := map[string]store.Entry{}
	for _, e := range []store.Entry{
		{ID: "1", Version: "A"}, {ID: "1", Version: "A", Deleted: true}, {ID: "1", Version: "A/deleted"}, {ID: "1", Version: "A/B"}, {ID: "1/A", Version: "B"},
		{ID: "invalid", Version: "A"}, {ID: "%69nvalid", Version: "A"}, {ID: invalidKey + "A"}, {ID: "a%2Fb", Version: "A"}, {ID: "a/b", Version: "A"},
	} {
		c := newCodec("acme", "clockings", "https://x/clockings")
		id := encoded(&c, &message{Entry: e, origin: OriginDelta}).Header.Get(headerID)
		if was, ok := seen[id]; ok {
			t.Errorf("%+v and %+v are both event %s", was, e, id)
		}
		seen[id] = e
	}
}

// TestUnreadable_notText: no attribute of an event may hold controls, noncharacters, or what is not Unicode at all.
func TestUnreadable_notText(t *testing.T) {
	for _, s := range []string{"\x00", "\xff", "a\nb", "\u007f", "\u0085", "\ufffe", "\U0010ffff", "\ufdd0"} {
		for what, c := range map[string]protime.Change{
			"id":            {Type: protime.Upsert, ID: s, Version: "A"},
			"changeVersion": {Type: protime.Upsert, ID: "1", Version: s},
		} {
			if reason := unreadable(c, 1000); !strings.HasPrefix(reason, what) || !strings.HasSuffix(reason, "is not text") {
				t.Errorf("%s %q: reason is %q", what, s, reason)
			}
		}
	}
	for _, s := range []string{"1050", "a b", "é€😀", "\u00a0", "\ufffd", `"%`} {
		if reason := unreadable(protime.Change{Type: protime.Upsert, ID: s, Version: s}, 1000); reason != "" {
			t.Errorf("%q: reason is %q", s, reason)
		}
	}
}

// TestDecode_earlier reads what streams hold from before ids of events said of deletions that they are some, were made of what is in
// the subject, and could have any bytes; and from before there was a content type where the binding has it.
func TestDecode_earlier(t *testing.T) {
	c := newCodec("acme", "clockings", "https://x/clockings")
	for _, e := range []store.Entry{
		{ID: "1050", Version: "A", Position: 3}, {ID: "1050", Version: "A", Position: 3, Deleted: true}, {ID: "a b/\xff\x01", Version: "A/B", Position: 3, Deleted: true},
	} {
		m := message{Entry: e, origin: OriginDelta}
		msg := encoded(&c, &m)
		msg.Header.Set(headerID, attribute("acme/clockings/"+e.ID+"/"+e.Version))
		msg.Header.Del(headerDataType)
		if got, err := c.decode(msg.Subject, msg.Header, nil, 3); err != nil || got.Entry != e {
			t.Errorf("decoded %+v, %v; want %+v", got.Entry, err, e)
		}
	}
}

// TestHeaderRoom: the longest id and changeVersion, written as they take most, leave room for what the server and a chain add.
func TestHeaderRoom(t *testing.T) {
	name := strings.Repeat("a", 63)
	c := newCodec(name, name, "https://"+name+".myprotime.eu/connector/protimeapi/api/v1/"+name)
	m := message{Entry: store.Entry{ID: strings.Repeat("é", maxID/2), Version: strings.Repeat("é", maxVersion/2), Deleted: true}, origin: OriginSnapshot}
	s := stampOf(1<<63, time.Now())
	s.parent = []string{strings.Repeat("0", 55)}
	msg := &nats.Msg{Header: nats.Header{}}
	c.encode(msg, &m, s)
	size := 0
	for k, v := range msg.Header {
		size += len(k) + len(": \r\n") + len(v[0])
	}
	if size > headerRoom-512 {
		t.Errorf("headers of %d bytes, of %d", size, headerRoom)
	}
}

func TestDecode_Foreign(t *testing.T) {
	c := newCodec("acme", "clockings", "https://x/clockings")
	m := message{Entry: store.Entry{ID: "1", Version: "A"}, data: []byte(`{"id":1}`), origin: OriginDelta}
	tests := map[string]func(msg *nats.Msg){
		"no headers":        func(msg *nats.Msg) { msg.Header = nil },
		"another feed's id": func(msg *nats.Msg) { msg.Header.Set(headerID, "other/clockings/1/A") },
		"another record":    func(msg *nats.Msg) { msg.Subject = "protime.acme.clockings.2" },
		"another type":      func(msg *nats.Msg) { msg.Header.Set(headerType, "com.example.thing") },
		"another subject":   func(msg *nats.Msg) { msg.Subject = "protime.acme.absences.1" },
		"no version":        func(msg *nats.Msg) { msg.Header.Del(headerChangeVersion) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			msg := encoded(&c, &m)
			change(msg)
			if got, err := c.decode(msg.Subject, msg.Header, msg.Data, 3); !errors.Is(err, errForeign) {
				t.Errorf("decoded %+v, %v; want %v", got, err, errForeign)
			}
		})
	}
}

func TestDeletedData(t *testing.T) {
	tests := map[string]string{
		"1001": `{"id":1001}`, "-3": `{"id":-3}`, "007": `{"id":"007"}`, "true": `{"id":"true"}`,
		"6f96-aa": `{"id":"6f96-aa"}`, `a"b`: `{"id":"a\"b"}`, "12345678901234567890123": `{"id":12345678901234567890123}`,
		"5 ": `{"id":"5 "}`,
	}
	for id, want := range tests {
		if got := string(deletedData(id)); got != want {
			t.Errorf("deletedData(%q) = %s, want %s", id, got, want)
		}
	}
}

func TestKeepAside(t *testing.T) {
	c := protime.Change{Type: "Moved", Data: bytes.Repeat([]byte("x"), 100)}
	m := keepAside(c, "unknown change type", OriginDelta, 40)
	if len(m.data) != 40 || !strings.Contains(m.reason, "40 of 100 bytes") {
		t.Errorf("kept %d bytes with reason %q, want the first 40 and a reason that says so", len(m.data), m.reason)
	}
	codec := newCodec("acme", "clockings", "https://x/clockings")
	m.reason = "é\r\nX: y"
	if got, want := encoded(&codec, &m).Header.Get(headerReason), "   X: y"; got != want {
		t.Errorf("header %s is %q, want %q", headerReason, got, want)
	}
	whole := keepAside(c, "unknown change type", OriginDelta, 100)
	if len(whole.data) != 100 || whole.ID != m.ID {
		t.Errorf("kept %d bytes under %q, want all 100 under %q", len(whole.data), whole.ID, m.ID)
	}
}

package bridge

import (
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"clockbridge/protime"
	"clockbridge/store"
)

// FuzzSubject: every id has one subject token, which NATS takes and from which the id can be told, and no other id has it.
func FuzzSubject(f *testing.F) {
	for _, id := range []string{
		"1050", "-7", "1.0E2", "123456789012345678901234567890", "6f9619ff-8b86-d011-b42d-00c04fc964ff", "100-17-3", "invalid", "%69nvalid",
		"a.b c*>", "100%", "é", "\xff", "\x00", " ", "*", ">", "$JS.API", "\r\n", strings.Repeat("9", maxID+1),
	} {
		f.Add(id, "1050")
	}
	f.Fuzz(func(t *testing.T, id, other string) {
		if checkID(id) != "" {
			return
		}
		got := token(id)
		if strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(".*>", r) }) || got == "" || got == invalidToken {
			t.Fatalf("id %q has the token %q", id, got)
		}
		if len(got) > 3*maxID {
			t.Fatalf("id %q has a token of %d bytes", id, len(got))
		}
		if back, err := url.PathUnescape(got); err != nil || back != id {
			t.Fatalf("id %q has the token %q, which is that of %q, %v", id, got, back, err)
		}
		if (token(other) == got) != (other == id) {
			t.Fatalf("ids %q and %q have the tokens %q and %q", id, other, got, token(other))
		}
	})
}

// FuzzAttribute: an attribute of an event is one line of printable ASCII, and says what it was made of.
func FuzzAttribute(f *testing.F) {
	for _, v := range []string{"acme/clockings/1050/0000090200004BD0000B", "", "a b", `"`, "100%", "%41", "é", "\xff\r\nX-Y: z", "\x00\x7f"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		got := attribute(v)
		if strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
			t.Fatalf("%q is written as %q", v, got)
		}
		if back, err := url.PathUnescape(got); err != nil || back != v {
			t.Fatalf("%q is written as %q, which says %q, %v", v, got, back, err)
		}
	})
}

// FuzzStored reads whatever may lie in a stream, down to the bytes of its headers: what is taken for a message of this feed would be
// written just so again.
func FuzzStored(f *testing.F) {
	c := newCodec("acme", "clockings", "https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings")
	for _, m := range []message{
		{Entry: store.Entry{ID: "1050", Version: "0000090200004BD0000B"}, data: []byte(`{"id":1050,"date":"2026-01-15"}`), origin: OriginDelta},
		{Entry: store.Entry{ID: "1001", Version: "0000090200004BD0000C", Deleted: true}, data: []byte(`{"id":1001}`), origin: OriginResync},
		keepAside(protime.Change{Data: []byte("7")}, "no id", OriginSnapshot, 100),
	} {
		msg := encoded(&c, &m)
		wire := "NATS/1.0\r\n"
		for k, v := range msg.Header {
			wire += k + ": " + v[0] + "\r\n"
		}
		f.Add(msg.Subject, []byte(wire+"\r\n"), msg.Data)
		f.Add(c.prefix+".2", []byte(wire+"\r\n"), msg.Data)
	}
	f.Add("protime.acme.clockings.1", []byte("NATS/1.0 503\r\n\r\n"), []byte(nil))
	f.Add("protime.acme.clockings.", []byte("NATS/1.0\r\nce-id: %zz\r\nce-id: \r\n:\r\n\r\n"), []byte("{"))
	f.Fuzz(func(t *testing.T, subject string, header, data []byte) {
		h, err := nats.DecodeHeadersMsg(header)
		if err != nil {
			return // catch up says so
		}
		m, err := c.decode(subject, h, data, 7)
		if err != nil {
			if !errors.Is(err, errForeign) {
				t.Fatalf("error is %v, want %v", err, errForeign)
			}
			return
		}
		if m.ID == "" || m.Position != 7 {
			t.Fatalf("read %+v", m)
		}
		again := encoded(&c, &m)
		if again.Subject != subject {
			t.Fatalf("message on %q was read as one of %q", subject, again.Subject)
		}
		for _, k := range []string{headerID, headerSubject, headerChangeVersion, headerType} {
			was, err := url.PathUnescape(h.Get(k))
			is, _ := url.PathUnescape(again.Header.Get(k))
			if k == headerID && was == c.idBase+m.ID+"/"+m.Version {
				continue // from earlier
			}
			if err != nil || was != is && !m.invalid() {
				t.Fatalf("header %s is %q, %v; of what was read %q", k, h.Get(k), err, is)
			}
		}
	})
}

// FuzzReadAck: only the position that was asked for is an acknowledgement.
func FuzzReadAck(f *testing.F) {
	for _, data := range []string{
		`{"stream":"S","seq":7}`, `{"stream":"S","domain":"D","seq":7}`, `{"stream":"\n","seq":7}`, `{"stream":"S","seq":07}`, `{"seq":8}`, `{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 6"},"seq":7}`,
		`{"seq":7,"error":null,"SEQ":9}`, `{"seq":-7}`, `{"seq":18446744073709551623}`, `{"seq":7.0}`, `[]`, `null`, ` `, `+OK`,
	} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		err := readAck(&nats.Msg{Data: data}, 7)
		var ack struct {
			Seq   uint64
			Error *struct{}
		}
		json.Unmarshal(data, &ack)
		if good := ack.Seq == 7 && ack.Error == nil; err == nil && !good {
			t.Fatalf("%s was taken for an acknowledgement of 7", data)
		}
		if seq, plain := plainAck(data); plain && (seq != ack.Seq || ack.Error != nil) {
			t.Fatalf("%s was read as %d", data, seq)
		}
	})
}

// FuzzDeletedData: what a resync publishes of a record that is gone names that record.
func FuzzDeletedData(f *testing.F) {
	for _, id := range []string{"1001", "-3", "007", "true", "6f96-aa", `a"b`, "12345678901234567890123", "1.0E2", "é", "\xff", "5 ", "-"} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if checkID(id) != "" {
			return
		}
		data := deletedData(id)
		got, _, _, err := protime.ParseRecord(data)
		if err != nil || !json.Valid(data) || utf8.ValidString(id) && got != id {
			t.Fatalf("%q is published as %s, which names %q, %v", id, data, got, err)
		}
	})
}

// FuzzAnswer: whatever answers a request for a message, it is a message with a position, none, or an error.
func FuzzAnswer(f *testing.F) {
	c := newCodec("acme", "clockings", "https://x/clockings")
	for _, data := range []string{
		`{"type":"io.nats.jetstream.api.v1.stream_msg_get_response","message":{"subject":"protime.acme.clockings.1","seq":7,"hdrs":"TkFUUy8xLjANCg0K","data":"e30="}}`,
		`{"error":{"code":404,"err_code":10037,"description":"no message found"}}`, `{"error":{"code":503,"err_code":10008}}`,
		`{"message":{"seq":-1}}`, `{"message":{"hdrs":"x"}}`, `{}`, `null`, ``,
	} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		raw, _ := readAnswer(data)
		if raw == nil {
			return
		}
		if m, err := c.decodeRaw(raw); err == nil && m.Position == 0 {
			t.Fatalf("%s was taken for a message", data)
		}
	})
}

// FuzzRequest: whatever a request holds, it is answered or refused.
func FuzzRequest(f *testing.F) {
	feed := idle(new(logBuffer))
	feed.repairs = make(chan []string, 1)
	f.Add(verbRepair, []byte(`{"ids":["1","2"]}`))
	f.Add(verbRepair, []byte(`{"ids":[]}`))
	f.Add(verbRepair, []byte(`{"ids":["\u0000"]}`))
	f.Add(verbResync, []byte(`{"trustApi":true}`))
	f.Add(verbResync, []byte(`[]`))
	f.Add(verbStatus, []byte(nil))
	f.Add(verbPause, []byte(nil))
	f.Add(verbVerify, []byte(`{`))
	f.Fuzz(func(t *testing.T, verb string, data []byte) {
		do, ok := feed.verbs(nil)[verb]
		if !ok {
			return
		}
		reply, err := do(data)
		select {
		case ids := <-feed.repairs:
			if len(ids) == 0 || len(ids) > MaxRepair {
				t.Errorf("%d ids were taken", len(ids))
			}
		default:
		}
		if _, merr := json.Marshal(reply); err == nil && merr != nil {
			t.Errorf("%s %q: %v", verb, data, merr)
		}
	})
}

package protime

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

func TestParseRecord(t *testing.T) {
	for name, test := range map[string]struct{ data, id, version, date string }{
		"OK":     {`{"id":7,"changeVersion":"0A","date":"2026-01-15"}`, "7", "0A", "2026-01-15"},
		"Space":  {" \n{ \"date\" : \"d\" , \"id\" : -7 }\t", "-7", "", "d"},
		"Text":   {`{"id":"\u0061\/"}`, "a/", "", ""},
		"Empty":  {`{}`, "", "", ""},
		"Absent": {`{"id":null,"changeVersion":7,"date":{}}`, "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			id, version, date, err := ParseRecord([]byte(test.data))
			if err != nil || id != test.id || version != test.version || date != test.date {
				t.Errorf("got %q, %q, %q, error %v", id, version, date, err)
			}
		})
	}
	for name, data := range map[string]string{
		"Nothing": "", "Space": " ", "Null": "null", "Array": "[]", "Open": `{"id":7`, "Garbage": `{"id":7}x`, "Two": `{}{}`, "BadName": `{id:7}`,
	} {
		t.Run(name, func(t *testing.T) {
			if id, _, _, err := ParseRecord([]byte(data)); err == nil {
				t.Errorf("got id %q, want an error", id)
			}
		})
	}
}

// oracle reads an object by encoding/json.
func oracle(data []byte) (members map[string]json.RawMessage) {
	json.Unmarshal(data, &members)
	return members
}

func oracleText(raw json.RawMessage, number bool) string {
	var s string
	if number && len(raw) > 0 && (raw[0] == '-' || '0' <= raw[0] && raw[0] <= '9') {
		return string(raw)
	}
	json.Unmarshal(raw, &s)
	return s
}

// surrogates says whether data may hold an escaped half of a surrogate pair, which encoding/json replaces and we refuse.
func surrogates(data []byte) bool {
	return bytes.Contains(bytes.ToLower(data), []byte(`\ud`))
}

func FuzzPage(f *testing.F) {
	for _, body := range []string{
		deltaBody, listingBody,
		`{"value":[],"nextLink":"/connector/protimeapi/api/v1/clockings?filter=...&continuationToken=..."}`,
		`{"value":[{"changeType":"Delete","data":{"changeVersion":"0000090200004BD0000C","id":1001}}],"deltaLink":"/x","n":1e400}`,
		`{"deltaLink":"\/x\u0026","v\u0061lue":[null,7,{"d\u0061ta":{"i\u0064":"a\ud83d\ude00","id":2}},{"data":[{"id":1}],"changeType":null}]}`,
		`{"value":[{"changeVersion":"0000090200004CE0000A","id":19250,"person":{"id":1,"externalReferences":{"@badge-number":"6767676"}}}],"nextLink":null,"deltaLink":"/y"}`,
		`{"error":{"code":"BadRequest","message":"The request was invalid","reasons":["The provided date range is invalid"]}}`,
		"<html></html>", "\ufeff{\"value\":[\"\xff\"],\"deltaLink\":\"/x\"}\x00", `{"value":[1],"value":[2],"deltaLink":"/a","deltaLink":"/b"}`,
	} {
		f.Add([]byte(body), true, 20)
		f.Add([]byte(body), false, 1000)
	}
	f.Fuzz(func(t *testing.T, body []byte, delta bool, cut int) {
		changes, p, err := readPage(bytes.NewReader(body), delta)
		var bad *PageError
		if err != io.EOF && (!errors.As(err, &bad) || errors.Is(err, io.EOF)) {
			t.Fatalf("got error %v", err)
		}
		if (err == io.EOF) != (p.NextLink() != "" || p.DeltaLink() != "") {
			t.Fatalf("got links %q and %q with %v", p.NextLink(), p.DeltaLink(), err)
		}

		// However the bytes arrive, the page is the same.
		slow, q, slowly := readPage(iotest.OneByteReader(bytes.NewReader(body)), delta)
		if len(slow) != len(changes) || (slowly == io.EOF) != (err == io.EOF) || q.NextLink() != p.NextLink() || q.DeltaLink() != p.DeltaLink() {
			t.Fatalf("got %d changes and %v; byte by byte %d and %v", len(changes), err, len(slow), slowly)
		}
		for i := range slow {
			if !equal(slow[i], changes[i]) {
				t.Fatalf("change %d: got %q, byte by byte %q", i, changes[i], slow[i])
			}
		}

		// A connection that breaks gives no link, wherever it does.
		if cut >= 0 {
			_, q, err := readPage(io.MultiReader(bytes.NewReader(body[:min(cut, len(body))]), iotest.ErrReader(io.ErrUnexpectedEOF)), delta)
			if err == io.EOF || q.NextLink() != "" || q.DeltaLink() != "" {
				t.Fatalf("cut at %d: got %v and links %q, %q", cut, err, q.NextLink(), q.DeltaLink())
			}
		}

		// A good page says what encoding/json says, and what encoding/json finds good is a good page.
		text := bytes.TrimPrefix(body, []byte(byteOrderMark))
		top := oracle(text)
		var items []json.RawMessage
		json.Unmarshal(top["value"], &items)
		after, next := oracleText(top["deltaLink"], false), oracleText(top["nextLink"], false)
		if err != io.EOF {
			repeats := bytes.Count(text, []byte(`"value"`)) > 1 || bytes.Count(text, []byte(`Link"`)) > 1 || bytes.ContainsRune(text, '\\')
			if json.Valid(text) && !repeats && items != nil && (after == "") != (next == "") {
				t.Fatalf("got %v for a good page", err)
			}
			return
		}
		if !json.Valid(text) || len(items) != len(changes) {
			t.Fatalf("got %d changes, want %d; valid %v", len(changes), len(items), json.Valid(text))
		}
		if !utf8.Valid(body) || surrogates(body) {
			return // encoding/json replaces what we pass through or refuse
		}
		if p.DeltaLink() != after || p.NextLink() != next {
			t.Fatalf("got links %q and %q, want %q and %q", p.NextLink(), p.DeltaLink(), next, after)
		}
		for i, c := range changes {
			data, kind := items[i], string(Upsert)
			if delta {
				item := oracle(data)
				kind = oracleText(item["changeType"], false)
				if d, ok := item["data"]; ok {
					data = d
				} else {
					item = nil
				}
				if item == nil {
					// Without data nothing is read of a record.
					if c.ID+c.Version+c.Date != "" || !bytes.Equal(c.Data, data) || string(c.Type) != kind {
						t.Fatalf("item %d: got %q of %s", i, c, data)
					}
					continue
				}
			}
			r := oracle(data)
			want := Change{ChangeType(kind), oracleText(r["id"], true), oracleText(r["changeVersion"], false), oracleText(r["date"], false), data}
			if !equal(c, want) {
				t.Fatalf("item %d: got %q, want %q", i, c, want)
			}
			if id, version, date, err := ParseRecord(c.Data); (err == nil) != (c.Data[0] == '{') || err == nil && id+version+date != c.ID+c.Version+c.Date {
				t.Fatalf("item %d: ParseRecord gives %q, %q, %q, error %v", i, id, version, date, err)
			}
		}
	})
}

// A record's three strings are one allocation, and still their own.
func TestRecord_strings(t *testing.T) {
	long := strings.Repeat("9", 200)
	id, version, date, err := ParseRecord([]byte(`{"id":` + long + `,"changeVersion":"` + long + `","date":"d"}`))
	if err != nil || id != long || version != long || date != "d" {
		t.Errorf("got %q, %q, %q, error %v", id, version, date, err)
	}
}

package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
)

const hashKey = "0123456789abcdef"

func newPrivacy(t testing.TB, drop, hash []string, key string) *Privacy {
	t.Helper()
	p, err := NewPrivacy(drop, hash, []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPrivacy_apply(t *testing.T) {
	p := newPrivacy(t, []string{"person.firstName", "location", "list.x"}, []string{"person.id", "list.y"}, hashKey)
	h := string(p.digest(nil, []byte("17")))
	for _, test := range []struct{ data, want string }{
		{`{}`, `{}`},
		{`{ "id" : 1.0e2 , "x":[ 1 , {"firstName":"J"} ] }`, `{ "id" : 1.0e2 , "x":[ 1 , {"firstName":"J"} ] }`},
		{`{"location":1}`, `{}`},
		{`{"location":{"a":[1,2]},"id":1}`, `{"id":1}`},
		{`{"id":1, "location":1}`, `{"id":1}`},
		{`{"id":1, "location":1, "b":2}`, `{"id":1, "b":2}`},
		{"{ \"location\":1 ,\n \"location\":2 ,\n \"b\":2}", "{ \n \"b\":2}"},
		{`{"\u006cocation":1,"b":2}`, `{"b":2}`},
		{`{"person":{"id":17,"firstName":"J","n":1E5}}`, `{"person":{"id":` + h + `,"n":1E5}}`},
		{`{"person":{"firstName":"J"}}`, `{"person":{}}`},
		{`{"person":"J"}`, `{"person":"J"}`},
		{`{"person":{"id":null}}`, `{"person":{"id":null}}`},
		{`{"list":[{"x":1,"y":17},{"y":17,"x":1,"z":"\ud83d\ude00"},[{"x":2}],5]}`, `{"list":[{"y":` + h + `},{"y":` + h + `,"z":"\ud83d\ude00"},[{}],5]}`},
		{"{\"location\":1,\"b\":\"\xff\"}", "{\"b\":\"\xff\"}"},
		{`7`, `7`},
	} {
		if got := p.apply(protime.Change{Data: []byte(test.data)}).Data; string(got) != test.want {
			t.Errorf("%s: got %s, want %s", test.data, got, test.want)
		}
	}
	if h == string(newPrivacy(t, nil, []string{"a"}, "another key of 16+").digest(nil, []byte("17"))) || len(h) != 66 {
		t.Errorf("hash %s of %d bytes, want one that another key changes", h, len(h))
	}
	var none *Privacy
	if c := (protime.Change{Data: []byte(`{"location":1}`)}); !reflect.DeepEqual(none.apply(c), c) {
		t.Error("no privacy changes something")
	}
}

// TestPrivacy_random holds what is left of random objects against what a map says is to be left.
func TestPrivacy_random(t *testing.T) {
	p := newPrivacy(t, []string{"a", "b.a", "c.b.a"}, nil, "")
	space := rapid.SampledFrom([]string{"", " ", "\n\t"})
	scalar := rapid.SampledFrom([]string{"1.50", `"a,\"}"`, "null", "true"})
	var value func(rt *rapid.T, depth int) string
	value = func(rt *rapid.T, depth int) string {
		around := func(s string) string { return space.Draw(rt, "before") + s + space.Draw(rt, "behind") }
		kind := rapid.IntRange(0, 2).Draw(rt, "kind")
		if depth == 0 || kind == 0 {
			return scalar.Draw(rt, "scalar")
		}
		var items []string
		for _, name := range []string{"d", "a", "b", "c"} {
			switch {
			case !rapid.Bool().Draw(rt, "there"):
			case kind == 1:
				items = append(items, around(value(rt, depth-1)))
			default:
				items = append(items, around(`"`+name+`"`)+":"+around(value(rt, depth-1)))
			}
		}
		if kind == 1 {
			return "[" + strings.Join(items, ",") + "]"
		}
		return "{" + strings.Join(items, ",") + "}"
	}
	rapid.Check(t, func(rt *rapid.T) {
		data := value(rt, 4)
		if !json.Valid([]byte(data)) {
			rt.Fatalf("the test made %s", data)
		}
		got := p.apply(protime.Change{Data: []byte(data)}).Data
		var has, want any
		if err := json.Unmarshal(got, &has); err != nil {
			rt.Fatalf("%s became %s: %v", data, got, err)
		}
		json.Unmarshal([]byte(data), &want)
		without(want, "a")
		without(want, "b", "a")
		without(want, "c", "b", "a")
		if !reflect.DeepEqual(has, want) {
			rt.Fatalf("%s became %s", data, got)
		}
	})
}

// without removes a path from what encoding/json has made.
func without(v any, path ...string) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			without(item, path...)
		}
	case map[string]any:
		if len(path) == 1 {
			delete(v, path[0])
		} else {
			without(v[path[0]], path[1:]...)
		}
	}
}

func TestNewPrivacy_errors(t *testing.T) {
	for _, test := range []struct {
		drop, hash []string
		key, want  string
	}{
		{[]string{"id"}, nil, "", "must stay as it is"},
		{[]string{"changeVersion"}, nil, "", "must stay as it is"},
		{nil, []string{"date"}, hashKey, "must stay as it is"},
		{[]string{"a..b"}, nil, "", "must be names with dots"},
		{[]string{""}, nil, "", "must be names with dots"},
		{[]string{"person"}, []string{"person.id"}, hashKey, "stands here twice, or lies inside"},
		{[]string{"person.id", "person"}, nil, "", "stands here twice, or lies inside"},
		{[]string{"a"}, []string{"a"}, hashKey, "stands here twice, or lies inside"},
		{nil, []string{"a"}, "0123456789abcde", "the key has 15 bytes"},
	} {
		if _, err := NewPrivacy(test.drop, test.hash, []byte(test.key)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("drop %q, hash %q: %v, want %q", test.drop, test.hash, err, test.want)
		}
	}
	if p, err := NewPrivacy(nil, nil, nil); p != nil || err != nil {
		t.Errorf("nothing to do: %v, %v", p, err)
	}
}

// secretName stands in every record of TestFeed_Privacy, and must not stand anywhere behind the engine.
const secretName = "Wilhelmina"

func (w *world) named(person int) string {
	record := clocking(person, 480)
	record["remark"] = map[string]any{"by": secretName}
	return w.sim.Insert("clockings", record)
}

// leaks looks for the name in everything that the feed has left behind.
func (w *world) leaks() {
	w.t.Helper()
	for _, m := range w.messages() {
		if bytes.Contains(m.data, []byte(secretName)) {
			w.t.Errorf("message %d on %s: %s", m.seq, m.subject, m.data)
		}
	}
	for _, c := range w.feed.Recent().Changes {
		if bytes.Contains(c.Data, []byte(secretName)) {
			w.t.Errorf("status page: %s", c.Data)
		}
	}
	file, err := os.ReadFile(w.path)
	if err != nil || bytes.Contains(file, []byte(secretName)) || strings.Contains(w.logs.String(), secretName) {
		w.t.Errorf("store or log hold the name, or cannot be read: %v", err)
	}
}

// TestFeed_Privacy: what is dropped or hashed is nowhere behind the engine, and neither verify, repair nor a resync takes it for a difference.
func TestFeed_Privacy(t *testing.T) {
	w := newWorld(t, startServer(t), protimetest.Options{NoRepeat: true, DeleteMoreFields: true})
	w.cfg.Privacy, w.cfg.KeepData = newPrivacy(t, []string{"remark.by"}, []string{"person.id"}, hashKey), true
	w.reopen()
	var ids []string
	for person := range 10 {
		ids = append(ids, w.named(1000+person))
	}
	w.settle()
	w.sim.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": 1})
	w.sim.Remove("clockings", ids[1])
	w.settle()
	w.leaks()
	if len(w.messages()) != 12 {
		t.Fatalf("%d messages, want 12", len(w.messages()))
	}
	api, got := string(w.sim.Truth("clockings")[ids[2]].Data), string(w.lastOf(ids[2]).data)
	want := strings.Replace(api, `"by":"`+secretName+`"`, "", 1)
	want = strings.Replace(want, `"id":1002`, `"id":`+string(w.cfg.Privacy.digest(nil, []byte("1002"))), 1)
	if got != want || want == api {
		t.Errorf("published %s, want %s", got, want)
	}
	private := func(c *VerifyConfig) { c.Privacy = w.cfg.Privacy }
	unchanged := func(what string) {
		t.Helper()
		if r, found := w.verify(private, func(c *VerifyConfig) { c.Limit = 1 }); r.Differs() {
			t.Errorf("%s: verify finds %v", what, found)
		}
		before := len(w.messages())
		if err := w.feed.Repair(ids[2:]); err != nil {
			t.Fatal(err)
		}
		w.settle()
		w.feed.Resync(false)
		w.settle()
		if n := len(w.messages()); n != before {
			t.Errorf("%s: repair and resync appended %d messages", what, n-before)
		}
	}
	unchanged("as it is")

	// What cannot be read is kept aside without its payload.
	page := `{"value":[{"changeType":"Moved","data":{"id":5,"changeVersion":"1","remark":{"by":"` + secretName + `"}}},
		{"by":"` + secretName + `"}, "` + secretName + `"],"deltaLink":"/connector/protimeapi/api/v1/delta/clockings?deltaToken=x"}`
	w.sim.Fail(protimetest.Fault{Kind: protimetest.WrongContent, ContentType: "application/json", Body: page, Times: 1})
	w.step()
	w.leaks()
	aside := w.messages()[12:]
	for _, m := range aside {
		if string(m.data) != "{}" || !strings.Contains(m.header.Get(headerReason), "the payload is withheld") {
			t.Errorf("kept aside: %s, %s", m.data, m.header.Get(headerReason))
		}
	}
	if len(aside) != 3 {
		t.Errorf("%d changes kept aside, want 3", len(aside))
	}
	w.feed.Resync(false)
	w.settle()

	// One more field that is dropped is no difference to what was published with it.
	w.cfg.Privacy = newPrivacy(t, []string{"remark.by", "kind"}, []string{"person.id"}, hashKey)
	w.reopen()
	w.settle()
	unchanged("one more field")

	// Another key is one, and a repair publishes the records anew.
	w.cfg.Privacy = newPrivacy(t, []string{"remark.by", "kind"}, []string{"person.id"}, "fedcba9876543210")
	w.reopen()
	w.settle()
	if r, _ := w.verify(private); r.Stale != 9 {
		t.Errorf("behind another key: %+v, want 9 stale", r)
	}
	if err := w.feed.Repair(ids); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if err := w.feed.Step(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := string(w.lastOf(ids[2]).data); !strings.Contains(got, string(w.cfg.Privacy.digest(nil, []byte("1002")))) || strings.Contains(got, "kind") {
		t.Errorf("behind another key the record is %s", got)
	}
	unchanged("behind another key")
	w.leaks()
}

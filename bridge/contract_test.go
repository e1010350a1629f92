package bridge

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/nats-io/nats.go"
	"github.com/santhosh-tekuri/jsonschema/v6"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"clockbridge/protime"
	"clockbridge/protime/protimetest"
	"clockbridge/store"
)

var contractMessages = flag.String("contract.messages", "", "write the messages that TestContract looks at to this file, as NDJSON")

// sample is a message as it lies in a stream.
type sample struct {
	Stream  string      `json:"stream"`
	Subject string      `json:"subject"`
	Header  nats.Header `json:"header"`
	Data    []byte      `json:"data"`
}

// clone returns a copy of s with a header replaced, or taken away by "".
func (s sample) clone(header, value string) sample {
	s.Header = maps.Clone(s.Header)
	s.Header.Set(header, value)
	if value == "" {
		s.Header.Del(header)
	}
	return s
}

// contract is the document as subscribers use it.
type contract struct {
	doc struct {
		Channels map[string]struct {
			Address    string
			Parameters map[string]any
			Messages   map[string]ref
			Stream     string `yaml:"x-stream"`
		}
		Components struct {
			Parameters map[string]struct {
				Pattern string `yaml:"x-pattern"`
			}
			Messages map[string]struct {
				Name     string
				Examples []struct {
					Headers map[string]string
					Payload map[string]any
				}
			}
			Schemas map[string]struct {
				Required   []string
				Properties map[string]struct{ Enum []string }
			}
		}
	}
	compiler *jsonschema.Compiler
}

type ref struct {
	Ref string `yaml:"$ref"`
}

func readContract(t *testing.T) *contract {
	t.Helper()
	c := &contract{compiler: jsonschema.NewCompiler()}
	text, err := yaml.YAMLToJSON(AsyncAPI)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c.compiler.DefaultDraft(jsonschema.Draft7)
	c.compiler.AssertFormat()
	if err := c.compiler.AddResource("asyncapi.json", doc); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(AsyncAPI, &c.doc); err != nil {
		t.Fatal(err)
	}
	return c
}

// pattern makes a regular expression of a text with parameters.
func (c *contract) pattern(text string) *regexp.Regexp {
	text = regexp.QuoteMeta(text)
	for name, p := range c.doc.Components.Parameters {
		text = strings.ReplaceAll(text, `\{`+name+`\}`, "(?:"+p.Pattern+")")
	}
	return regexp.MustCompile("^" + text + "$")
}

// check says which message of the document s is, and what is wrong with it. A subject belongs to the first of the channels.
func (c *contract) check(s sample) (name string, err error) {
	for _, channel := range []string{"unreadable", "clockings", "records"} {
		ch := c.doc.Channels[channel]
		if !c.pattern(ch.Address).MatchString(s.Subject) {
			continue
		}
		for _, r := range ch.Messages {
			name := r.Ref[strings.LastIndex(r.Ref, "/")+1:]
			if c.pattern(c.doc.Components.Messages[name].Name).MatchString(s.Header.Get("ce-type")) {
				return name, c.validate(name, s)
			}
		}
		return "", fmt.Errorf("no message of channel %s has the type %q", channel, s.Header.Get("ce-type"))
	}
	return "", fmt.Errorf("no channel has the subject %s", s.Subject)
}

func (c *contract) validate(name string, s sample) error {
	headers := map[string]any{}
	for k, v := range s.Header {
		headers[k] = v[0]
	}
	schema, err := c.compiler.Compile("asyncapi.json#/components/messages/" + name + "/headers")
	if err != nil {
		return err
	}
	if err := schema.Validate(headers); err != nil {
		return err
	}
	if s.Header.Get("ce-datacontenttype") == "application/octet-stream" {
		return nil
	}
	if schema, err = c.compiler.Compile("asyncapi.json#/components/messages/" + name + "/payload"); err != nil {
		return err
	}
	payload, err := jsonschema.UnmarshalJSON(bytes.NewReader(s.Data))
	if err != nil {
		return err
	}
	return schema.Validate(payload)
}

// oddIDs are JSON literals of ids that subjects, headers and events must write in some other way.
var oddIDs = []string{
	`"a b"`, `"say \"hi\""`, `"100%"`, `"%41"`, `"é€😀"`, `"a.b*>"`, `"1/2"`, `"invalid"`, `"6f9619ff-8b86-d011-b42d-00c04fc964ff"`, `"007"`,
	`-7`, `1.0E2`, `123456789012345678901234567890`,
}

// samples lets feeds publish everything that there is: the workload's days, all origins, deletions, odd ids, unreadable changes, erasures.
func samples(t *testing.T) (all []sample) {
	t.Helper()
	srv := startServer(t)
	// collect takes all that is in the stream, and then what a person is forgotten by.
	collect := func(w *world, person string) {
		w.t.Helper()
		take := func(erasures bool) {
			for _, m := range w.messages() {
				if erasures == (m.origin == OriginErasure) {
					all = append(all, sample{w.stream(), m.subject, m.header, m.data})
				}
			}
		}
		take(false)
		w.forget(person)
		take(true)
	}

	w := newWorld(t, srv, protimetest.Options{})
	w.cfg.Tracer = sdktrace.NewTracerProvider().Tracer("test")
	w.reopen()
	work := protimetest.NewWorkload(w.sim, w.tenant, protimetest.WorkloadOptions{})
	work.Backfill(10)
	w.settle()
	for range 200 {
		work.Step()
	}
	ids := w.company(4)
	w.settle()
	w.sim.Expire("clockings")
	w.sim.Remove("clockings", ids[0])
	w.sim.Update("clockings", ids[1], map[string]any{"timeOfDayInMinutes": 1})
	w.settle()
	w.erase(ids[2])
	if err := w.feed.Repair(ids); err != nil {
		t.Fatal(err)
	}
	w.settle()
	collect(w, "4")

	w = newWorld(t, srv, protimetest.Options{})
	w.company(1)
	w.settle()
	var page strings.Builder
	for _, id := range oddIDs {
		fmt.Fprintf(&page, `{"changeType":"InsertOrUpdate","data":{"id":%s,"changeVersion":"0000090300000000000A","date":"2026-11-20"}},`, id)
		fmt.Fprintf(&page, `{"changeType":"Delete","data":{"id":%s,"changeVersion":"0000090300000000000A"}},`, id)
	}
	fmt.Fprintf(&page, `{"changeType":"InsertOrUpdate","data":{"id":1,"changeVersion":"2/0000090300000000000A"}},`)
	for _, data := range []string{
		`{"changeVersion":"0000090300000000000A"}`, `{"id":1}`, `{"id":1,"person":{"id":7}}`, `{"id":"a\u0001","changeVersion":"A"}`, `{"id":"a\ufffe","changeVersion":"A"}`,
		"{\"id\":\"\xff\",\"changeVersion\":\"A\"}", `{"id":2,"changeVersion":"\u0085"}`, `7`,
		`{"id":3,"changeVersion":"A","remark":"` + strings.Repeat("é", 1<<20) + `"}`, `{"id":"é","changeVersion":"A","remark":"` + strings.Repeat("x", 1<<20) + `"}`,
	} {
		fmt.Fprintf(&page, `{"changeType":"InsertOrUpdate","data":%s},`, data)
	}
	page.WriteString(`{"changeType":"Élargi","data":{"id":4,"changeVersion":"A"}}`)
	w.cfg.Source = scripted{Source: w.cfg.Source, page: func(string) string {
		return `{"value":[` + page.String() + `],"deltaLink":"` + apiRoot + `delta/clockings?deltaToken=x"}`
	}}
	w.reopen()
	w.step()
	collect(w, "7")

	w = newWorld(t, srv, protimetest.Options{})
	w.cfg.Collection, w.cfg.Filter = "people", nil
	client, err := protime.NewClient(protime.Config{
		Tenant: w.tenant, ClientID: "demo", Secret: func() (string, error) { return "demo", nil }, Scopes: []string{protime.ReadScope("people")},
		APIURL: "https://x.protime.test", AuthURL: "https://auth.protime.test", UserAgent: "clockbridge-test/1 (Example)", Transport: w.sim.Transport(),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.Source = client
	w.reopen()
	id := w.sim.Insert("people", map[string]any{"firstName": "An"})
	w.step()
	w.sim.Remove("people", id)
	w.step()
	for _, m := range w.messagesOf("people") {
		all = append(all, sample{StreamName(w.tenant, "people"), m.subject, m.header, m.data})
	}
	return all
}

// TestContract: every message that feeds publish is one that the document describes, and it describes no others.
func TestContract(t *testing.T) {
	c := readContract(t)
	all := samples(t)
	described := map[string]bool{} // header, message or origin: seen
	for name := range c.doc.Components.Messages {
		described[name] = false
	}
	for _, schema := range []string{"headers", "recordHeaders"} {
		for h, p := range c.doc.Components.Schemas[schema].Properties {
			described[h] = false
			for _, value := range p.Enum {
				described[h+" "+value] = false
			}
		}
	}
	described["clockbridge-reason"] = false
	see := func(what string) {
		if _, ok := described[what]; !ok {
			t.Errorf("%s is not in the document", what)
		}
		described[what] = true
	}
	fields := c.doc.Components.Schemas["clocking"].Properties
	events := map[string]string{} // subject by what names an event
	for _, s := range all {
		event := s.Header.Get("ce-source") + " " + s.Header.Get("ce-id")
		if was, ok := events[event]; ok && s.Header.Get("ce-origin") != OriginRepair {
			t.Errorf("%s: event %s was one of %s before", s.Subject, event, was)
		}
		events[event] = s.Subject
		name, err := c.check(s)
		if err != nil {
			t.Errorf("%s %q: %v", s.Subject, s.Header, err)
			continue
		}
		see(name)
		see("ce-origin " + s.Header.Get("ce-origin"))
		for h := range s.Header {
			if !strings.HasPrefix(h, "Nats-") {
				see(h)
			}
		}
		if name == "clockingUpserted" {
			var record map[string]any
			if err := json.Unmarshal(s.Data, &record); err != nil {
				t.Fatal(err)
			}
			for field := range record {
				if _, ok := fields[field]; !ok {
					t.Errorf("field %s of a clocking is not in the document", field)
				}
			}
		}
		parts := strings.Split(s.Subject, ".")
		stream := strings.NewReplacer("{TENANT}", strings.ToUpper(parts[1]), "{COLLECTION}", strings.ToUpper(parts[2]))
		for _, channel := range c.doc.Channels {
			if c.pattern(channel.Address).MatchString(s.Subject) && stream.Replace(channel.Stream) != s.Stream {
				t.Errorf("%s lies in stream %s, not %s", s.Subject, s.Stream, stream.Replace(channel.Stream))
			}
		}
	}
	for what, seen := range described {
		if !seen {
			t.Errorf("%s is in the document, and no message has it", what)
		}
	}
	for _, name := range []string{"tenant", "collection"} {
		if got := "^" + c.doc.Components.Parameters[name].Pattern + "$"; got != nameRE.String() {
			t.Errorf("a %s is %s, want %s", name, got, nameRE)
		}
	}
	if *contractMessages != "" {
		var out bytes.Buffer
		for _, s := range all {
			if err := json.NewEncoder(&out).Encode(s); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(*contractMessages, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestContract_examples: the document's own examples are what it says.
func TestContract_examples(t *testing.T) {
	c := readContract(t)
	n := 0
	for name, message := range c.doc.Components.Messages {
		for _, e := range message.Examples {
			s := sample{Subject: Subject("acme", "clockings", e.Headers["ce-subject"]), Header: nats.Header{}}
			for h, v := range e.Headers {
				s.Header.Set(h, v)
			}
			var err error
			if s.Data, err = json.Marshal(e.Payload); err != nil {
				t.Fatal(err)
			}
			if got, err := c.check(s); got != name || err != nil {
				t.Errorf("the example of %s is one of %s: %v", name, got, err)
			}
			feed := newCodec("acme", "clockings", "https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings")
			if _, err := feed.decode(s.Subject, s.Header, s.Data, 1); err != nil {
				t.Errorf("the example of %s: %v", name, err)
			}
			n++
		}
	}
	if n == 0 {
		t.Error("there are no examples")
	}
}

// TestContract_refuses: a message that is not what the document says does not pass for one that is.
func TestContract_refuses(t *testing.T) {
	c := readContract(t)
	feed := newCodec("acme", "clockings", "https://acme.myprotime.eu/connector/protimeapi/api/v1/clockings")
	people := newCodec("acme", "people", "https://acme.myprotime.eu/connector/protimeapi/api/v1/people")
	made := func(c *codec, m message) sample {
		msg := encoded(c, &m)
		return sample{Subject: msg.Subject, Header: msg.Header, Data: msg.Data}
	}
	record := func(deleted bool, data string) message {
		return message{Entry: store.Entry{ID: "1050", Version: "0000090200004BD0000B", Deleted: deleted}, data: []byte(data), origin: OriginDelta}
	}
	whole := []sample{
		made(&feed, record(false, `{"id":1050,"changeVersion":"0000090200004BD0000B"}`)),
		made(&feed, record(true, `{"id":1050}`)),
		made(&people, record(false, `{"id":1050,"changeVersion":"0000090200004BD0000B"}`)),
		made(&people, record(true, `{"id":1050}`)),
		made(&feed, keepAside(protime.Change{Data: []byte("7")}, "no id", OriginSnapshot, 100)),
	}
	optional := []string{"ce-datacontenttype", "clockbridge-walk"} // of messages from before they were introduced
	for _, s := range whole {
		name, err := c.check(s)
		if err != nil {
			t.Errorf("%s: %v", s.Subject, err)
		}
		refused := func(s sample, what string) {
			t.Helper()
			if got, err := c.check(s); err == nil {
				t.Errorf("%s: %s passes for %s", name, what, got)
			}
		}
		for h := range s.Header {
			if _, err := c.check(s.clone(h, "")); (err == nil) != slices.Contains(optional, h) {
				t.Errorf("%s without %s: %v", name, h, err)
			}
			if h != headerReason {
				refused(s.clone(h, " "), "a blank "+h)
			}
		}
		for h, values := range map[string][]string{
			"ce-specversion": {"0.3", "1"}, "ce-source": {"https://a b/", `\`}, "ce-time": {"yesterday", "2026-11-20 09:00:00Z", "2026-11-20T10:00:00+01:00"},
			"ce-origin": {"replay", "Delta"}, "ce-id": {"acme/clockings/1050", "1050"}, "content-type": {"text/html", "application/cloudevents+json"},
			"ce-datacontenttype": {"text/html"}, "clockbridge-walk": {"-1", "x"}, "traceparent": {"00-x"},
			"ce-type": {"eu.myprotime.clockings.changed", "com.example.upserted", "eu.myprotime.absences.upserted2"},
		} {
			for _, v := range values {
				refused(s.clone(h, v), h+" "+v)
			}
		}
		for _, subject := range []string{
			"", "protime", "protime.acme.1050", "protime.Acme.clockings.1050", "protime.acme.clockings.a b", "protime.acme.clockings.1050.x",
			"protime.acme.clockings.%2", "protime.acme.clockings.é", "other.acme.clockings.1050",
		} {
			wrong := s
			wrong.Subject = subject
			refused(wrong, "subject "+subject)
		}
		aside := s
		if aside.Subject = "protime.acme.clockings.invalid"; name == "unreadable" {
			aside.Subject = "protime.acme.clockings.1050"
		}
		refused(aside, "subject "+aside.Subject)
		if name == "unreadable" {
			continue
		}
		for _, h := range []string{"ce-subject", "ce-changeversion"} {
			for _, v := range []string{"a b", "é", `"`, "100%", "%4"} {
				refused(s.clone(h, v), h+" "+v)
			}
		}
		payloads := []string{``, `{`, `7`, `[]`, `{}`, `{"id":true,"changeVersion":"A"}`, `{"id":null,"changeVersion":"A"}`, `{"id":1.5,"changeVersion":"A"}`, `{"id":1,"changeVersion":7}`}
		if name == "clockingUpserted" {
			for _, member := range []string{
				`"person":7`, `"person":{"id":"x"}`, `"date":"20 November"`, `"date":7`, `"timeOfDayInMinutes":"510"`, `"timeOfDayInMinutes":510.5`,
				`"originalTimeOfDayInMinutes":"1"`, `"calculatedTimeOfDayInMinutes":"1"`, `"kind":1`, `"status":1`, `"isGenerated":"no"`, `"isOpen":0`,
				`"reason":{"id":"x"}`, `"terminal":[]`, `"geolocation":{"longitude":true}`, `"activityLevels":{}`, `"activityLevels":[{"level":"1"}]`,
				`"activityLevels":[{"activityDefinition":{"id":7}}]`,
			} {
				payloads = append(payloads, `{"id":1,"changeVersion":"A",`+member+`}`)
			}
		}
		for _, data := range payloads {
			wrong := s
			wrong.Data = []byte(data)
			refused(wrong, "payload "+data)
		}
	}
	// What the API may add one day is no fault.
	later := whole[0]
	later.Data = []byte(`{"id":1,"changeVersion":"A","kind":"Teleport","status":"Archived","mood":{"a":[1]},"geolocation":{"longitude":"4.35","lattitude":50.85}}`)
	if _, err := c.check(later); err != nil {
		t.Error(err)
	}
}

// TestSchema: a schema that is printed alone says the same as in the document, and is valid JSON Schema by itself.
func TestSchema(t *testing.T) {
	for of, good := range map[string]string{"clockings": `{"id":1,"changeVersion":"A","date":"2026-11-20"}`, "deletion": `{"id":"x"}`} {
		text, err := Schema(of)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		compiler := jsonschema.NewCompiler()
		if err := compiler.AddResource("schema.json", doc); err != nil {
			t.Fatal(err)
		}
		schema, err := compiler.Compile("schema.json")
		if err != nil {
			t.Fatal(err)
		}
		for data, valid := range map[string]bool{good: true, `{}`: false, `{"id":{}}`: false} {
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(v); (err == nil) != valid {
				t.Errorf("%s: %s: %v", of, data, err)
			}
		}
	}
	if text, err := Schema("people"); err == nil {
		t.Errorf("people have the schema %s", text)
	}
}

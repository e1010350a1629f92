package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"clockbridge/bridge"
	"clockbridge/bridge/subscribe"
)

// TestAccounts_read: the users of deploy/nats-accounts.conf that may only read run every command that reads, and leave no consumer
// behind that they may delete.
func TestAccounts_read(t *testing.T) {
	a := newAccounts(t)
	nc, js := a.connect("operator")
	_, _ = a.bridge("first")
	a.settled(nc, bridge.StateHealthy)
	for _, user := range []string{"staff", "operator"} {
		t.Run(user, func(t *testing.T) {
			read := func(args ...string) *exec.Cmd {
				cmd := exec.Command("clockbridge", append(args, "--js-domain", "clockbridge")...)
				cmd.Env = append(os.Environ(), "NATS_URL="+a.server.ClientURL(), "NATS_USER="+user, "NATS_PASSWORD=secret-of-"+user, "PROTIME_TENANT=acme", "PROTIME_COLLECTIONS=clockings")
				return cmd
			}
			for _, args := range [][]string{
				{"export"}, {"export", "--at", "1"}, {"replay"}, {"replay", "--from", "1h"}, {"history", "19250"}, {"replay", "--id", "19250"},
			} {
				out, err := read(args...).Output()
				if err != nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), `"id":"19250"`) {
					t.Errorf("%v: %v\n%s", args, err, out)
				}
			}
			heard, err := nc.SubscribeSync("heard." + user)
			if err != nil {
				t.Fatal(err)
			}
			if user == "staff" { // hears nothing of what goes on in the account of the operator
				own, _ := a.connect(user)
				if heard, err = own.SubscribeSync("heard." + user); err != nil {
					t.Fatal(err)
				}
				if err := own.Flush(); err != nil {
					t.Fatal(err)
				}
			} else if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			if out, err := read("replay", "--to-subject", "heard."+user).CombinedOutput(); err != nil {
				t.Errorf("replay: %v\n%s", err, out)
			}
			if n, _, err := heard.Pending(); n != 1 || err != nil {
				t.Errorf("%d messages are heard, %v", n, err)
			}
			tail := read("tail", "--from", "1")
			out := new(logBuffer)
			tail.Stdout = out
			interruptAfter(t, tail, func() bool { return strings.Contains(out.String(), `"position":1`) })
			if !tail.ProcessState.Success() {
				t.Errorf("tail: %v", tail.ProcessState)
			}
			if user != "staff" {
				return
			}
			s, err := js.Stream(t.Context(), "PROTIME_ACME_CLOCKINGS")
			if err != nil {
				t.Fatal(err)
			}
			if n := s.CachedInfo().State.Consumers; n != 0 {
				t.Errorf("%d consumers are left behind", n)
			}
			cmd := read("export")
			cmd.Env = append(cmd.Env, "PROTIME_TENANT=other")
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Errorf("the tenant other is shown to acme's staff: %s", out)
			}
		})
	}
}

func TestLines(t *testing.T) {
	hostile := "a\x1b[31m\"\n\u0085b"
	for name, tt := range map[string]struct {
		m     subscribe.Message
		want  string
		shown string // in the table
	}{
		"upserted": {
			subscribe.Message{Event: bridge.Event{ID: "1", Version: "A", Position: 7, Origin: "delta", Time: "2026-01-01T00:00:00Z", Data: []byte(`{"id":1,"person":{"id":3},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut","status":"Deleted"}`)}},
			`{"position":7,"time":"2026-01-01T00:00:00Z","type":"upserted","id":"1","changeVersion":"A","origin":"delta","data":{"id":1,"person":{"id":3},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut","status":"Deleted"}}`,
			"person 3  2026-01-15 08:30  InOut  deleted by hand",
		},
		"deleted": {
			subscribe.Message{Event: bridge.Event{ID: "1", Version: "A", Position: 8, Origin: "resync", Deleted: true, Data: []byte(`{"id":1}`)}},
			`{"position":8,"time":"","type":"deleted","id":"1","changeVersion":"A","origin":"resync","data":{"id":1}}`,
			`{"id":1}`,
		},
		"unreadable": {
			subscribe.Message{Event: bridge.Event{Position: 9, Origin: "delta", Reason: hostile, Data: []byte("no JSON\n")}},
			`{"position":9,"time":"","type":"unreadable","reason":"a\u001b[31m\"\n` + "\u0085" + `b","origin":"delta","data":"no JSON\n"}`,
			`a [31m"  b`,
		},
		"on several lines": {
			subscribe.Message{Event: bridge.Event{ID: hostile, Position: 9, Data: []byte("{\r\n  \"id\": \"\x1b\\n\"\n}")}},
			`{"position":9,"time":"","type":"unreadable","reason":"","origin":"","data":""}`,
			"",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := string(appendMessage(nil, &tt.m)) + "}"
			var back struct {
				Data json.RawMessage
				ID   string
			}
			if err := json.Unmarshal([]byte(got), &back); err != nil || strings.ContainsAny(got, "\n\r") {
				t.Fatalf("%s: %v", got, err)
			}
			row := string((&lines{}).appendRow(nil, &tt.m))
			if strings.Count(row, "\n") != 1 || strings.ContainsAny(row, "\x1b\u0085\r") {
				t.Errorf("row %q", row)
			}
			if name == "on several lines" {
				if back.ID != hostile {
					t.Errorf("id %q, want %q", back.ID, hostile)
				}
				return
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if !strings.HasSuffix(row, "  "+tt.shown+"\n") {
				t.Errorf("row %q, want %q at its end", row, tt.shown)
			}
		})
	}
}

func TestChanges(t *testing.T) {
	for _, tt := range []struct{ was, is, want string }{
		{`{"a":1,"b":{"c":"x","d":[1,2]}}`, `{"b":{"d":[1,3],"c":"x"},"e":null}`, `a: 1 → -; b.d: [1,2] → [1,3]; e: - → null; `},
		{`{"a":1}`, `{"a":1}`, ``},
		{`{"a":1,"a":2}`, `{"a":2}`, ``},
		{``, `{"a":"b"}`, `a: - → "b"; `},
		{`[1]`, `{"a":1}`, `a: - → 1; `},
		{`{"a":1}`, `not JSON`, `a: 1 → -; `},
	} {
		got := ""
		value := func(m *member) string {
			if m == nil {
				return "-"
			}
			return string(m.value)
		}
		for _, c := range changes(members([]byte(tt.was)), members([]byte(tt.is))) {
			got += fmt.Sprintf("%s: %s → %s; ", c.path, value(c.old), value(c.new))
		}
		if got != tt.want {
			t.Errorf("%s to %s: %q, want %q", tt.was, tt.is, got, tt.want)
		}
	}
}

// A table can be read back, with nothing in it that a spreadsheet would take for a formula.
func TestTable(t *testing.T) {
	record := func(position uint64, data string) *subscribe.Message {
		return &subscribe.Message{Event: bridge.Event{ID: fmt.Sprint(position), Version: "A", Position: position, Data: []byte(data)}}
	}
	for name, tt := range map[string]struct {
		collection string
		columns    []string
		deleted    bool
		records    []*subscribe.Message
		want       [][]string
	}{
		"named": {
			"people", []string{"name", "contract.id"}, false,
			[]*subscribe.Message{record(1, `{"id":1,"name":"a, \"b\"\nc","contract":{"id":-5},"more":1}`), record(2, `{"id":2,"name":null}`)},
			[][]string{{"id", "changeVersion", "position", "name", "contract.id"}, {"1", "A", "1", "a, \"b\"\nc", "-5"}, {"2", "A", "2", "", ""}},
		},
		"found": {
			"people", nil, true,
			[]*subscribe.Message{record(1, `{"id":1,"changeVersion":"A","name":"=1+1"}`), record(2, `{"id":2,"tags":["x"],"name":"@sum"}`)},
			[][]string{{"id", "changeVersion", "position", "deleted", "name", "tags"}, {"1", "A", "1", "false", "'=1+1", ""}, {"2", "A", "2", "false", "'@sum", `["x"]`}},
		},
		"nothing": {"people", nil, false, nil, [][]string{{"id", "changeVersion", "position"}}},
		"clockings": {
			"clockings", nil, false, []*subscribe.Message{record(1, `{"id":1,"kind":"-x"}`)},
			[][]string{append([]string{"id", "changeVersion", "position"}, clockingColumns...), {"1", "A", "1", "", "", "", "", "'-x", "", "", "", "", "", "", "", "", ""}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var text bytes.Buffer
			table := newTable(&text, tt.collection, tt.columns, tt.deleted)
			for _, r := range tt.records {
				if err := table.add(r); err != nil {
					t.Fatal(err)
				}
			}
			if err := table.end(); err != nil {
				t.Fatal(err)
			}
			got, err := csv.NewReader(&text).ReadAll()
			if err != nil || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", tt.want) {
				t.Errorf("got  %q, %v\nwant %q", got, err, tt.want)
			}
		})
	}
}

package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"clockbridge/protime/protimetest"
)

// TestCheck_NeverADelta: a delta that check started would end the one that a running instance follows.
func TestCheck_NeverADelta(t *testing.T) {
	sim := protimetest.NewServer(protimetest.Options{Tenant: "acme"})
	t.Cleanup(sim.Close)
	_, url := testJetStream(t)
	t.Setenv("PROTIME_CLIENT_SECRET", "demo")
	out, code := runProgram(t, false, "check", "--tenant", "acme", "--client-id", "demo", "--collections", "clockings,people",
		"--api-url", sim.URL, "--auth-url", sim.URL, "--nats-url", url, "--data-dir", t.TempDir())
	if code != exitOK {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	lists := 0
	for _, r := range sim.Requests() {
		switch {
		case strings.Contains(r.Path, "/delta/") || strings.Contains(r.Query, "delta"):
			t.Errorf("%s %s?%s starts or follows a delta", r.Method, r.Path, r.Query)
		case r.Method == http.MethodGet:
			lists++
		}
	}
	if lists != 2 {
		t.Errorf("%d lists were read, want one for each of 2 collections", lists)
	}
}

// TestClockingGet: laid out for a person, untouched for a program.
func TestClockingGet(t *testing.T) {
	sim := protimetest.NewServer(protimetest.Options{Tenant: "acme"})
	t.Cleanup(sim.Close)
	id := sim.Insert("clockings", map[string]any{"person": map[string]any{"id": 1}, "date": "2026-01-15", "timeOfDayInMinutes": 510, "kind": "InOut"})
	t.Setenv("PROTIME_CLIENT_SECRET", "demo")
	get := func(terminal bool, args ...string) string {
		out, code := runProgram(t, terminal, append([]string{"clocking"}, append(args, "--tenant", "acme", "--client-id", "demo",
			"--api-url", sim.URL, "--auth-url", sim.URL)...)...)
		if code != exitOK {
			t.Fatalf("%v: exit code %d\n%s", args, code, out)
		}
		return out
	}
	exact := string(sim.Truth("clockings")[id].Data) + "\n"
	list := []string{"list", "--from", "2026-01-01", "--to", "2026-01-31"}
	if got := get(false, "get", id); got != exact {
		t.Errorf("in a pipe: got %q, want %q", got, exact)
	}
	if got := get(true, "get", id); !strings.Contains(got, "\n  \"timeOfDayInMinutes\": 510") {
		t.Errorf("on a terminal: got %q, want it laid out", got)
	}
	if got := get(false, list...); got != exact {
		t.Errorf("list in a pipe: got %q, want %q", got, exact)
	}
	if got := get(true, append(list, "--json")...); got != exact {
		t.Errorf("list --json: got %q, want %q", got, exact)
	}
	if got := get(true, list...); !strings.HasPrefix(got, "ID ") || !strings.Contains(got, id+"  2026-01-15  08:30  1       InOut") {
		t.Errorf("list on a terminal: got %q, want a table", got)
	}
}

// runProgram runs the program in this process and returns what it wrote to stdout.
func runProgram(t *testing.T, terminal bool, args ...string) (stdout string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), args, &program{stdout: &out, stderr: &errs, terminal: terminal, version: "test"})
	if errs.Len() > 0 {
		t.Logf("stderr: %s", &errs)
	}
	return out.String(), code
}

// TestChecklist_port: the port of the embedded server may be held by the instance that is asked about, and by nobody else.
func TestChecklist_port(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := taken.Addr().String()
	look := func(running bool) (url, out string, failed bool) {
		var text bytes.Buffer
		l := &checklist{p: &program{stdout: &text}}
		url = l.port(address, running)
		return url, text.String(), l.failed
	}
	if url, out, failed := look(true); url != "nats://"+address || out != "" || failed {
		t.Errorf("held by clockbridge: got %q, %q, %t; want its URL to go on with", url, out, failed)
	}
	if url, out, failed := look(false); url != "" || !strings.Contains(out, "stop what listens there") || !failed {
		t.Errorf("held by somebody: got %q, %q, %t; want a failure that says what to do", url, out, failed)
	}
	taken.Close()
	if url, out, failed := look(false); url != "" || !strings.HasPrefix(out, "ok    NATS: an embedded server will be started") || failed {
		t.Errorf("free: got %q, %q, %t; want ok", url, out, failed)
	}
}

// TestScripts_RunToTheirEnds: testscript's own stop and skip end a script early and let it pass, whatever follows.
func TestScripts_RunToTheirEnds(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("scripts: %v, %v", scripts, err)
	}
	early := regexp.MustCompile(`(?m)^(\[[^\]]*\] )*(stop|skip)\b.*$`)
	for _, script := range scripts {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		if line := early.Find(text); line != nil {
			t.Errorf("%s: %q", script, line)
		}
	}
}

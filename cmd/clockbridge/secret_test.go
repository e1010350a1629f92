package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"clockbridge/protime/protimetest"
)

// What no output of any kind may hold. .ci/run looks for the same in everything that the tests print.
const (
	secret       = "s3cr3t-of-the-tests" // the client secret of every simulator here
	natsPassword = "s3cr3t-p4ssw0rd+/%"
	natsToken    = "s3cr3t-t0k3n"
)

// tokenRE finds the access tokens of the simulator, and what its links hold.
var tokenRE = regexp.MustCompile(`eyJhbGciOi\S*|eyJEZWx0YUlk\S*|eyJ2YWxpZGF0\S*`)

// leaks returns the secrets that text holds in any of the ways to write them.
func leaks(text []byte) (found []string) {
	for _, s := range []string{secret, natsPassword, natsToken} {
		for _, written := range []string{
			s, url.QueryEscape(s), url.PathEscape(s), base64.StdEncoding.EncodeToString([]byte(s)), base64.RawURLEncoding.EncodeToString([]byte(s)),
			base64.StdEncoding.EncodeToString([]byte("demo:" + s)), strings.ToUpper(fmt.Sprintf("%x", s)), fmt.Sprintf("%x", s),
		} {
			if bytes.Contains(text, []byte(written)) {
				found = append(found, written)
			}
		}
	}
	for _, token := range tokenRE.FindAll(text, 3) {
		found = append(found, string(token[:12])+"...")
	}
	return found
}

// noSecretLeft looks through every file that a script has written, but for those that hold a secret and nothing else.
func noSecretLeft(t *testing.T, dir string, given map[string]string) {
	files, err := filesOf(dir)
	if err != nil {
		t.Errorf("%s: %v", filepath.Base(dir), err)
	}
	for path, text := range files {
		if strings.TrimSpace(text) == secret || given[path] == text {
			continue
		}
		if slices.Contains([]string{".db", ".blk"}, filepath.Ext(path)) || filepath.Base(path) == "answers" {
			text = tokenRE.ReplaceAllString(text, "") // checkpoint and lease hold a link, and curl shows what the simulator answers
		}
		if found := leaks([]byte(text)); len(found) > 0 {
			t.Errorf("%s: file %s holds %q", filepath.Base(dir), path, found)
		}
	}
}

// filesOf reads all files below dir.
func filesOf(dir string) (map[string]string, error) {
	files, root := map[string]string{}, os.DirFS(dir)
	return files, fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := fs.ReadFile(root, path)
		files[path] = string(text)
		return err
	})
}

// echo is an API in front of the simulator that can be told to repeat, in place of its answers, whatever it was told itself.
type echo struct {
	*httptest.Server
	mode atomic.Pointer[func(w http.ResponseWriter, r *http.Request, told string)]
}

func newEcho(t *testing.T) *echo {
	sim := protimetest.NewServer(protimetest.Options{Tenant: "acme", ClientSecret: secret})
	t.Cleanup(sim.Close)
	for range 3 {
		sim.Insert("clockings", map[string]any{"person": map[string]any{"id": 1}, "date": time.Now().UTC().Format(time.DateOnly), "timeOfDayInMinutes": 510, "kind": "InOut"})
	}
	to, err := url.Parse(sim.URL)
	if err != nil {
		t.Fatal(err)
	}
	e := new(echo)
	proxy := httputil.NewSingleHostReverseProxy(to)
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mode := e.mode.Load()
		if mode == nil {
			proxy.ServeHTTP(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		told := fmt.Sprint(r.URL, " ", r.Header, " ", string(body))
		if form, err := url.ParseQuery(string(body)); err == nil {
			told += " " + form.Get("client_secret")
		}
		if (*mode)(w, r, told); !wrote(w) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(e.Close)
	return e
}

// passed marks an answer that the mode leaves to the simulator.
const passed = "X-Passed"

func wrote(w http.ResponseWriter) bool {
	if w.Header().Get(passed) == "" {
		return true
	}
	w.Header().Del(passed)
	return false
}

var statusURL = regexp.MustCompile(`"status":"(http://[^"]+)"`)

// TestNoSecretShown runs the program through its troubles, with an API that repeats whatever it is told, and looks through all that it
// shows: its output, its log down to debug, its pages, its traces and its command line.
func TestNoSecretShown(t *testing.T) {
	noEnvironment(t)
	isToken := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/connect/token") }
	onAPI := func(answer func(w http.ResponseWriter, r *http.Request, told string)) func(http.ResponseWriter, *http.Request, string) {
		return func(w http.ResponseWriter, r *http.Request, told string) {
			if isToken(r) {
				w.Header().Set(passed, "1")
				return
			}
			answer(w, r, told)
		}
	}
	refuse := func(status int) func(http.ResponseWriter, *http.Request, string) {
		return func(w http.ResponseWriter, _ *http.Request, told string) {
			w.WriteHeader(status)
			json.NewEncoder(w).Encode(map[string]any{
				"error": map[string]any{"code": "Echo", "message": told, "reasons": []string{told}}, "validationErrors": []string{told},
			})
		}
	}
	nats := func(o server.Options) string {
		o.JetStream, o.StoreDir = true, t.TempDir()
		return startWith(t, o).ClientURL()
	}
	withPassword := nats(server.Options{Username: "bridge", Password: natsPassword})
	withToken := nats(server.Options{Authorization: natsToken})
	inURL := func(address, user string) string { return strings.Replace(address, "nats://", "nats://"+user+"@", 1) }
	secretFile := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secretFile, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	all := new(logBuffer)
	for _, test := range []struct {
		name string
		mode func(http.ResponseWriter, *http.Request, string) // nil = the simulator's own answers
		env  []string
		args []string // nil = run
		want string   // what shows that the trouble has come
	}{
		{"Healthy", nil, []string{"NATS_URL=" + inURL(withPassword, "bridge:"+url.QueryEscape(natsPassword))}, nil, `"state":"healthy"`},
		{"HealthyByUser", nil, []string{"NATS_URL=" + withPassword, "NATS_USER=bridge", "NATS_PASSWORD=" + natsPassword}, nil, `"state":"healthy"`},
		{"HealthyByToken", nil, []string{"NATS_URL=" + withToken, "NATS_TOKEN=" + natsToken}, nil, `"state":"healthy"`},
		{"HealthyBySecretFile", nil, []string{"NATS_URL=" + inURL(withToken, natsToken), "PROTIME_CLIENT_SECRET=", "PROTIME_CLIENT_SECRET_FILE=" + secretFile}, nil, `"state":"healthy"`},
		{"WrongPassword", nil, []string{"NATS_URL=" + inURL(withPassword, "bridge:"+url.QueryEscape(natsPassword+natsToken))}, nil, "(?i)authorization violation"},
		{"WrongToken", nil, []string{"NATS_URL=" + withPassword, "NATS_TOKEN=" + natsToken}, nil, "(?i)authorization violation"},
		{"NoNATS", nil, []string{"NATS_URL=" + inURL("nats://127.0.0.1:1", "bridge:"+url.QueryEscape(natsPassword))}, nil, "refused"},
		{"NoNATSURL", nil, []string{"NATS_URL=nats://bridge:" + natsPassword + "@[::1"}, nil, "not a URL"},
		{"TokenRefused", refuse(400), nil, nil, `"state":"unauthorized"`},
		{"TokenEndpointBroken", refuse(500), nil, nil, `"state":"retrying"`},
		{"TokenError", func(w http.ResponseWriter, _ *http.Request, told string) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(401)
			json.NewEncoder(w).Encode(map[string]string{"error": told, "error_description": told, "error_uri": told})
		}, nil, nil, `"state":"unauthorized".*|.*redacted`},
		{"FilterRefused", onAPI(refuse(400)), nil, nil, `"state":"misconfigured"`},
		{"Unauthorized", onAPI(refuse(401)), nil, nil, `"state":"unauthorized"`},
		{"Forbidden", onAPI(refuse(403)), nil, nil, `"state":"unauthorized"`},
		{"Gone", onAPI(refuse(410)), nil, nil, `410 gone`},
		{"Broken", onAPI(refuse(503)), nil, nil, `503 service unavailable`},
		{"NotJSON", onAPI(func(w http.ResponseWriter, _ *http.Request, told string) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, told)
		}), nil, nil, `not a JSON object`},
		{"Garbage", onAPI(func(w http.ResponseWriter, _ *http.Request, told string) {
			fmt.Fprintf(w, `{"value":[],"deltaLink":"/connector/protimeapi/api/v1/delta/clockings?deltaToken=x"} %s`, told)
		}), nil, nil, `something follows the end`},
		{"LinkElsewhere", onAPI(func(w http.ResponseWriter, r *http.Request, _ string) {
			fmt.Fprintf(w, `{"value":[],"deltaLink":"https://%s@evil.example/?deltaToken=%[1]s"}`, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		}), nil, nil, `evil.example`},
		{"Redirect", onAPI(func(w http.ResponseWriter, r *http.Request, _ string) {
			w.Header().Set("Location", "https://evil.example/?"+r.Header.Get("Authorization"))
			w.WriteHeader(307)
		}), nil, nil, `evil.example`},
		{"NoHTTP", onAPI(func(w http.ResponseWriter, _ *http.Request, told string) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(conn, told+"\r\n\r\n")
			conn.Close()
		}), nil, nil, `malformed HTTP`},
		{"Check", nil, []string{"NATS_URL=" + inURL(withToken, natsToken)}, []string{"check"}, `ok    NATS`},
		{"CheckOfABrokenAPI", onAPI(refuse(400)), []string{"NATS_URL=" + inURL(withToken, natsToken)}, []string{"check"}, `Echo`},
		{"List", onAPI(refuse(400)), nil, []string{"clocking", "list", "--from", "2026-01-01", "--to", "2026-01-02"}, `Echo`},
		{"Get", onAPI(refuse(500)), nil, []string{"clocking", "get", "7"}, `Echo`},
	} {
		api := newEcho(t)
		if test.mode != nil {
			api.mode.Store(&test.mode)
		}
		shown := new(logBuffer)
		args := test.args
		if args == nil {
			args = []string{"run", "--log-level", "debug", "--log-format", "json", "--http-addr", "127.0.0.1:0", "--data-dir", filepath.Join(t.TempDir(), "data")}
			if !slices.ContainsFunc(test.env, func(v string) bool { return strings.HasPrefix(v, "NATS_URL=") }) {
				test.env = append(test.env, "NATS_URL="+inURL(withToken, natsToken))
			}
		}
		cmd := exec.Command("clockbridge", args...)
		traces := newCollector(t, nil)
		cmd.Env = append(append(os.Environ(), "OTEL_EXPORTER_OTLP_ENDPOINT="+traces.address, "PROTIME_TENANT=acme", "PROTIME_CLIENT_ID=demo", "PROTIME_CLIENT_SECRET="+secret,
			"PROTIME_API_URL="+api.URL, "PROTIME_AUTH_URL="+api.URL), test.env...)
		cmd.Stdout, cmd.Stderr = shown, shown
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		want := regexp.MustCompile(test.want)
		if !poll(20*time.Second, func() bool { return want.MatchString(shown.String()) }) {
			t.Errorf("%s: waited 20 s for %q in\n%s", test.name, test.want, shown)
		}
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid)); err == nil {
			shown.Write(line)
		}
		if m := statusURL.FindStringSubmatch(shown.String()); m != nil {
			for _, page := range []string{"/", "/readyz", "/healthz", "/status.json", "/metrics"} {
				resp, err := http.Get(m[1] + page)
				if err != nil {
					continue // it has ended by itself
				}
				fmt.Fprintln(shown, resp.Header)
				io.Copy(shown, resp.Body)
				resp.Body.Close()
			}
		}
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(15 * time.Second):
			t.Errorf("%s: has not ended", test.name)
			cmd.Process.Kill()
			<-ended
		}
		fmt.Fprintf(all, "=== %s\n%s%s", test.name, shown, traces.raw)
	}

	if found := leaks([]byte(all.String())); len(found) > 0 {
		t.Errorf("shown: %q", found)
		for line := range strings.SplitSeq(all.String(), "\n") {
			if strings.HasPrefix(line, "===") || len(leaks([]byte(line))) > 0 {
				t.Log(line)
			}
		}
	}
	if !strings.Contains(all.String(), "[redacted]") || !strings.Contains(all.String(), "clockbridge_published_changes_total") || !strings.Contains(all.String(), "clockbridge.tenant") {
		t.Errorf("the API's echoes, the pages or the traces are not here to be looked through:\n%s", all)
	}
}

package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"clockbridge/bridge"
)

// exampleConfig has every key of the file.
const exampleConfig = `
tenants:
  - name: acme
    client_id: bridge
    client_secret_file: SECRET
    collections: [clockings, people]
    since: 2026-01-01
    poll_interval: 45s
    api_url: https://proxy.example.com/acme
    auth_url: https://auth.example.com
    user_agent: Payroll/2.1 (Acme)
    verify_every: 12h
    drop: [person.firstName, location]
    hash: [person.id]
    hash_key_file: HASHKEY
  - name: other
    client_id: bridge
    client_secret_file: SECRET
    filter: date ge '2026-06-01'
nats:
  url: nats://one:4222,nats://two:4222
  creds: bridge.creds
  nkey: bridge.nk
  user: bridge
  password_file: password
  token_file: token
  ca: ca.pem
  cert: cert.pem
  key: key.pem
  replicas: 3
  max_age: 90d
  max_messages_per_subject: 7
data_dir: /var/lib/clockbridge
http_addr: 127.0.0.1:9000
show_data: true
verify_every: 24h
log_level: warn
log_format: json
`

// load parses a command line of run, as main does, and loads what it says.
func load(t *testing.T, args ...string) (*config, error) {
	t.Helper()
	var c struct {
		Run runCmd `cmd:""`
	}
	parser, err := kong.New(&c, kong.Writers(io.Discard, io.Discard), kong.Exit(func(int) { t.Error("kong wants to exit") }))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(append([]string{"run"}, args...)); err != nil {
		t.Fatal(err)
	}
	return c.Run.load(&program{version: "1.2"})
}

// write puts text into a file, with SECRET replaced by the path of a file that holds one, HASHKEY by that of a key.
func write(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	secretFile := filepath.Join(dir, "secret")
	path := filepath.Join(dir, "c.yaml")
	for name, content := range map[string]string{secretFile: "hunter2\n", filepath.Join(dir, "key"): "0123456789abcdef\n", path: strings.NewReplacer("SECRET", secretFile, "HASHKEY", filepath.Join(dir, "key")).Replace(text)} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// noEnvironment removes the variables that would decide for a test.
func noEnvironment(t testing.TB) {
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		for _, prefix := range []string{"PROTIME_", "NATS_", "CLOCKBRIDGE_", "OTEL_"} {
			if strings.HasPrefix(name, prefix) {
				t.Setenv(name, "")
			}
		}
	}
}

func TestSettings_load_file(t *testing.T) {
	noEnvironment(t)
	c, err := load(t, "--config", write(t, exampleConfig))
	if err != nil {
		t.Fatal(err)
	}
	acme, other := c.Tenants[0], c.Tenants[1]
	if got, err := acme.secret(); got != "hunter2" || err != nil {
		t.Errorf("secret %q, %v, want hunter2 without the end of its line", got, err)
	}
	if acme.PollInterval != 45*time.Second || !slices.Equal(acme.Collections, []string{"clockings", "people"}) || acme.Since != "2026-01-01" {
		t.Errorf("got %+v, want what the file says", acme)
	}
	if other.Since != lastYear || other.Filter == "" || other.UserAgent != "clockbridge/1.2 (self-hosted)" || !slices.Equal(other.Collections, []string{"clockings"}) {
		t.Errorf("got %+v, want defaults where the file is silent", other)
	}
	if acme.privacy == nil || other.privacy != nil {
		t.Errorf("privacy %v and %v, want the first tenant's alone", acme.privacy, other.privacy)
	}
	if acme.VerifyEvery != 12*time.Hour || other.VerifyEvery != 24*time.Hour {
		t.Errorf("verify every %s and %s, want the tenant's own and that of all", acme.VerifyEvery, other.VerifyEvery)
	}
	for flag, want := range map[string]time.Duration{"1m": time.Minute, "0": 0} {
		if err := c.verifyEvery(flag); err != nil || c.Tenants[0].VerifyEvery != want || c.Tenants[1].VerifyEvery != want {
			t.Errorf("--verify-every %s: %s and %s, %v", flag, c.Tenants[0].VerifyEvery, c.Tenants[1].VerifyEvery, err)
		}
	}
	if err := c.verifyEvery("59s"); err == nil || !strings.Contains(err.Error(), "at least 1m") {
		t.Errorf("--verify-every 59s: got %v", err)
	}
	want := natsConfig{
		URL: "nats://one:4222,nats://two:4222", Creds: "bridge.creds", NKey: "bridge.nk", User: "bridge",
		PasswordFile: "password", TokenFile: "token", CA: "ca.pem", Cert: "cert.pem", Key: "key.pem", Replicas: 3, Port: natsPort,
		MaxAge: "90d", MaxPerSubject: 7, limits: bridge.Limits{MaxAge: 90 * 24 * time.Hour, MaxPerSubject: 7},
	}
	if c.NATS != want {
		t.Errorf("got NATS %+v, want %+v", c.NATS, want)
	}
	if c.DataDir != "/var/lib/clockbridge" || c.HTTPAddr != "127.0.0.1:9000" || c.LogLevel != "warn" || c.LogFormat != "json" {
		t.Errorf("got %+v, want what the file says", c)
	}
}

// A flag goes before a variable, a variable before the file.
func TestSettings_load_precedence(t *testing.T) {
	noEnvironment(t)
	path := write(t, exampleConfig)
	t.Setenv("PROTIME_POLL_INTERVAL", "50s")
	t.Setenv("PROTIME_COLLECTIONS", "absences")
	t.Setenv("PROTIME_FILTER", "date ge '2026-02-01'")
	t.Setenv("CLOCKBRIDGE_DATA_DIR", "from-variable")
	t.Setenv("CLOCKBRIDGE_LOG_LEVEL", "error")
	t.Setenv("NATS_CONTEXT", "production")
	t.Setenv("CLOCKBRIDGE_NATS_REPLICAS", "5")
	c, err := load(t, "--config", path, "--poll-interval", "55s", "--data-dir", "from-flag")
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != "from-flag" || c.LogLevel != "error" || c.LogFormat != "json" {
		t.Errorf("data_dir %q, log_level %q, log_format %q, want them from flag, variable and file", c.DataDir, c.LogLevel, c.LogFormat)
	}
	if c.NATS.Context != "production" || c.NATS.URL != "" {
		t.Errorf("NATS url %q, context %q, want the variable's context instead of the file's url", c.NATS.URL, c.NATS.Context)
	}
	if c.NATS.Replicas != 5 {
		t.Errorf("NATS replicas %d, want the variable's 5 instead of the file's", c.NATS.Replicas)
	}
	for _, tenant := range c.Tenants {
		if tenant.PollInterval != 55*time.Second || !slices.Equal(tenant.Collections, []string{"absences"}) {
			t.Errorf("tenant %s: poll interval %s, collections %v, want the flag's and the variable's", tenant.Name, tenant.PollInterval, tenant.Collections)
		}
		if got := tenant.filterFor("absences")(time.Now()); got != "date ge '2026-02-01'" {
			t.Errorf("tenant %s: filter %q, want the variable's, whatever the file says of since", tenant.Name, got)
		}
	}
}

func TestSettings_load_errors(t *testing.T) {
	const tenant = "tenants:\n  - name: acme\n    client_id: x\n    client_secret_file: SECRET\n"
	for _, test := range []struct {
		name, file string
		env        []string // names and values
		want       string
	}{
		{"unknown key", "data_dri: x\n", nil, `c.yaml:1: unknown key "data_dri"; there are: tenants, nats, data_dir`},
		{"unknown key of a tenant", tenant + "    sinse: 90d\n", nil, `c.yaml:5: unknown key "sinse"`},
		{"verify too often", tenant + "verify_every: 1s\n", nil, `verify_every: "1s": must be a time such as 24h`},
		{"secret for a key", "hunter2: x\n", nil, "c.yaml:1: unknown key; there are: tenants"},
		{"secret for a key, twice", "hunter2: x\nhunter2: x\n", nil, "c.yaml:2: key stands here a second time"},
		{"client secret", tenant + "    client_secret: hunter2\n", nil, "c.yaml:5: a secret does not belong into this file: use client_secret_file"},
		{"NATS password", tenant + "nats:\n  password: hunter2\n", nil, "c.yaml:6: a secret does not belong into this file: use password_file"},
		{"NATS token", tenant + "nats:\n  token: hunter2\n", nil, "c.yaml:6: a secret does not belong into this file: use token_file"},
		{"password in a URL", tenant + "nats:\n  url: nats://one,nats://u:hunter2@two\n", nil, "nats: url: a secret does not belong into this file"},
		{"not a URL", tenant + "nats:\n  url: nats://u:hunter2@two:port\n", nil, "nats: url: not a URL"},
		{"not YAML, with a secret", "tenants:\n  - client_secret: |hunter2\n", nil, "c.yaml:2: not valid YAML: invalid header option"},
		{"alias that is a secret", "tenants:\n  - client_secret: *hunter2\n", nil, "c.yaml:2: not valid YAML: could not find alias"},
		{"text for a list", tenant + "    collections: hunter2\n", nil, "c.yaml:5: "},
		{"list for a text", "tenants:\n  - name: acme\n    client_id: [hunter2]\n", nil, "c.yaml:3: the value must be a text"},
		{"text for a number", tenant + "nats:\n  replicas: hunter2\n", nil, "c.yaml:6: the value must be a number"},
		{"key twice", "data_dir: a\ndata_dir: b\n", nil, `c.yaml:2: key "data_dir" stands here a second time`},
		{"two documents", tenant + "---\ndata_dir: b\n", nil, "c.yaml: must be one YAML document"},
		{"no tenant", "data_dir: a\n", nil, "no tenant: set PROTIME_TENANT"},
		{"empty file", "", nil, "no tenant: set PROTIME_TENANT"},
		{"tenant in both places", tenant, []string{"PROTIME_TENANT", "acme"}, "by PROTIME_TENANT or --tenant: remove one of them"},
		{"tenant twice", tenant + "  - name: acme\n    client_id: x\n    client_secret_file: SECRET\n", nil, `tenant "acme": named twice`},
		{"collection twice", tenant + "    collections: [people, people]\n", nil, `collections: "people": is named twice`},
		{"filter of another collection", tenant + "    filters: {people: hunter2}\n", nil, `filters: "people": is not one of the collections`},
		{"list for filters", tenant + "    filters: [hunter2]\n", nil, "c.yaml:5: not valid YAML: sequence was used where mapping is expected"},
		{"collection's form", tenant + "    collections: [People]\n", nil, `collections: "People": must be lower-case`},
		{"tenant's form", strings.Replace(tenant, "acme", "acme.myprotime.eu", 1), nil, "name: must be lower-case"},
		{"since and filter", tenant + "    since: 90d\n    filter: x\n", nil, "since and filter: only one of them may be set"},
		{"since", tenant + "    since: yesterday\n", nil, `since: "yesterday": must be a date`},
		{"poll interval without a unit", tenant, []string{"PROTIME_POLL_INTERVAL", "30"}, `poll_interval: "30": must be a time such as 30s`},
		{"poll interval of no time", tenant + "    poll_interval: 0s\n", nil, `poll_interval: "0s": must be a time such as 30s`},
		{"replicas", tenant + "nats:\n  replicas: 9\n", nil, "replicas: 9: must lie between 1 and 5"},
		{"max age too short", tenant + "nats:\n  max_age: 3d\n", nil, "max_age: max age 72h0m0s: must be at least 73h: a delta can be asked again for 72 h"},
		{"max age without a unit", tenant, []string{"CLOCKBRIDGE_MAX_AGE", "90"}, `max_age: "90": must be a time such as 90d or 2160h`},
		{"max age below zero", tenant + "nats:\n  max_age: -90h\n", nil, `max_age: "-90h": must be a time such as 90d`},
		{"messages per subject", tenant + "nats:\n  max_messages_per_subject: -1\n", nil, "max_messages_per_subject: -1: must not be negative"},
		{"hash without a key", tenant + "    hash: [person.id]\n", nil, "hash: needs a key: set CLOCKBRIDGE_HASH_KEY"},
		{"hash key too short", tenant + "    hash: [person.id]\n", []string{"CLOCKBRIDGE_HASH_KEY", "hunter2"}, "hash: the key has 7 bytes, must have at least 16"},
		{"hash key twice", tenant + "    hash: [person.id]\n    hash_key_file: SECRET\n", []string{"CLOCKBRIDGE_HASH_KEY", "hunter2"}, "hash key: set both by file and by CLOCKBRIDGE_HASH_KEY"},
		{"hash key's file", tenant + "    hash: [person.id]\n    hash_key_file: nowhere\n", nil, "hash_key_file: read secret"},
		{"drop what is needed", tenant + "    drop: [changeVersion]\n", nil, `drop: "changeVersion": must stay as it is`},
		{"url and context", tenant + "nats:\n  url: nats://x\n  context: y\n", nil, "url and context: only one of them may be set"},
		{"certificate without its key", tenant + "nats:\n  cert: x\n", nil, "cert and key: a client certificate needs both files"},
		{"log level", tenant + "log_level: loud\n", nil, `log_level: "loud": must be debug, info, warn or error`},
		{"log format", tenant + "log_format: xml\n", nil, `log_format: "xml": must be text or json`},
		{"secret in an API URL", tenant + "    api_url: https://u:hunter2@x\n", nil, `tenant "acme": api_url: `},
		{"API URL", tenant + "    api_url: ftp://x\n", nil, `tenant "acme": api_url: `},
		{"user agent", tenant + "    user_agent: me\n", nil, `tenant "acme": user_agent: `},
		{"secret twice", tenant, []string{"PROTIME_CLIENT_SECRET", "hunter2"}, "set both by file and by PROTIME_CLIENT_SECRET: remove one of them"},
		{"a tenant's own secret twice", tenant, []string{"PROTIME_CLIENT_SECRET_ACME", "hunter2"}, "set both by file and by PROTIME_CLIENT_SECRET_ACME: remove"},
		{"no secret", "tenants:\n  - name: acme\n    client_id: x\n", nil, "client secret: missing; set PROTIME_CLIENT_SECRET"},
		{"no client id", "tenants:\n  - name: acme\n", nil, "client_id: missing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			noEnvironment(t)
			for pair := range slices.Chunk(test.env, 2) {
				t.Setenv(pair[0], pair[1])
			}
			_, err := load(t, "--config", write(t, test.file))
			if err == nil {
				t.Fatal("no error")
			}
			if _, ok := err.(usageError); !ok {
				t.Errorf("%T is not wrong usage", err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q\nwant %q in it", err, test.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%q shows the secret", err)
			}
		})
	}
}

// A secret is read for every token, so that a rotated one is picked up.
func TestTenantConfig_secret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	noEnvironment(t)
	t.Setenv("PROTIME_TENANT", "acme")
	t.Setenv("PROTIME_CLIENT_ID", "x")
	t.Setenv("PROTIME_CLIENT_SECRET_FILE", file)
	c, err := load(t)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ content, want, err string }{
		{"first\n", "first", ""},
		{"second with a space \r\n", "second with a space ", ""},
		{"\n", "", "is empty"},
	} {
		if err := os.WriteFile(file, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := c.Tenants[0].secret()
		if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("file %q: got %q, %v, want %q, %q", test.content, got, err, test.want, test.err)
		}
	}
}

// An error is printed once, and wrong usage ends with 2.
func TestRun_errors(t *testing.T) {
	noEnvironment(t)
	var out, errs strings.Builder
	code := run(context.Background(), []string{"run", "--log-level", "loud", "--tenant", "acme"}, &program{stdout: &out, stderr: &errs, version: "1"})
	if code != exitUsage || out.Len() > 0 || strings.Count(errs.String(), "clockbridge: ") != 1 {
		t.Errorf("code %d, stdout %q, stderr %q, want 2 and one message", code, out.String(), errs.String())
	}
}

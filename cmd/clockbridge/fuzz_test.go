package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// FuzzConfig reads whatever may stand in the configuration file, and in one that holds secrets where they do not belong.
func FuzzConfig(f *testing.F) {
	noEnvironment(f)
	f.Setenv("PROTIME_CLIENT_SECRET", secret)
	path := filepath.Join(f.TempDir(), "c.yaml")
	const tenant = "tenants:\n  - name: acme\n    client_id: x\n"
	for _, text := range []string{
		exampleConfig, tenant, "", "a: &a [*a]", "tenants: *x", "{", "- - -", "? a\n: b", "\t", "%YAML 1.2\n---\n", "nats: {port: 99999999999999999999}",
		"tenants:\n  - name: acme\n    poll_interval: 9e99s\n", "log_level: debug+1\n", "<<: {<<: {}}", "!!binary x", "data_dir: |+9\n x", "\xff\xfe", "\"\\x",
	} {
		f.Add(text, "", uint8(0))
	}
	f.Add(tenant, "", uint8(2))
	f.Add("", ":", uint8(8))
	f.Add("", ": x", uint8(8))
	f.Add(tenant+"nats:\n", "", uint8(3))
	f.Add(tenant+"nats:\n  url: nats://one:4222,nats://u:", "@two", uint8(8))
	lines := []string{
		"client_secret: ", "    client_secret: ", "    client_secret: [", "  password: ", "  token: |", "password: &", "token: *", "  token: \"", "", "    api_url: https://u:",
	}
	read := func(t *testing.T, text string) error {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := settings{Config: path}
		c, err := s.load(&program{version: "1"})
		if err == nil && (len(c.Tenants) == 0 || c.DataDir == "" || c.Tenants[0].secret == nil) {
			t.Fatalf("got %+v of %q", c, text)
		}
		var usage usageError
		if err != nil && !errors.As(err, &usage) {
			t.Fatalf("got %v of %q, want wrong usage", err, text)
		}
		return err
	}
	f.Fuzz(func(t *testing.T, before, after string, line uint8) {
		if len(before)+len(after) > 1<<10 {
			return
		}
		_ = read(t, before+after) //nolint:errcheck // whatever it says
		if err := read(t, before+lines[int(line)%len(lines)]+secret+after); err != nil && strings.Contains(echoed.ReplaceAllString(err.Error(), ""), secret) {
			t.Fatalf("the secret is shown: %v\n%s", err, before+lines[int(line)%len(lines)]+secret+after)
		}
	})
}

// echoed is the value of a setting that holds no secret, as an error quotes it. Whatever stands there is shown.
var echoed = regexp.MustCompile(`(tenant|(collections|heartbeat|log_format|log_level|poll_interval|since|verify_every):) "(\\.|[^"\\])*"`)

// FuzzSettings takes whatever the environment may say, and never shows the secret in an error about something else.
func FuzzSettings(f *testing.F) {
	noEnvironment(f)
	f.Setenv("PROTIME_CLIENT_SECRET", secret)
	f.Add("acme", "clockings,people", "last-year", "", "30s", "https://acme.myprotime.eu", "clockbridge/1 (Example)", 4222)
	f.Add("acme.myprotime.eu", "", "2026-01-01", "date ge '2026-01-01'", "9999999h", "http://u:p@h/?x", "me", -2)
	f.Add("-", "a,,b", "9999d", "'", "1ns", "https://[::1%25eth0]:99999/", "a/b (c)\n", 1<<30)
	f.Fuzz(func(t *testing.T, tenant, collections, since, filter, poll, api, agent string, port int) {
		s := settings{
			Tenant: tenant, ClientID: "x", Collections: strings.Split(collections, ","), Since: since, Filter: filter, PollInterval: poll,
			APIURL: api, UserAgent: agent, NATSPort: port,
		}
		c, err := s.load(&program{version: "1"})
		if err != nil {
			if strings.Contains(err.Error(), secret) && !strings.Contains(tenant+collections+since+poll+api+agent, secret) {
				t.Fatalf("the secret is shown: %v", err)
			}
			return
		}
		for _, collection := range c.Tenants[0].Collections {
			got := c.Tenants[0].filterFor(collection)(time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC))
			if filter == "" && strings.Count(got, "'") != 2 && got != "" {
				t.Fatalf("since %q gives the filter %q", since, got)
			}
		}
	})
}

// FuzzSinceDate: what is taken for a date is one, and stays it.
func FuzzSinceDate(f *testing.F) {
	for _, since := range []string{"last-year", "90d", "0d", "9999d", "2026-01-01", "2026-02-29", "2024-02-29", "0000-01-01", "9999-12-31", "-5d", "٣d", "1e3d"} {
		f.Add(since, int64(1_795_000_000))
	}
	f.Fuzz(func(t *testing.T, since string, unix int64) {
		now := time.Unix(unix%(4e9), 0) // some hundred years around 1970
		date, err := sinceDate(since, now)
		if err != nil {
			return
		}
		if parsed, err := time.Parse(time.DateOnly, date); err != nil || parsed.Format(time.DateOnly) != date {
			t.Fatalf("%q at %v is %q, %v", since, now, date, err)
		}
		if again, err := sinceDate(date, now); err != nil || again != date {
			t.Fatalf("%q is %q, which is %q, %v", since, date, again, err)
		}
	})
}

// FuzzRedact: what is shown of NATS URLs holds no password.
func FuzzRedact(f *testing.F) {
	f.Add("nats://", "one:4222")
	f.Add("", "one")
	f.Add("tls://one, nats://", "[::1]:4222,three")
	f.Add("nats://one/", "two")
	f.Add("nats://one?", "two")
	f.Add("nats://one#", "two")
	f.Add("x@nats://", "two:port")
	f.Fuzz(func(t *testing.T, before, after string) {
		if shown := redact(before + "bridge:" + secret + "@" + after); strings.Contains(shown, secret) {
			t.Fatalf("%q is shown", shown)
		}
	})
}

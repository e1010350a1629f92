package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"clockbridge/protime/protimetest"
)

type simCmd struct {
	Listen     string  `default:"127.0.0.1:8090" help:"Address to listen on."`
	Tenant     string  `help:"The only tenant. Default: any name, each with data of its own."`
	ClientID   string  `default:"demo" help:"Client id. The secret comes from PROTIME_CLIENT_SECRET or a file; without them it is demo."`
	SecretFile string  `name:"client-secret-file" env:"PROTIME_CLIENT_SECRET_FILE" placeholder:"FILE" help:"File with the client secret."`
	People     int     `default:"0" help:"People who clock. 0: nobody; what there is, is what you post."`
	Rate       float64 `default:"1" help:"Actions a second, with --people."`
	Days       int     `default:"30" help:"Days of history, with --people."`
	PageSize   int     `default:"100" help:"Records on a page."`
	Seed       uint64  `default:"1" help:"Of everything that is left to chance."`
}

// Run serves the simulated API until ctx ends.
func (c *simCmd) Run(ctx context.Context, p *program) error {
	if c.People < 0 || !rateFits(c.Rate) || c.PageSize < 1 {
		return usagef("people must not be negative, page size more than 0, rate from 0.001 to 10000")
	}
	secret, shown, err := c.secret()
	if err != nil {
		return usageError{err}
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("serve simulated API: %w; choose another address with --listen", err)
	}
	tenant := c.Tenant
	if tenant == "" {
		tenant = "demo"
	}
	s := protimetest.New(protimetest.Options{
		Tenant: c.Tenant, ClientID: c.ClientID, ClientSecret: secret, PageSize: c.PageSize, Seed: c.Seed,
	})
	if c.People > 0 {
		w := protimetest.NewWorkload(s, tenant, protimetest.WorkloadOptions{People: c.People, Seed: c.Seed, Office: true})
		w.Backfill(c.Days)
		go work(ctx, c.Rate, func() { w.Step() })
	}
	server := &http.Server{Handler: withHealth(s), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		server.Close() //nolint:errcheck // the process ends
	}()
	c.explain(p, "http://"+l.Addr().String(), tenant, shown)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve simulated API: %w", err)
	}
	return nil
}

// withHealth answers /healthz, which is no part of the API, for clockbridge status --health.
func withHealth(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			fmt.Fprintln(w, "ok")
			return
		}
		api.ServeHTTP(w, r)
	})
}

// rateFits says whether a ticker can keep up with so many actions a second.
func rateFits(rate float64) bool { return rate >= 0.001 && rate <= 10_000 } // and so is no NaN

// work calls act rate times a second.
func work(ctx context.Context, rate float64, act func()) {
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			act()
		}
	}
}

// secret is what clients must know, and how a shell gets at it, since it is never printed: but for the usual one.
func (c *simCmd) secret() (value, shown string, err error) {
	value = os.Getenv("PROTIME_CLIENT_SECRET")
	switch {
	case value != "" && c.SecretFile != "":
		return "", "", errors.New("client secret: set both by file and by PROTIME_CLIENT_SECRET: remove one of them")
	case value != "":
		return value, `"$PROTIME_CLIENT_SECRET"`, nil
	case c.SecretFile == "":
		return "demo", "demo", nil
	}
	value, err = readSecret(c.SecretFile)
	return value, `"$(cat ` + quote(c.SecretFile) + `)"`, err
}

// quote writes s as one word of a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (c *simCmd) explain(p *program, url, tenant, secret string) {
	fmt.Fprintf(p.stdout, `simulated myProtime API at %[1]s, tenant %[2]s, client id %[3]s

A token, a clocking, and the listing that starts a delta:

  TOKEN=$(curl -s %[1]s/tenants/%[2]s/connect/token -d grant_type=client_credentials -d client_id=%[3]s --data-urlencode client_secret=%[6]s \
    -d 'scope=connector-protimeapi-clockings.read connector-protimeapi-clockings.write' | sed 's/.*"access_token":"\([^"]*\)".*/\1/')
  curl -i -A 'Tutorial/1.0 (Me)' -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
    -d '{"person":{"id":1},"date":"%[4]s","timeOfDayInMinutes":510,"kind":"InOut"}' %[1]s%[5]sclockings
  curl -A 'Tutorial/1.0 (Me)' -H "Authorization: Bearer $TOKEN" "%[1]s%[5]sclockings?filter=date%%20ge%%20'%[4]s'&delta"

Follow it with clockbridge:

  PROTIME_TENANT=%[2]s PROTIME_CLIENT_ID=%[3]s PROTIME_CLIENT_SECRET=%[6]s PROTIME_API_URL=%[1]s PROTIME_AUTH_URL=%[1]s clockbridge run

Correct, remove, expire, break things (no part of the API): curl %[1]s/admin/
`, url, tenant, c.ClientID, time.Now().Format(time.DateOnly), protimetest.Root, secret)
}

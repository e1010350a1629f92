package protime

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"clockbridge/protime/protimetest"
)

// TestCollections: with what is known of a collection the strict simulator lets its delta begin and its list be read, and
// without it, not.
func TestCollections(t *testing.T) {
	all := Collections()
	if !slices.IsSortedFunc(all, func(a, b Collection) int { return strings.Compare(a.Name, b.Name) }) || len(all) != 18 {
		t.Errorf("%d collections, want the 18 that are documented, by name", len(all))
	}
	now := time.Now()
	date := now.Format(time.DateOnly)
	for _, c := range all {
		t.Run(c.Name, func(t *testing.T) {
			sim := protimetest.New(protimetest.Options{Tenant: "acme"})
			t.Cleanup(sim.Close)
			client := func(scope string) *Client {
				t.Helper()
				client, err := NewClient(Config{
					Tenant: "acme", ClientID: "demo", Secret: func() (string, error) { return "demo", nil }, Scopes: []string{scope},
					APIURL: "https://acme.protime.test", AuthURL: "https://auth.protime.test",
					UserAgent: "clockbridge-test/1 (Example)", Transport: sim.Transport(),
				})
				if err != nil {
					t.Fatal(err)
				}
				return client
			}
			start := func(scope, filter string) error {
				cl := client(scope)
				page, err := cl.Fetch(context.Background(), cl.DeltaStart(c.Name, filter))
				if err == nil {
					page.Close()
				}
				return err
			}
			filter := c.SinceFilter(date)
			if err := start(ReadScope(c.Name), filter); err != nil {
				t.Errorf("delta: %v", err)
			}
			other := "people"
			if c.Scope == other {
				other = "clockings"
			}
			if err := start(ReadScope(other), filter); err == nil {
				t.Error("its delta begins with the scope of another collection")
			}
			if err := start(ReadScope(c.Name), ""); (err == nil) == c.Dated {
				t.Errorf("delta without a filter: %v, dated %t", err, c.Dated)
			}
			for _, field := range c.Filters {
				constant := map[string]string{"counter-definition": "1", "counter-group": "1", "enabled": "true", "status": "'A'"}[field]
				with := strings.TrimPrefix(filter+" and "+field+" eq "+constant, " and ")
				if err := start(ReadScope(c.Name), with); err != nil {
					t.Errorf("delta with a filter on %s: %v", field, err)
				}
			}
			if c.Dated {
				window := c.ListFilter("date ge '" + date + "' and date le '" + date + "'")
				if err := client(ReadScope(c.Name)).CheckAccess(context.Background(), c.Name, window); err != nil {
					t.Errorf("list of a day: %v", err)
				}
			}
		})
	}
}

func TestCollectionOf_unknown(t *testing.T) {
	c, known := CollectionOf("unheard-of")
	if known || c.SinceFilter("2026-01-01") != "" || ReadScope("unheard-of") != "connector-protimeapi-unheard-of.read" {
		t.Errorf("got %+v, known %t", c, known)
	}
}

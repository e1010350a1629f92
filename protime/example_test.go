package protime_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"clockbridge/protime"
)

// A delta: the first listing, and then the changes since.
func Example() {
	const root = "/connector/protimeapi/api/v1/"
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch query := r.URL.Query(); {
		case r.Method == "POST":
			fmt.Fprint(w, `{"access_token":"eyJ...","expires_in":1800,"token_type":"Bearer"}`)
		case query.Has("delta"):
			fmt.Fprint(w, `{"value":[{"changeVersion":"0000090200004BD0000A","id":1001}],"deltaLink":"`+root+`delta/clockings?deltaToken=e+A="}`)
		case query.Get("deltaToken") == "e+A=":
			fmt.Fprint(w, `{"value":[{"changeType":"Delete","data":{"changeVersion":"0000090200004BD0000C","id":1001}}],"deltaLink":"`+root+`delta/clockings?deltaToken=e+B="}`)
		}
	}))
	defer api.Close()

	client, err := protime.NewClient(protime.Config{
		Tenant: "acme", ClientID: "demo", Secret: func() (string, error) { return "demo", nil },
		Scopes:    []string{protime.ReadScope("clockings")},
		UserAgent: "Example/1.0 (Example Company)",
		APIURL:    api.URL, AuthURL: api.URL,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.CloseIdleConnections()

	cursor := client.DeltaStart("clockings", "date ge '2026-01-01'")
	for range 2 {
		page, err := client.Fetch(context.Background(), cursor)
		if err != nil {
			fmt.Println(err)
			return
		}
		for {
			change, err := page.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				fmt.Println(err)
				return
			}
			fmt.Println(change.Type, change.ID, change.Version)
		}
		if cursor = page.NextLink(); cursor == "" {
			cursor = page.DeltaLink()
		}
		page.Close()
	}
	fmt.Println("next:", cursor)
	// Output:
	// InsertOrUpdate 1001 0000090200004BD0000A
	// Delete 1001 0000090200004BD0000C
	// next: /connector/protimeapi/api/v1/delta/clockings?deltaToken=e+B=
}

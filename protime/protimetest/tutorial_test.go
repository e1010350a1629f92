package protimetest

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// curl runs the real curl, as the tutorial does. Links go out as a reader of the tutorial would send them: with %20 for
// the spaces, and %2B for the plus signs of Base64.
func curl(t *testing.T, args ...string) (status, body string) {
	t.Helper()
	path, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal("this test walks through the vendor's tutorial with curl, and there is none: install it (apt-get install curl)")
	}
	args = append([]string{"--silent", "--show-error", "--globoff", "--noproxy", "*", "--user-agent", "Tutorial/1.0 (Example)", "--write-out", "\n%{http_code}"}, args...)
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("curl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	i := strings.LastIndexByte(string(out), '\n')
	return string(out[i+1:]), string(out[:i])
}

func TestTutorial(t *testing.T) {
	s := NewServer(Options{Now: today, PageSize: 2})
	defer s.Close()
	want := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Fatalf("%s:\n got %s\nwant %s", what, got, want)
		}
	}
	var page struct {
		Value     []json.RawMessage
		NextLink  string
		DeltaLink string
	}
	read := func(body string) {
		t.Helper()
		page.Value, page.NextLink, page.DeltaLink = nil, "", ""
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			t.Fatalf("%v in %s", err, body)
		}
	}

	// 1. A token.
	status, body := curl(t, s.URL+"/tenants/acme/connect/token", "-d", "grant_type=client_credentials", "-d", "client_id=demo",
		"-d", "client_secret=demo", "-d", "scope=connector-protimeapi-clockings.read connector-protimeapi-clockings.write")
	want("token: status", status, "200")
	var token struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		TokenType   string `json:"token_type"`
		Scope       string
	}
	if err := json.Unmarshal([]byte(body), &token); err != nil {
		t.Fatal(err)
	}
	want("token: the rest", fmt.Sprintf("%d %s %s", token.ExpiresIn, token.TokenType, token.Scope),
		"1800 Bearer connector-protimeapi-clockings.read connector-protimeapi-clockings.write")
	if !strings.HasPrefix(token.AccessToken, "eyJ") || strings.Count(token.AccessToken, ".") != 2 {
		t.Errorf("token %q does not look like a JWT", token.AccessToken)
	}
	bearer := "Authorization: Bearer " + token.AccessToken

	// 2. A clocking is posted, and read.
	post := func(minutes int) string {
		t.Helper()
		status, body := curl(t, "-i", "-H", bearer, "-H", "Content-Type: application/json", s.URL+Root+"clockings",
			"-d", fmt.Sprintf(`{"person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":%d,"kind":"InOut"}`, minutes))
		want("post: status", status, "201")
		_, location, _ := strings.Cut(body, "\r\nLocation: ")
		location, rest, _ := strings.Cut(location, "\r\n")
		if _, after, _ := strings.Cut(rest, "\r\n\r\n"); after != "" {
			t.Errorf("post: the answer has the body %q, want none", after)
		}
		return location
	}
	location := post(510)
	want("post: location", location, "/connector/protimeapi/api/v1/clockings/19250")
	status, body = curl(t, "-H", bearer, s.URL+location)
	want("get", status+" "+body, `200 {"changeVersion":"0000090200004CE0000A","id":19250,"calculatedTimeOfDayInMinutes":510,"isGenerated":false,`+
		`"status":"Active","person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"}`)
	post(720)
	post(765)

	// 3. The listing that starts a delta: plain records, then a nextLink with raw spaces and quotes.
	status, body = curl(t, "-H", bearer, s.URL+Root+"clockings?filter=date%20ge%20'2026-01-01'&delta")
	want("first page: status", status, "200")
	read(body)
	if len(page.Value) != 2 || page.DeltaLink != "" {
		t.Fatalf("first page: %s", body)
	}
	if !strings.HasPrefix(page.NextLink, Root+"clockings?filter=date ge '2026-01-01'&continuationToken=eyJ2YWxpZGF0") ||
		!strings.Contains(page.NextLink, "&deltaToken=") || strings.Contains(page.NextLink, "&delta&") {
		t.Fatalf("first page: nextLink %s", page.NextLink)
	}
	status, body = curl(t, "-H", bearer, s.URL+wire(page.NextLink))
	want("last page: status", status, "200")
	read(body)
	if len(page.Value) != 1 || page.NextLink != "" || !strings.HasPrefix(page.DeltaLink, Root+"delta/clockings?deltaToken=") {
		t.Fatalf("last page: %s", body)
	}

	// 4. The first changes repeat what was posted minutes before, with the same changeVersion.
	status, body = curl(t, "-H", bearer, s.URL+wire(page.DeltaLink))
	want("first changes: status", status, "200")
	read(body)
	if len(page.Value) != 3 || page.NextLink != "" || page.DeltaLink == "" {
		t.Fatalf("first changes: %s", body)
	}
	want("first change", string(page.Value[0]), `{"changeType":"InsertOrUpdate","data":{"changeVersion":"0000090200004CE0000A","id":19250,`+
		`"calculatedTimeOfDayInMinutes":510,"isGenerated":false,"status":"Active","person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"}}`)

	// 5. A correction, a deletion by hand, and one for good; made by the admin path, since the API documents no way to.
	for path, body := range map[string]string{
		"update": `{"collection":"clockings","id":"19250","fields":{"timeOfDayInMinutes":505}}`,
		"remove": `{"collection":"clockings","id":"19251","hard":true}`,
	} {
		if status, answer := curl(t, s.URL+"/admin/"+path, "-d", body); status != "204" {
			t.Fatalf("admin %s: %s %s", path, status, answer)
		}
	}
	if status, answer := curl(t, s.URL+"/admin/remove", "-d", `{"collection":"clockings","id":"19252"}`); status != "204" {
		t.Fatalf("admin remove: %s %s", status, answer)
	}
	status, body = curl(t, "-H", bearer, s.URL+wire(page.DeltaLink))
	want("changes: status", status, "200")
	read(body)
	if len(page.Value) != 3 {
		t.Fatalf("changes: %s", body)
	}
	for _, part := range []string{
		`"id":19250,"originalTimeOfDayInMinutes":510,"calculatedTimeOfDayInMinutes":505,`,
		`{"changeType":"Delete","data":{"changeVersion":"0000090200004CE000`,
		`","id":19251}}`,
		`"id":19252,"calculatedTimeOfDayInMinutes":765,"isGenerated":false,"status":"Deleted",`,
	} {
		if !strings.Contains(body, part) {
			t.Errorf("changes: no %s in %s", part, body)
		}
	}

	// 6. Nothing new is an empty value and a new link.
	status, body = curl(t, "-H", bearer, s.URL+wire(page.DeltaLink))
	was := page.DeltaLink
	read(body)
	if status != "200" || len(page.Value) != 0 || page.DeltaLink == "" || page.DeltaLink == was {
		t.Errorf("nothing new: %s %s", status, body)
	}

	// A link sent with its plus signs as they are is another link: they read as spaces.
	if !strings.Contains(page.DeltaLink, "+") {
		t.Fatalf("the token in %s holds no plus sign", page.DeltaLink)
	}
	if status, body = curl(t, "-H", bearer, s.URL+page.DeltaLink); status != "400" {
		t.Errorf("raw plus: %s %s", status, body)
	}
}

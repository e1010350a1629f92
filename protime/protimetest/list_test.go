package protimetest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const since = "clockings?filter=date ge '2026-01-01'"

func fill(c *caller, n int) (ids []string) {
	for i := range n {
		ids = append(ids, c.s.Insert("clockings", clocking(1+i, 510)))
	}
	return ids
}

func TestList(t *testing.T) {
	t.Run("Pages", func(t *testing.T) {
		c := newCaller(t, Options{PageSize: 3})
		want := fill(c, 7)
		got, last := c.walk(since)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if last.DeltaLink != "" || len(last.Value) != 1 {
			t.Errorf("last page: %+v", last)
		}
	})
	t.Run("FullLastPageHasNoLink", func(t *testing.T) {
		c := newCaller(t, Options{PageSize: 3})
		fill(c, 3)
		if got := c.page(since); got.NextLink != "" {
			t.Errorf("nextLink %s", got.NextLink)
		}
	})
	t.Run("EmptyPages", func(t *testing.T) {
		c := newCaller(t, Options{PageSize: 3, EmptyPages: true})
		want := fill(c, 7)
		if first := c.page(since); len(first.Value) != 0 || first.NextLink == "" {
			t.Errorf("first page: %+v", first)
		}
		if got, _ := c.walk(since); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
	t.Run("StableWhileRecordsCome", func(t *testing.T) {
		c := newCaller(t, Options{PageSize: 2})
		ids := fill(c, 4)
		first := c.page(since)
		c.s.Remove("clockings", ids[0])
		c.s.Remove("clockings", ids[1])
		fresh := c.s.Insert("clockings", clocking(9, 510))
		if got, _ := c.walk(first.NextLink); fmt.Sprint(got) != fmt.Sprint([]string{ids[2], ids[3], fresh}) {
			t.Errorf("got %v", got)
		}
	})
	t.Run("RawLinks", func(t *testing.T) {
		c := newCaller(t, Options{PageSize: 1})
		fill(c, 30)
		for next := c.page(since).NextLink; next != ""; next = c.page(next).NextLink {
			link, token, _ := strings.Cut(next, "&continuationToken=")
			if link != Root+since {
				t.Fatalf("link %q", next)
			}
			if !strings.Contains(token, "+") || !strings.Contains(token, "/") || !strings.HasSuffix(token, "=") {
				t.Fatalf("token %q lacks one of + / =", token)
			}
		}
	})
	t.Run("Removed", func(t *testing.T) {
		c := newCaller(t, Options{})
		ids := fill(c, 3)
		c.s.SoftDelete("clockings", ids[0])
		c.s.Remove("clockings", ids[1])
		if got, _ := c.walk(since); fmt.Sprint(got) != fmt.Sprint([]string{ids[0], ids[2]}) {
			t.Errorf("got %v, want the soft-deleted one and not the removed one", got)
		}
		c.want(c.get("clockings/"+ids[0]), 200, `"status":"Deleted"`)
		c.want(c.get("clockings/"+ids[1]), 404, "NotFound")
	})
	t.Run("GetDeletedNotFound", func(t *testing.T) {
		c := newCaller(t, Options{GetDeletedNotFound: true})
		ids := fill(c, 1)
		c.s.SoftDelete("clockings", ids[0])
		c.want(c.get("clockings/"+ids[0]), 404, "NotFound")
	})
}

func TestList_ContinuationToken(t *testing.T) {
	for _, o := range []Options{{PageSize: 1}, {PageSize: 1, BadTokenIs400: true}} {
		status := 409
		if o.BadTokenIs400 {
			status = 400
		}
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			c := newCaller(t, o)
			fill(c, 3)
			next := c.page(since).NextLink
			c.want(c.get(strings.Replace(next, "2026-01-01", "2026-01-02", 1)), status, "Invalid continuation token")
			c.want(c.get(strings.Replace(next, "/clockings?", "/absences?", 1)), 403, "") // not even allowed to look
			c.want(c.get(strings.Replace(next, "/clockings?", "/paid-presences?", 1)), status, "Invalid continuation token")
			c.want(c.get(since+"&continuationToken=x"), status, "Invalid continuation token")
			c.want(c.send("GET", strings.ReplaceAll(next, " ", "%20"), "", "User-Agent", "Test/1.0", "Authorization", "Bearer "+c.token),
				status, "Invalid continuation token") // its + read as spaces
			other := *c
			other.token = c.login("other", "demo", allScopes)
			other.want(other.get(next), status, "Invalid continuation token")
			walk := c.page(since + "&delta").NextLink
			without, _, _ := strings.Cut(walk, "&deltaToken=")
			c.want(c.get(without), status, "Invalid continuation token")
			c.want(c.get(next+walk[strings.Index(walk, "&deltaToken="):]), status, "Invalid continuation token")
			c.s.Advance(59 * time.Minute)
			c.token = c.login("acme", "demo", allScopes)
			c.want(c.get(next), 200, "value")
			c.s.Advance(2 * time.Minute)
			c.token = c.login("acme", "demo", allScopes)
			c.want(c.get(next), status, "Invalid continuation token")
		})
	}
}

package protimetest

import (
	"encoding/base64"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// follow returns the changes behind a link, and the next link.
func follow(c *caller, link string) (changes []string, next string) {
	c.t.Helper()
	a := c.page(link)
	if a.DeltaLink == "" || a.NextLink != "" {
		c.t.Fatalf("links %q and %q, want a deltaLink alone", a.NextLink, a.DeltaLink)
	}
	return shownChanges(a), a.DeltaLink
}

func (c *caller) same(what string, got, want []string) {
	c.t.Helper()
	if !slices.Equal(got, want) {
		c.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// later moves the clock, which ends the token.
func (c *caller) later(d time.Duration) {
	c.t.Helper()
	c.s.Advance(d)
	c.token = c.login("acme", "demo", allScopes)
}

func TestDelta_Changes(t *testing.T) {
	c := newCaller(t, Options{PageSize: 2})
	ids := fill(c, 3)
	c.later(time.Hour)
	link := c.start()
	got, link := follow(c, link)
	c.same("nothing new", got, nil)
	c.s.Update("clockings", ids[2], map[string]any{"timeOfDayInMinutes": 500})
	c.s.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": 500})
	c.s.Update("clockings", ids[2], map[string]any{"timeOfDayInMinutes": 501})
	c.s.SoftDelete("clockings", ids[1])
	fresh := c.s.Insert("clockings", clocking(4, 600))
	got, link = follow(c, link)
	c.same("ascending, the latest of each", got, []string{"U " + ids[0], "U " + ids[2], "U " + ids[1], "U " + fresh})
	c.s.Remove("clockings", ids[0])
	c.s.Remove("clockings", ids[0])
	c.s.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": 502})
	body := c.get(link).body
	if want := regexp.MustCompile(`^\{"value":\[\{"changeType":"Delete","data":\{"changeVersion":"[0-9A-F]{20}","id":` + ids[0] + `\}\}\],"deltaLink":"`); !want.MatchString(body) {
		t.Errorf("got %s", body)
	}
}

// TestDelta_Links: each deltaLink is replaced by the next, and dies when that one is used.
func TestDelta_Links(t *testing.T) {
	type world struct {
		*caller
		ids   []string
		first string
	}
	begin := func(t *testing.T, o Options) world {
		o.PageSize = 2
		c := newCaller(t, o)
		ids := fill(c, 3)
		c.later(time.Hour)
		return world{c, ids, c.start()}
	}
	change := func(w world, i int) { w.s.Update("clockings", w.ids[i], map[string]any{"timeOfDayInMinutes": 500}) }

	t.Run("AgainBeforeTheNextIsUsed", func(t *testing.T) {
		w := begin(t, Options{})
		change(w, 0)
		got, lost := follow(w.caller, w.first)
		change(w, 1)
		again, next := follow(w.caller, w.first)
		w.same("first time", got, []string{"U " + w.ids[0]})
		w.same("again, at least the same", again, []string{"U " + w.ids[0], "U " + w.ids[1]})
		got, _ = follow(w.caller, next)
		w.same("nothing new", got, nil)
		w.want(w.get(w.first), 410, `{"error":{"code":"Gone"`)
		w.want(w.get(lost), 410, "Gone")
	})
	t.Run("LenientLinks", func(t *testing.T) {
		w := begin(t, Options{LenientLinks: true})
		change(w, 0)
		_, next := follow(w.caller, w.first)
		follow(w.caller, next)
		got, _ := follow(w.caller, w.first)
		w.same("an older link", got, []string{"U " + w.ids[0]})
	})
	t.Run("SecondStartEndsTheFirst", func(t *testing.T) {
		w := begin(t, Options{})
		second := w.start()
		w.want(w.get(w.first), 410, "Gone")
		follow(w.caller, second)
	})
	t.Run("OtherCollectionsAndTenantsAreApart", func(t *testing.T) {
		w := begin(t, Options{})
		w.page("people?delta")
		other := *w.caller
		other.token = w.login("other", "demo", allScopes)
		other.start()
		follow(w.caller, w.first)
		other.want(other.get(w.first), 410, "Gone")
	})
	t.Run("PerTenant", func(t *testing.T) {
		w := begin(t, Options{MoreClients: map[string]string{"second": "demo"}})
		other := *w.caller
		other.token = w.login("acme", "second", allScopes)
		other.start()
		w.want(w.get(w.first), 410, "Gone")
	})
	t.Run("DeltaPerClient", func(t *testing.T) {
		w := begin(t, Options{MoreClients: map[string]string{"second": "demo"}, DeltaPerClient: true})
		other := *w.caller
		other.token = w.login("acme", "second", allScopes)
		theirs := other.start()
		follow(w.caller, w.first)
		follow(&other, theirs)
	})
	t.Run("Expire", func(t *testing.T) {
		w := begin(t, Options{})
		w.s.Expire("clockings")
		w.want(w.get(w.first), 410, "Gone")
	})
	t.Run("72Hours", func(t *testing.T) {
		w := begin(t, Options{})
		link := w.first
		for range 3 {
			w.later(72 * time.Hour) // each request keeps it alive, also when nothing changed
			_, link = follow(w.caller, link)
		}
		w.later(72*time.Hour + time.Second)
		w.want(w.get(link), 410, "Gone")
	})
}

func TestDelta_Walk(t *testing.T) {
	begin := func(t *testing.T, o Options) (c *caller, ids []string, first answer) {
		o.PageSize = 2
		c = newCaller(t, o)
		ids = fill(c, 5)
		c.later(time.Hour)
		return c, ids, c.page(since + "&delta")
	}
	t.Run("ChangesMeanwhileComeLater", func(t *testing.T) {
		c, ids, first := begin(t, Options{})
		c.s.Update("clockings", ids[0], map[string]any{"timeOfDayInMinutes": 500})
		c.s.Remove("clockings", ids[4])
		fresh := c.s.Insert("clockings", clocking(9, 510))
		listed, last := c.walk(first.NextLink)
		c.same("listed", listed, []string{ids[2], ids[3], fresh})
		got, _ := follow(c, last.DeltaLink)
		c.same("changes", got, []string{"U " + ids[0], "D " + ids[4], "U " + fresh})
	})
	t.Run("ResumableFor72Hours", func(t *testing.T) {
		c, ids, first := begin(t, Options{})
		c.later(71 * time.Hour)
		second := c.page(first.NextLink)
		c.later(71 * time.Hour)
		listed, _ := c.walk(second.NextLink)
		c.same("listed", listed, ids[4:])
	})
	t.Run("GoneAfter72Hours", func(t *testing.T) {
		c, _, first := begin(t, Options{})
		c.later(73 * time.Hour)
		c.want(c.get(first.NextLink), 410, "Gone")
	})
	t.Run("SamePageTwice", func(t *testing.T) {
		c, ids, first := begin(t, Options{})
		for range 2 {
			listed, _ := c.walk(first.NextLink)
			c.same("listed", listed, ids[2:])
		}
	})
	t.Run("Overlapping", func(t *testing.T) {
		c, _, first := begin(t, Options{})
		other := c.page(since + "&delta")
		c.want(c.get(first.NextLink), 409, `"code":"Conflict"`)
		c.walk(other.NextLink)
		c.want(c.get(first.NextLink), 410, "Gone")
	})
	t.Run("OverOnceTheDeltaLinkIsUsed", func(t *testing.T) {
		c, _, first := begin(t, Options{})
		_, last := c.walk(first.NextLink)
		c.page(first.NextLink)
		follow(c, last.DeltaLink)
		c.want(c.get(first.NextLink), 410, "Gone")
	})
	t.Run("TokenOfTheWalkIsNoDeltaLink", func(t *testing.T) {
		c, _, first := begin(t, Options{})
		_, token, _ := strings.Cut(first.NextLink, "&deltaToken=")
		c.want(c.get("delta/clockings?deltaToken="+token), 400, "delta token")
	})
	t.Run("RepeatsWhatIsRecent", func(t *testing.T) {
		for _, none := range []bool{false, true} {
			c := newCaller(t, Options{NoRepeat: none})
			fill(c, 2)
			c.later(time.Hour)
			id := c.s.Insert("clockings", clocking(1, 510))
			c.later(4 * time.Minute)
			want := []string{"U " + id}
			if none {
				want = nil
			}
			got, link := follow(c, c.start())
			c.same(fmt.Sprint("first changes, NoRepeat ", none), got, want)
			got, _ = follow(c, link)
			c.same("second changes", got, nil)
		}
	})
	t.Run("EqualsAndEmptyDelta", func(t *testing.T) {
		c, ids, _ := begin(t, Options{})
		listed, _ := c.walk(since + "&delta=")
		c.same("delta= instead of delta", listed, ids)
	})
	t.Run("DeltaAndContinuation", func(t *testing.T) {
		c, _, first := begin(t, Options{})
		c.want(c.get(first.NextLink+"&delta"), 400, "exclude")
	})
}

func TestDelta_Filter(t *testing.T) {
	for _, leave := range []bool{false, true} {
		t.Run(fmt.Sprint("DeleteOnLeave ", leave), func(t *testing.T) {
			c := newCaller(t, Options{DeleteOnLeave: leave})
			ids := fill(c, 2)
			old := c.s.Insert("clockings", map[string]any{"date": "2025-06-01", "kind": "InOut"})
			c.later(time.Hour)
			_, link := follow(c, c.start())
			c.s.Update("clockings", old, map[string]any{"kind": "Reason"})                                  // was never inside
			c.s.Update("clockings", ids[0], map[string]any{"date": "2025-06-01"})                           // leaves
			c.s.Insert("clockings", map[string]any{"date": "2025-06-01", "kind": "InOut"})                  // never comes in
			c.s.Update("clockings", ids[1], map[string]any{"date": "2026-01-16", "timeOfDayInMinutes": 20}) // stays
			var want []string
			if leave {
				want = []string{"D " + ids[0]}
			}
			got, link := follow(c, link)
			c.same("leaving", got, append(want, "U "+ids[1]))
			c.s.Update("clockings", ids[0], map[string]any{"kind": "Reason"})
			c.s.Remove("clockings", old)
			got, link = follow(c, link)
			c.same("outside", got, nil)
			c.s.Update("clockings", ids[0], map[string]any{"date": "2026-01-17"})
			got, _ = follow(c, link)
			c.same("coming back", got, []string{"U " + ids[0]})
		})
	}
}

func TestDelta_Options(t *testing.T) {
	begin := func(t *testing.T, o Options) (*caller, []string, string) {
		o.PageSize = 2
		c := newCaller(t, o)
		ids := fill(c, 5)
		c.later(time.Hour)
		return c, ids, c.start()
	}
	t.Run("DeltaPages", func(t *testing.T) {
		c, ids, link := begin(t, Options{DeltaPages: true})
		for i := range ids {
			c.s.Update("clockings", ids[i], map[string]any{"timeOfDayInMinutes": i})
		}
		first := c.page(link)
		if len(first.Value) != 2 || first.NextLink == "" || first.DeltaLink != "" {
			t.Fatalf("first page %+v", first)
		}
		c.s.Update("clockings", ids[4], map[string]any{"timeOfDayInMinutes": 99}) // after the first page: the next response
		again, last := c.walk(first.NextLink)
		c.same("the rest", again, ids[2:])
		got, _ := follow(c, last.DeltaLink)
		c.same("the next response", got, []string{"U " + ids[4]})
	})
	t.Run("ShuffleEveryVersion", func(t *testing.T) {
		c, ids, link := begin(t, Options{ShuffleEveryVersion: true, Seed: 1})
		for i := range 20 {
			c.s.Update("clockings", ids[i%2], map[string]any{"timeOfDayInMinutes": i})
		}
		page := c.page(link)
		var versions []string
		for _, v := range page.Value {
			versions = append(versions, v["data"].(map[string]any)["changeVersion"].(string))
		}
		if len(versions) != 20 || slices.IsSorted(versions) {
			t.Errorf("%d versions, sorted: %v", len(versions), slices.IsSorted(versions))
		}
	})
	t.Run("DeleteMoreFields", func(t *testing.T) {
		c, ids, link := begin(t, Options{DeleteMoreFields: true})
		c.s.Remove("clockings", ids[0])
		c.want(c.get(link), 200, `"id":`+ids[0]+`,"calculatedTimeOfDayInMinutes":510`)
	})
	t.Run("DeleteNoVersion", func(t *testing.T) {
		c, ids, link := begin(t, Options{DeleteNoVersion: true})
		c.s.Remove("clockings", ids[0])
		c.want(c.get(link), 200, `{"changeType":"Delete","data":{"id":`+ids[0]+`}}`)
	})
	t.Run("ConflictChance", func(t *testing.T) {
		c, _, link := begin(t, Options{})
		c.s.o.ConflictChance = 0.5
		statuses := map[int]int{}
		for range 50 {
			statuses[c.get(link).status]++
		}
		if statuses[200] < 5 || statuses[409] < 5 || statuses[200]+statuses[409] != 50 {
			t.Errorf("answers %v", statuses)
		}
	})
	t.Run("ScopeMissingIs401", func(t *testing.T) {
		c := newCaller(t, Options{ScopeMissingIs401: true})
		c.want(c.get("absences?filter=date ge '2026-01-01'"), 401, "lacks the scope connector-protimeapi-absences.read")
	})
}

func TestChangeVersion(t *testing.T) {
	c := newCaller(t, Options{})
	version := func(id string) string { return c.s.Truth("clockings")[id].Version }
	a := c.s.Insert("clockings", clocking(1, 510))
	if want := "0000090200004CE0000A"; version(a) != want {
		t.Errorf("the first is %s, want %s", version(a), want)
	}
	was := version(a)
	for range 300 {
		c.s.Update("clockings", a, map[string]any{"timeOfDayInMinutes": 1})
		if now := version(a); now <= was || len(now) != 20 || strings.ToUpper(now) != now {
			t.Fatalf("%s behind %s", now, was)
		}
		was = version(a)
	}
	var b string
	c.s.Action(func(tx *Tx) {
		b = tx.Insert("clockings", clocking(2, 510))
		tx.SoftDelete("clockings", a)
	})
	if version(a) != version(b) || version(a) <= was {
		t.Errorf("one action made %s and %s, after %s", version(a), version(b), was)
	}
	was = version(a)
	for range 2 {
		c.s.Regress()
		c.s.Update("clockings", a, map[string]any{"timeOfDayInMinutes": 3})
		if version(a) >= was {
			t.Errorf("after Regress %s, before %s", version(a), was)
		}
		was = version(a)
	}
}

// TestDelta_ForgedTokens: what nobody was given is refused, and breaks nothing.
func TestDelta_ForgedTokens(t *testing.T) {
	c := newCaller(t, Options{PageSize: 1})
	fill(c, 3)
	next := c.page(since).NextLink
	c.start()
	token := func(json string) string { return base64.StdEncoding.EncodeToString([]byte(json)) }
	for _, forged := range []string{
		`{}`, `[]`, `{"DeltaId":1,"Serial":-1}`, `{"DeltaId":1,"Serial":1,"StartingCursor":-5}`, `{"DeltaId":1,"Serial":1,"Skip":-5}`,
		`{"DeltaId":1,"Serial":1,"Until":-5}`,
	} {
		c.want(c.get("delta/clockings?deltaToken="+token(forged)), 400, "delta token")
	}
	c.want(c.get("delta/clockings?deltaToken="+token(`{"DeltaId":1,"Serial":1,"StartingCursor":99}`)), 410, "Gone")
	link, _, _ := strings.Cut(next, "&continuationToken=")
	c.want(c.get(link+"&continuationToken="+token(`{"validatedFilter":"date ge '2026-01-01'","tenant":"acme","collection":"clockings","after":-5}`)), 409, "")
}

// TestTx_TwiceInOneAction: a changeVersion never stands for two contents of one record.
func TestTx_TwiceInOneAction(t *testing.T) {
	c := newCaller(t, Options{ShuffleEveryVersion: true})
	a := c.s.Insert("counters", map[string]any{"date": "2026-01-15", "status": "Active"})
	_, last := c.walk("counters?filter=date ge '2026-01-01' and status eq 'Active'&delta")
	var b string
	c.s.Action(func(tx *Tx) {
		tx.Update("counters", a, map[string]any{"minutes": 1})
		tx.Update("counters", a, map[string]any{"minutes": 2})
		b = tx.Insert("counters", map[string]any{"date": "2026-01-15", "status": "Active"})
		tx.Remove("counters", b)
	})
	if n := len(c.s.Versions("counters")[a]); n != 2 {
		t.Errorf("%d versions after two actions, want 2", n)
	}
	page := c.page(last.DeltaLink)
	minutes := map[string]bool{}
	for _, v := range page.Value {
		if data := v["data"].(map[string]any); fmt.Sprint(data["id"]) == a {
			minutes[fmt.Sprint(data["changeVersion"], data["minutes"])] = true
		}
	}
	if want := c.s.Truth("counters")[a].Version + "2"; !minutes[want] {
		t.Errorf("told of %v, want %s", minutes, want)
	}
}

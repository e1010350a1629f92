package protime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

const (
	next  = `/connector/protimeapi/api/v1/clockings?filter=date ge '2026-01-01'&continuationToken=eyJ2YWxpZGF0+/==`
	after = `/connector/protimeapi/api/v1/delta/clockings?deltaToken=eyJEZWx0YUlkIjo0+/==`
)

// The documentation's own answers.
var (
	deltaBody = `{"value":[
  {"changeType":"InsertOrUpdate","data":{"changeVersion":"0000090200004BD0000B","id":1050,"person":{"id":1},"date":"2026-01-15"}},
  {"changeType":"Delete","data":{"changeVersion":"0000090200004BD0000C","id":1001}}],
 "deltaLink":"` + after + `"}`
	listingBody = `{"value":[ {"changeVersion":"0000090200004CE0000A","id":19250,"calculatedTimeOfDayInMinutes":510,"isGenerated":false,
  "status":"Active","person":{"id":1},"date":"2026-01-15","timeOfDayInMinutes":510,"kind":"InOut"} ],
 "nextLink":"` + next + `"}`
)

// readPage reads body to its end and returns what Next said last.
func readPage(body io.Reader, delta bool) ([]Change, *Page, error) {
	p := NewPage(io.NopCloser(body), delta)
	defer p.Close()
	var changes []Change
	for {
		c, err := p.Next()
		if err != nil {
			return changes, p, err
		}
		changes = append(changes, c)
	}
}

func TestPage_Next(t *testing.T) {
	const data = `{"id":7,"changeVersion":"0A","date":"2026-01-15"}`
	same := Change{Upsert, "7", "0A", "2026-01-15", []byte(data)}
	wrap := func(items string) string { return `{"value":[` + items + `],"deltaLink":"` + after + `"}` }
	item := func(data string) string { return wrap(`{"changeType":"InsertOrUpdate","data":` + data + `}`) }

	for name, test := range map[string]struct {
		body  string
		plain bool
		want  []Change
	}{
		"OK":                       {body: item(data), want: []Change{same}},
		"EmptyPage":                {body: wrap("")},
		"EmptyPageWithSpace":       {body: " \r\n\t{ \"value\" : [ \n ] , \"deltaLink\" : \"" + after + "\" } \r\n"},
		"ByteOrderMark":            {body: "\ufeff" + item(data), want: []Change{same}},
		"DataBeforeType":           {body: wrap(`{"data":` + data + `,"changeType":"InsertOrUpdate"}`), want: []Change{same}},
		"SpaceEverywhere":          {body: wrap(" { \"changeType\" :\n\"InsertOrUpdate\" ,\t\"data\"\r:  " + data + " } "), want: []Change{same}},
		"EscapedNames":             {body: wrap(`{"changeTy\u0070e":"InsertOr\u0055pdate","\u0064ata":{"i\u0064":7,"changeVersion":"0A"}}`), want: []Change{{Upsert, "7", "0A", "", []byte(`{"i\u0064":7,"changeVersion":"0A"}`)}}},
		"EscapedTopLevel":          {body: `{"val\u0075e":[],"d\u0065ltaLink":"\/x"}`},
		"EscapedValues":            {body: item(`{"id":"a\"b\\\/\u00e9\ud83d\ude00\n","changeVersion":"0\u0041"}`), want: []Change{{Upsert, "a\"b\\/é😀\n", "0A", "", []byte(`{"id":"a\"b\\\/\u00e9\ud83d\ude00\n","changeVersion":"0\u0041"}`)}}},
		"NestedLookAlikes":         {body: item(`{"person":{"id":1,"changeVersion":"FF","date":"1999-01-01"},"note":"\"id\":3,}]","list":[{"id":2,"s":"}"}],"id":7}`), want: []Change{{Upsert, "7", "", "", []byte(`{"person":{"id":1,"changeVersion":"FF","date":"1999-01-01"},"note":"\"id\":3,}]","list":[{"id":2,"s":"}"}],"id":7}`)}}},
		"LookAlikesBesideData":     {body: wrap(`{"id":1,"changeVersion":"FF","more":{"data":{"id":2},"changeType":"Delete"},"changeType":"InsertOrUpdate","data":` + data + `}`), want: []Change{same}},
		"HugeNumbers":              {body: item(`{"id":123456789012345678901234567890,"x":-1.5e+4000}`), want: []Change{{Upsert, "123456789012345678901234567890", "", "", []byte(`{"id":123456789012345678901234567890,"x":-1.5e+4000}`)}}},
		"NumberAsWritten":          {body: item(`{"id":1.0E2}`), want: []Change{{Upsert, "1.0E2", "", "", []byte(`{"id":1.0E2}`)}}},
		"UnknownMembers":           {body: `{"@odata":{"value":[1],"nextLink":"x"},"count":3,"value":[],"z":[[]],"deltaLink":"` + after + `","y":null}`},
		"LinkBeforeValue":          {body: `{"deltaLink":"` + after + `","value":[{"changeType":"InsertOrUpdate","data":` + data + `}]}`, want: []Change{same}},
		"OtherLinkNull":            {body: `{"value":[],"nextLink":null,"deltaLink":"` + after + `"}`},
		"OtherTypeOfChange":        {body: wrap(`{"changeType":"Merge\u0064","data":` + data + `}`), want: []Change{{"Merged", "7", "0A", "2026-01-15", []byte(data)}}},
		"TypeNoString":             {body: wrap(`{"changeType":1,"data":` + data + `}`), want: []Change{{"", "7", "0A", "2026-01-15", []byte(data)}}},
		"DeleteWithoutVersion":     {body: wrap(`{"changeType":"Delete","data":{"id":7}}`), want: []Change{{Delete, "7", "", "", []byte(`{"id":7}`)}}},
		"LastOfOneNameWins":        {body: wrap(`{"changeType":"Delete","data":{"id":1,"date":"x"},"data":{"id":2,"id":3,"changeVersion":"0A","changeVersion":4},"changeType":"InsertOrUpdate"}`), want: []Change{{Upsert, "3", "", "", []byte(`{"id":2,"id":3,"changeVersion":"0A","changeVersion":4}`)}}},
		"IDOfOtherKind":            {body: item(`{"id":{"id":7},"changeVersion":["0A"],"date":null}`), want: []Change{{Upsert, "", "", "", []byte(`{"id":{"id":7},"changeVersion":["0A"],"date":null}`)}}},
		"IDHalfASurrogatePair":     {body: item(`{"id":"\ud83d","date":"\udc00\ud83d"}`), want: []Change{{Upsert, "", "", "", []byte(`{"id":"\ud83d","date":"\udc00\ud83d"}`)}}},
		"NotUTF8":                  {body: item("{\"id\":\"a\xff\\n\",\"n\xfe\":\"\xc0\"}"), want: []Change{{Upsert, "a\xff\n", "", "", []byte("{\"id\":\"a\xff\\n\",\"n\xfe\":\"\xc0\"}")}}},
		"ItemNull":                 {body: wrap(`null`), want: []Change{{Data: []byte(`null`)}}},
		"ItemsOfOtherKinds":        {body: wrap(`7, "x" ,[{"data":{"id":1}}]`), want: []Change{{Data: []byte(`7`)}, {Data: []byte(`"x"`)}, {Data: []byte(`[{"data":{"id":1}}]`)}}},
		"NoData":                   {body: wrap(`{ "changeType":"Delete"}`), want: []Change{{Type: Delete, Data: []byte(`{ "changeType":"Delete"}`)}}},
		"DataNoObject":             {body: wrap(`{"changeType":"Delete","data":[7]},{"data":null}`), want: []Change{{Type: Delete, Data: []byte(`[7]`)}, {Data: []byte(`null`)}}},
		"PlainRecord":              {body: `{"value":[` + data + `],"nextLink":"` + next + `"}`, plain: true, want: []Change{same}},
		"PlainRecordLooksWrapped":  {body: wrap(`{"changeType":"Delete","data":{"id":1},"id":2}`), plain: true, want: []Change{{Upsert, "2", "", "", []byte(`{"changeType":"Delete","data":{"id":1},"id":2}`)}}},
		"PlainItemsOfOtherKinds":   {body: wrap(`null,-7`), plain: true, want: []Change{{Type: Upsert, Data: []byte(`null`)}, {Type: Upsert, Data: []byte(`-7`)}}},
		"EmptyNames":               {body: item(`{"":1,"id":7,"changeVersion":"0A","date":"2026-01-15"}`), want: []Change{{Upsert, "7", "0A", "2026-01-15", []byte(`{"":1,"id":7,"changeVersion":"0A","date":"2026-01-15"}`)}}},
		"LongEscapedName":          {body: item(`{"` + strings.Repeat(`\u0069`, 40) + `":1,"i\u0064":7}`), want: []Change{{Upsert, "7", "", "", []byte(`{"` + strings.Repeat(`\u0069`, 40) + `":1,"i\u0064":7}`)}}},
		"LongerThanTheReadBuffer":  {body: item(`{"x":"` + strings.Repeat("y", 100_000) + `","id":7}`), want: []Change{{Upsert, "7", "", "", []byte(`{"x":"` + strings.Repeat("y", 100_000) + `","id":7}`)}}},
		"DocumentedDelta":          {body: deltaBody, want: []Change{{Upsert, "1050", "0000090200004BD0000B", "2026-01-15", []byte(`{"changeVersion":"0000090200004BD0000B","id":1050,"person":{"id":1},"date":"2026-01-15"}`)}, {Delete, "1001", "0000090200004BD0000C", "", []byte(`{"changeVersion":"0000090200004BD0000C","id":1001}`)}}},
		"NamesThatDifferInCase":    {body: item(`{"ID":1,"Id":2,"changeversion":"0B"}`), want: []Change{{Upsert, "", "", "", []byte(`{"ID":1,"Id":2,"changeversion":"0B"}`)}}},
		"ValuesThatBeginAlikeNull": {body: item(`{"a":true,"b":false ,"c":null,"id":7}`), want: []Change{{Upsert, "7", "", "", []byte(`{"a":true,"b":false ,"c":null,"id":7}`)}}},
	} {
		t.Run(name, func(t *testing.T) {
			for how, reader := range map[string]io.Reader{
				"whole":       strings.NewReader(test.body),
				"byte":        iotest.OneByteReader(strings.NewReader(test.body)),
				"withLastEOF": iotest.DataErrReader(strings.NewReader(test.body)),
			} {
				got, p, err := readPage(reader, !test.plain)
				if err != io.EOF {
					t.Fatalf("%s: got error %v, want EOF", how, err)
				}
				if !slices.EqualFunc(got, test.want, equal) {
					t.Errorf("%s: got %q\nwant %q", how, got, test.want)
				}
				if p.NextLink() == "" && p.DeltaLink() == "" {
					t.Errorf("%s: got no link", how)
				}
			}
		})
	}
}

func equal(a, b Change) bool {
	return a.Type == b.Type && a.ID == b.ID && a.Version == b.Version && a.Date == b.Date && bytes.Equal(a.Data, b.Data)
}

func TestPage_Next_refuses(t *testing.T) {
	good := `{"value":[],"deltaLink":"` + after + `"}`
	for name, test := range map[string]struct{ body, want string }{
		"Nothing":            {"", "cut short"},
		"SpaceOnly":          {" \n", "cut short"},
		"HTML":               {"<!DOCTYPE html><html><body>Maintenance</body></html>", "not a JSON object"},
		"Array":              {`[` + good + `]`, "not a JSON object"},
		"Null":               {`null`, "not a JSON object"},
		"Text":               {`"value"`, "not a JSON object"},
		"ByteOrderMarkTwice": {"\ufeff\ufeff" + good, "not a JSON object"},
		"OtherEncoding":      {"\xff\xfe{\x00}\x00", "not a JSON object"},
		"NoValue":            {`{"deltaLink":"` + after + `"}`, "no value"},
		"EmptyObject":        {`{}`, "no value"},
		"ValueNull":          {`{"value":null,"deltaLink":"` + after + `"}`, "value is not an array"},
		"ValueObject":        {`{"value":{},"deltaLink":"` + after + `"}`, "value is not an array"},
		"ValueTwice":         {`{"value":[],"value":[],"deltaLink":"` + after + `"}`, "value is there twice"},
		"ValueTwiceEscaped":  {`{"value":[],"deltaLink":"` + after + `","v\u0061lue":[]}`, "value is there twice"},
		"NoLink":             {`{"value":[]}`, "neither nextLink nor deltaLink"},
		"LinkNull":           {`{"value":[],"deltaLink":null,"nextLink":null}`, "neither nextLink nor deltaLink"},
		"LinkEmpty":          {`{"value":[],"deltaLink":""}`, "deltaLink is not a link"},
		"LinkNumber":         {`{"value":[],"nextLink":7}`, "nextLink is not a link"},
		"LinkObject":         {`{"value":[],"nextLink":{"href":"/x"}}`, "nextLink is not a link"},
		"LinkTwice":          {`{"value":[],"deltaLink":"/a","deltaLink":"/a"}`, "deltaLink is there twice"},
		"LinkTwiceOnceNull":  {`{"value":[],"nextLink":null,"nextLink":"/a"}`, "nextLink is there twice"},
		"BothLinks":          {`{"nextLink":"/a","value":[],"deltaLink":"/b"}`, "both nextLink and deltaLink"},
		"LinkInItemsOnly":    {`{"value":[{"deltaLink":"/b"}]}`, "neither nextLink nor deltaLink"},
		"SecondObject":       {good + good, "something follows the end"},
		"SecondObjectLater":  {good + "\n\n" + `{"value":[]}`, "something follows the end"},
		"TrailingNUL":        {good + "\x00", "something follows the end"},
		"TrailingBrace":      {good + "}", "something follows the end"},
		"TrailingComma":      {good + ",", "something follows the end"},
		"TrailingHTML":       {good + "<p>Timeout</p>", "something follows the end"},
		"TrailingOpenText":   {good + `"`, "something follows the end"},
		"CommaBeforeBracket": {`{"value":[1,],"deltaLink":"/b"}`, "not well formed"},
		"SingleQuotes":       {`{'value':[]}`, "not well formed"},
		"BadNumber":          {`{"value":[01],"deltaLink":"/b"}`, "not well formed"},
		"BadEscape":          {`{"value":["\x"],"deltaLink":"/b"}`, "not well formed"},
		"ControlInText":      {"{\"value\":[\"\x01\"],\"deltaLink\":\"/b\"}", "not well formed"},
		"WrongBracket":       {`{"value":[{"id":1]],"deltaLink":"/b"}`, "not well formed"},
		"TooDeep":            {`{"value":[` + strings.Repeat("[", 20_000), "not well formed"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, delta := range []bool{true, false} {
				_, p, err := readPage(strings.NewReader(test.body), delta)
				var bad *PageError
				if !errors.As(err, &bad) || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got error %v, want a PageError: %s", err, test.want)
				}
				if p.NextLink() != "" || p.DeltaLink() != "" {
					t.Errorf("got links %q and %q from a bad page", p.NextLink(), p.DeltaLink())
				}
				if _, again := p.Next(); again != err {
					t.Errorf("got %v from Next after %v, want the same", again, err)
				}
			}
		})
	}
}

// A body that ends too early, however the connection tells it, never gives a link.
func TestPage_Next_cutAnywhere(t *testing.T) {
	ends := map[string]func(io.Reader) io.Reader{
		"closed": func(r io.Reader) io.Reader { return r },
		"broken": func(r io.Reader) io.Reader { return io.MultiReader(r, iotest.ErrReader(io.ErrUnexpectedEOF)) },
		"reset": func(r io.Reader) io.Reader {
			return io.MultiReader(r, iotest.ErrReader(errors.New("connection reset")))
		},
	}
	for _, body := range []string{deltaBody, listingBody, "\ufeff" + deltaBody} {
		for how, end := range ends {
			last := len(body) - 1
			if how != "closed" {
				last = len(body) // all of it came, but the connection says that something is missing
			}
			for cut := 0; cut <= last; cut++ {
				_, p, err := readPage(end(strings.NewReader(body[:cut])), true)
				var bad *PageError
				if !errors.As(err, &bad) || errors.Is(err, io.EOF) {
					t.Fatalf("%s after %d of %d bytes: got error %v, want a PageError", how, cut, len(body), err)
				}
				if p.NextLink() != "" || p.DeltaLink() != "" {
					t.Fatalf("%s after %d of %d bytes: got a link", how, cut, len(body))
				}
			}
		}
	}
}

func TestPage_links(t *testing.T) {
	t.Run("OnlyAfterTheEnd", func(t *testing.T) {
		p := NewPage(io.NopCloser(strings.NewReader(`{"deltaLink":"`+after+`","value":[{},{}]}`)), true)
		for range 2 {
			if _, err := p.Next(); err != nil {
				t.Fatal(err)
			}
			if got := p.DeltaLink(); got != "" {
				t.Fatalf("got link %q before the end", got)
			}
		}
		if _, err := p.Next(); err != io.EOF {
			t.Fatalf("got %v, want EOF", err)
		}
		if got := p.DeltaLink(); got != after {
			t.Errorf("got deltaLink %q, want %q", got, after)
		}
		if err := p.Close(); err != nil || p.DeltaLink() != after || p.NextLink() != "" {
			t.Errorf("after Close: got %q, %q, error %v", p.DeltaLink(), p.NextLink(), err)
		}
	})
	t.Run("NotAfterAnEarlyClose", func(t *testing.T) {
		p := NewPage(io.NopCloser(strings.NewReader(`{"deltaLink":"`+after+`","value":[{}]}`)), true)
		p.Next()
		p.Close()
		if _, err := p.Next(); err == nil || err == io.EOF {
			t.Errorf("got error %v, want one that is not EOF", err)
		}
		if got := p.DeltaLink(); got != "" {
			t.Errorf("got link %q", got)
		}
	})
	t.Run("AsTheAPIWroteIt", func(t *testing.T) {
		_, p, err := readPage(strings.NewReader(`{"value":[],"nextLink":"\/connector/x?filter=date ge \u00272026\u0027\u0026t=a\u002Bb/=="}`), false)
		if want := `/connector/x?filter=date ge '2026'&t=a+b/==`; err != io.EOF || p.NextLink() != want {
			t.Errorf("got %q, error %v, want %q", p.NextLink(), err, want)
		}
	})
}

func TestPage_Next_dataOutlivesThePage(t *testing.T) {
	body := pageOf(500, true)
	changes, _, err := readPage(iotest.HalfReader(bytes.NewReader(body)), true)
	if err != io.EOF || len(changes) != 500 {
		t.Fatalf("got %d changes, error %v", len(changes), err)
	}
	for i, c := range changes {
		if want := fmt.Sprint(100000 + i); c.ID != want || !bytes.Contains(body, c.Data) || cap(c.Data) != len(c.Data) {
			t.Fatalf("change %d: got id %s and data %s", i, c.ID, c.Data)
		}
	}
}

func TestPage_Next_allocations(t *testing.T) {
	const n = 1000
	for _, delta := range []bool{true, false} {
		body := pageOf(n, delta)
		got := testing.AllocsPerRun(5, func() {
			if changes, _, err := readPageCount(bytes.NewReader(body), delta); err != io.EOF || changes != n {
				t.Fatalf("got %d changes, error %v", changes, err)
			}
		}) / n
		if got > 3 {
			t.Errorf("delta %v: got %.2f allocations per change, want at most 3", delta, got)
		}
	}
}

func readPageCount(body io.Reader, delta bool) (n int, p *Page, err error) {
	p = NewPage(io.NopCloser(body), delta)
	for {
		if _, err := p.Next(); err != nil {
			return n, p, err
		}
		n++
	}
}

// repeat is a page with a part that comes many times, made while it is read.
type repeat struct {
	before, part, after string
	times               int
	rest                string
	begun               bool
}

// Read fills b: a body in small pieces would make the race detector look at a long item again for each of them.
func (r *repeat) Read(b []byte) (n int, _ error) {
	for n < len(b) {
		if r.rest == "" && !r.more() {
			return n, io.EOF
		}
		m := copy(b[n:], r.rest)
		r.rest = r.rest[m:]
		n += m
	}
	return n, nil
}

func (r *repeat) more() bool {
	switch {
	case !r.begun:
		r.rest, r.begun = r.before, true
	case r.times > 0:
		r.rest, r.times = r.part, r.times-1
	default:
		r.rest, r.after = r.after, ""
	}
	return r.rest != ""
}

func TestPage_Next_flatMemory(t *testing.T) {
	item := `{"changeType":"InsertOrUpdate","data":{"changeVersion":"0000090200004BD0000B","id":1050,"note":"` + strings.Repeat("x", 250) + `"}},`
	const size = 200 << 20
	times := size / len(item)
	p := NewPage(io.NopCloser(&repeat{before: `{"value":[`, part: item, times: times, after: `null],"deltaLink":"/x"}`}), true)
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n := 0
	for ; ; n++ {
		_, err := p.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n%100_000 == 0 {
			runtime.ReadMemStats(&now)
			// The heap breathes between collections, at 4 MiB and up; a body kept would be 200.
			if now.HeapSys > before.HeapSys+32<<20 {
				t.Fatalf("after %d changes the heap grew from %d to %d bytes", n, before.HeapSys, now.HeapSys)
			}
		}
	}
	if n != times+1 {
		t.Errorf("got %d changes, want %d", n, times+1)
	}
	runtime.GC()
	runtime.ReadMemStats(&now)
	if now.HeapAlloc > before.HeapAlloc+1<<20 {
		t.Errorf("after the page, with it still open, %d bytes are held, %d before", now.HeapAlloc, before.HeapAlloc)
	}
	runtime.KeepAlive(p)
}

func TestPage_Next_boundsOneItem(t *testing.T) {
	kilo := strings.Repeat("x", 1024)
	for name, test := range map[string]struct {
		body io.Reader
		want string
	}{
		"ItemTooLong":         {&repeat{before: `{"value":["`, part: kilo, times: MaxItem>>10 + 1, after: `"],"deltaLink":"/x"}`}, "an item of more than 67108864 bytes"},
		"LinkTooLong":         {&repeat{before: `{"value":[],"deltaLink":"`, part: kilo, times: MaxItem>>10 + 100, after: `"}`}, "an item of more than 67108864 bytes"},
		"LinkTooLongToStore":  {strings.NewReader(`{"value":[],"deltaLink":"/` + strings.Repeat("x", maxLink) + `"}`), "deltaLink of 65537 bytes, more than 65536"},
		"UnknownWithoutEnd":   {&repeat{before: `{"junk":["`, part: kilo + `","`, times: 1 << 30}, "more than 268435456 bytes that nobody knows"},
		"MembersWithoutEnd":   {&repeat{before: `{`, part: `"` + kilo + `":1,`, times: 1 << 30}, "more than 268435456 bytes that nobody knows"},
		"SpaceWithoutEnd":     {&repeat{before: `{"value":[ `, part: strings.Repeat(" ", 1024), times: 1 << 30}, "an item of more than 67108864 bytes"},
		"UnknownMemberSkips":  {&repeat{before: `{"junk":["`, part: kilo + `","`, times: MaxItem>>10 + 100, after: `"],"value":[],"deltaLink":"/x"}`}, ""},
		"ManyUnknownMembers":  {&repeat{before: `{`, part: `"x":"` + kilo + `",`, times: MaxItem>>10 + 100, after: `"value":[],"deltaLink":"/x"}`}, ""},
		"MoreThanItemInTotal": {&repeat{before: `{"value":[`, part: `"` + kilo + `",`, times: MaxItem>>10 + 100, after: `1],"deltaLink":"/x"}`}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, p, err := readPageCount(test.body, true)
			if test.want == "" {
				if err != io.EOF || p.DeltaLink() != "/x" {
					t.Errorf("got %v, want EOF and a link", err)
				}
				return
			}
			var bad *PageError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), test.want) || p.DeltaLink() != "" {
				t.Errorf("got %v, want a PageError: %s", err, test.want)
			}
		})
	}
}

package protime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// pageOf returns a page of n records of about 350 bytes, as a delta or as a plain listing.
func pageOf(n int, delta bool) []byte {
	var b bytes.Buffer
	b.WriteString(`{"value":[`)
	for i := range n {
		if i > 0 {
			b.WriteString(",")
		}
		record := fmt.Sprintf(`{"changeVersion":"0000090200004%07X","id":%d,"calculatedTimeOfDayInMinutes":%d,"isGenerated":false,"status":"Active",`+
			`"person":{"id":%d,"externalReferences":{"@badge-number":"%07d"}},"date":"2026-01-%02d","timeOfDayInMinutes":%d,"kind":"InOut",`+
			`"terminal":{"id":%d},"geolocation":{"longitude":4.3517,"latitude":50.8503},"isOpen":false}`,
			i, 100000+i, i%1440, i%977, i, i%31+1, i%1440, i%40)
		if delta {
			record = `{"changeType":"InsertOrUpdate","data":` + record + `}`
		}
		b.WriteString(record)
	}
	b.WriteString(`],"deltaLink":"/connector/protimeapi/api/v1/delta/clockings?deltaToken=eyJkZWx0YUlkIjo0fQ=="}`)
	return b.Bytes()
}

func BenchmarkPage(b *testing.B) {
	for _, delta := range []bool{true, false} {
		b.Run(map[bool]string{true: "delta", false: "listing"}[delta], func(b *testing.B) {
			const n = 10_000
			body := pageOf(n, delta)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				p := NewPage(io.NopCloser(bytes.NewReader(body)), delta)
				got := 0
				for {
					if _, err := p.Next(); err == io.EOF {
						break
					} else if err != nil {
						b.Fatal(err)
					}
					got++
				}
				if got != n || p.DeltaLink() == "" {
					b.Fatalf("got %d changes, want %d", got, n)
				}
			}
			b.ReportMetric(float64(len(body))/n, "B/change")
		})
	}
}

func BenchmarkParseRecord(b *testing.B) {
	c, err := NewPage(io.NopCloser(bytes.NewReader(pageOf(1, false))), false).Next()
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(c.Data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := ParseRecord(c.Data); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFetch reads the same page over a loopback connection; server and client share the processors.
func BenchmarkFetch(b *testing.B) {
	const n = 10_000
	body := pageOf(n, true)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if isToken(r) {
			io.WriteString(w, `{"access_token":"x"}`)
			return
		}
		w.Write(body)
	}))
	defer server.Close()
	config := testConfig(nil)
	config.APIURL, config.AuthURL = server.URL, server.URL
	c, err := NewClient(config)
	if err != nil {
		b.Fatal(err)
	}
	defer c.CloseIdleConnections()
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		p, err := c.Fetch(b.Context(), after)
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = p.Next()
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		p.Close()
	}
}

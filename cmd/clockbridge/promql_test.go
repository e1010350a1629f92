package main

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A promQuery is what a query in PromQL asks for, as far as names go.
type promQuery struct {
	series []promSeries
	by     []string // labels to group or match by
}

// promSeries is a metric with the labels that its selector compares, by name.
type promSeries struct {
	metric string
	labels map[string]string
}

var (
	promToken  = regexp.MustCompile("\\s+|#[^\n]*|\"(?:[^\"\\\\]|\\\\.)*\"|'(?:[^'\\\\]|\\\\.)*'|`[^`]*`|[a-zA-Z_:][a-zA-Z0-9_:]*|\\$\\w+|[0-9][0-9a-zA-Z.]*|=~|!~|[!=<>]=|.")
	promName   = regexp.MustCompile(`^[a-zA-Z_:]`)
	promWords  = []string{"and", "or", "unless", "bool", "offset", "atan2", "inf", "nan", "start", "end"}
	promLists  = []string{"by", "without", "on", "ignoring", "group_left", "group_right"}
	promValues = regexp.MustCompile(`^label_values\((.*),\s*(\w+)\)$`) // Grafana's own
)

// parsePromQL finds the names in a query. It does not check the rest: promtool does.
func parsePromQL(query string) (q promQuery, err error) {
	if m := promValues.FindStringSubmatch(query); m != nil {
		q, err = parsePromQL(m[1])
		q.by = append(q.by, m[2])
		return q, err
	}
	var tokens []string
	for _, token := range promToken.FindAllString(query, -1) {
		if s := strings.TrimSpace(token); s != "" && s[0] != '#' {
			tokens = append(tokens, s)
		}
	}
	at := func(i int) string {
		if i < len(tokens) {
			return tokens[i]
		}
		return ""
	}
	for i := 0; i < len(tokens); i++ {
		token, next := tokens[i], at(i+1)
		switch {
		case !promName.MatchString(token) || slices.Contains(promWords, strings.ToLower(token)):
		case slices.Contains(promLists, token):
			if next != "(" {
				continue // group_left may stand alone
			}
			for i += 2; at(i) != ")"; i++ {
				switch {
				case at(i) == "":
					return q, fmt.Errorf("%s: the list behind %s does not end", query, token)
				case at(i) != ",":
					q.by = append(q.by, at(i))
				}
			}
		case next == "(" || slices.Contains(promLists, next): // a function
		default:
			s := promSeries{token, map[string]string{}}
			if next == "{" {
				for i += 2; at(i) != "}"; i++ {
					if at(i) == "," {
						continue
					}
					value := at(i + 2)
					if !promName.MatchString(at(i)) || len(value) < 2 || !slices.Contains([]string{"=", "=~", "!=", "!~"}, at(i+1)) {
						return q, fmt.Errorf("%s: %q is no comparison of a label", query, strings.Join(tokens[i:min(i+3, len(tokens))], " "))
					}
					s.labels[at(i)] = value[1 : len(value)-1]
					i += 2
				}
			}
			q.series = append(q.series, s)
		}
	}
	return q, nil
}

func TestParsePromQL(t *testing.T) {
	type labels = map[string]string
	for _, test := range []struct {
		query  string
		series []promSeries
		by     []string
	}{
		{"up", []promSeries{{"up", labels{}}}, nil},
		{`absent(up{job="a"} == 1)`, []promSeries{{"up", labels{"job": "a"}}}, nil},
		{`sum by (a, b) (rate(x_total{c=~"1|2", d!~'by (z)'}[5m] offset 1h)) > 0 # not y`, []promSeries{{"x_total", labels{"c": "1|2", "d": "by (z)"}}}, []string{"a", "b"}},
		{"sum(x) by (a) / on (a) group_left sum without (b) (y{})", []promSeries{{"x", labels{}}, {"y", labels{}}}, []string{"a", "a", "b"}},
		{`histogram_quantile(0.95, sum by (le) (rate(x_bucket[$__rate_interval])))`, []promSeries{{"x_bucket", labels{}}}, []string{"le"}},
		{"a:b:c and on (i) time() - start_seconds < 1e3 or vector(0)", []promSeries{{"a:b:c", labels{}}, {"start_seconds", labels{}}}, []string{"i"}},
		{`label_values(x{a="$b"}, c)`, []promSeries{{"x", labels{"a": "$b"}}}, []string{"c"}},
	} {
		q, err := parsePromQL(test.query)
		if err != nil || !reflect.DeepEqual(q.series, test.series) || !slices.Equal(q.by, test.by) {
			t.Errorf("%s: got %v, %v, want %v by %v", test.query, q, err, test.series, test.by)
		}
	}
	for _, wrong := range []string{`x{a}`, `x{a="1`, `sum by (a`, `x{a~"1"}`} {
		if q, err := parsePromQL(wrong); err == nil {
			t.Errorf("%s: got %v, want an error", wrong, q)
		}
	}
}

//go:build promtool

package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// promtool runs Prometheus' own checks, with what is in the PATH: go test -tags promtool.
func promtool(t *testing.T, stdin io.Reader, args ...string) {
	t.Helper()
	c := exec.Command("promtool", args...)
	c.Stdin = stdin
	out, err := c.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %v\n%s", c.Args, err, out)
	}
	t.Logf("%v\n%s", c.Args, out)
}

// TestPromtool_script holds GET /metrics of the program against Prometheus' conventions, in every state that is had cheaply.
func TestPromtool_script(t *testing.T) { runScripts(t, "testdata/promtool") }

// TestPromtool_verified does the same for an engine that has verified its streams, which a program does only after a minute.
func TestPromtool_verified(t *testing.T) {
	url, stop, err := serveHTTP("127.0.0.1:0", "1.2", feeds(), runningRegistry(t))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var shown strings.Builder
	promtool(t, io.TeeReader(resp.Body, &shown), "check", "metrics")
	if !strings.Contains(shown.String(), "clockbridge_verify_differences{") {
		t.Error("no verification shows")
	}
}

// TestPromtool_deploy checks what operators mount: the configuration, the rules, the rules' tests.
func TestPromtool_deploy(t *testing.T) {
	promtool(t, nil, "check", "config", filepath.Join(deployDir, "prometheus.yml"))
	promtool(t, nil, "check", "rules", filepath.Join(deployDir, "alerts.yml"))
	promtool(t, nil, "test", "rules", filepath.Join(deployDir, "alerts_test.yml"))
}

// spelledOut is a query of the dashboard as Grafana asks it.
func spelledOut(query string) string {
	return strings.NewReplacer("$tenant", ".+", "$collection", ".+", "$__rate_interval", "1m").Replace(query)
}

// TestPromtool_notCurrent: how many feeds nobody follows in health is a number while any instance says so, and nothing otherwise.
func TestPromtool_notCurrent(t *testing.T) {
	query := ""
	for _, p := range readDashboard(t).Panels {
		if p.Title == "Not current" {
			query = spelledOut(p.Targets[0].Expr)
		}
	}
	const series = "      - {series: 'clockbridge_feed_state{instance=%q,tenant=\"acme\",collection=%q,state=\"healthy\"}', values: '%d'}\n"
	tests := "tests:\n"
	for _, test := range []struct{ input, want string }{
		{"      - {series: 'up{job=\"clockbridge\"}', values: '0'}\n", "[]"},
		{fmt.Sprintf(series, "a", "clockings", 1), "[{value: 0}]"},
		{fmt.Sprintf(series, "a", "clockings", 0) + fmt.Sprintf(series, "b", "clockings", 1), "[{value: 0}]"},
		{fmt.Sprintf(series, "a", "clockings", 1) + fmt.Sprintf(series, "a", "people", 0), "[{value: 1}]"},
	} {
		tests += "  - input_series:\n" + test.input + fmt.Sprintf("    promql_expr_test:\n      - {expr: %q, eval_time: 0m, exp_samples: %s}\n", query, test.want)
	}
	file := filepath.Join(t.TempDir(), "tests.yml")
	if err := os.WriteFile(file, []byte(tests), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, nil, "test", "rules", file)
}

// TestPromtool_dashboard checks the dashboard's queries as if each were a rule.
func TestPromtool_dashboard(t *testing.T) {
	rules := "groups:\n  - name: dashboard\n    rules:\n"
	for i, query := range readDashboard(t).queries() {
		if strings.HasPrefix(query, "label_values(") {
			continue // Grafana's own
		}
		query = spelledOut(query)
		if strings.Contains(query, "$") {
			t.Errorf("%s: no such variable", query)
		}
		rules += fmt.Sprintf("      - record: query:%d\n        expr: %q\n", i, query)
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, nil, "check", "rules", file)
}

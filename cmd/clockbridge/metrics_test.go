package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"clockbridge/bridge"
)

const deployDir = "../../deploy"

// runningRegistry is what GET /metrics shows of an engine that has followed, verified, and been scraped.
func runningRegistry(t *testing.T) *prometheus.Registry {
	t.Helper()
	e, _, _ := testEngine(t, func(s feedStore) feedStore { return s })
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	verified := func(s bridge.Status) bool { return s.LastVerify != nil && s.LastVerify.Error == "" }
	if !poll(20*time.Second, func() bool { s := e.status(); return verified(s[0]) && verified(s[1]) }) {
		t.Fatalf("not under way: %+v", e.status())
	}
	return newRegistry("1.2", e)
}

// exposed are the series of a registry: by metric, and then by label, the values that there are.
type exposed map[string]map[string][]string

func exposedBy(t *testing.T, registry prometheus.Gatherer) exposed {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := exposed{ // what Prometheus itself makes
		"up":     {},
		"ALERTS": {"alertname": nil, "alertstate": nil},
	}
	for _, f := range families {
		names := []string{f.GetName()}
		if f.GetType() == dto.MetricType_HISTOGRAM {
			names = []string{f.GetName() + "_bucket", f.GetName() + "_sum", f.GetName() + "_count"}
		}
		for _, name := range names {
			labels := map[string][]string{}
			if strings.HasSuffix(name, "_bucket") {
				labels["le"] = nil
			}
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					labels[l.GetName()] = append(labels[l.GetName()], l.GetValue())
				}
			}
			all[name] = labels
		}
	}
	for _, labels := range all {
		labels["job"], labels["instance"] = nil, nil // of the target
	}
	return all
}

var plainValues = regexp.MustCompile(`^[a-z |]+$`)

// wrong says what a query asks for that there is not.
func (all exposed) wrong(query string) error {
	q, err := parsePromQL(query)
	if err != nil {
		return err
	}
	if len(q.series) == 0 {
		return fmt.Errorf("%s: asks for nothing", query)
	}
	known := map[string]bool{}
	for _, s := range q.series {
		labels, ok := all[s.metric]
		if !ok {
			return fmt.Errorf("%s: there is no metric %s", query, s.metric)
		}
		for name, value := range s.labels {
			values, ok := labels[name]
			if !ok {
				return fmt.Errorf("%s: %s has no label %s", query, s.metric, name)
			}
			if !plainValues.MatchString(value) || len(values) == 0 {
				continue
			}
			for v := range strings.SplitSeq(value, "|") {
				if !slices.Contains(values, v) {
					return fmt.Errorf("%s: the label %s of %s is never %q", query, name, s.metric, v)
				}
			}
		}
		for name := range labels {
			known[name] = true
		}
	}
	for _, name := range q.by {
		if !known[name] {
			return fmt.Errorf("%s: none of its metrics has a label %s", query, name)
		}
	}
	return nil
}

// alertRule is a rule of alerts.yml.
type alertRule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func alertRules(t *testing.T) []alertRule {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string      `yaml:"name"`
			Rules []alertRule `yaml:"rules"`
		} `yaml:"groups"`
	}
	readDeploy(t, "alerts.yml", func(data []byte) error { return yaml.UnmarshalWithOptions(data, &file, yaml.DisallowUnknownField()) })
	var all []alertRule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("there are no alerts")
	}
	return all
}

func readDeploy(t *testing.T, name string, decode func([]byte) error) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(deployDir, name))
	if err == nil {
		err = decode(data)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// dashboard is of the dashboard what is looked at here.
type dashboard struct {
	Templating struct {
		List []struct {
			Name  string
			Query struct{ Query string }
		}
	}
	Panels []struct {
		ID         int
		Type       string
		Title      string
		Datasource struct{ UID string }
		GridPos    struct{ X, Y, W, H int }
		// What a figure looks like.
		FieldConfig struct {
			Defaults struct {
				Thresholds struct {
					Steps []struct {
						Color string
						Value *float64
					}
				}
			}
		}
		Targets []struct {
			Expr       string
			Datasource struct{ UID string }
		}
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	readDeploy(t, "grafana/dashboards/clockbridge.json", func(data []byte) error { return json.Unmarshal(data, &d) })
	return d
}

// queries are all that the dashboard asks Prometheus.
func (d dashboard) queries() []string {
	var all []string
	for _, v := range d.Templating.List {
		all = append(all, v.Query.Query)
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			all = append(all, target.Expr)
		}
	}
	return all
}

// TestMetrics: what is shown follows Prometheus' conventions, what the alerts and the dashboard ask for is there, and the README
// tells of all of it.
func TestMetrics(t *testing.T) {
	registry := runningRegistry(t)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("metrics are not in Prometheus' conventions: %v %v", problems, err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if help := f.GetHelp(); help == "" || strings.HasPrefix(f.GetName(), "clockbridge_") && !strings.HasSuffix(help, ".") {
			t.Errorf("%s: help is %q, want a sentence", f.GetName(), help)
		}
	}
	all := exposedBy(t, registry)
	for _, rule := range alertRules(t) {
		if err := all.wrong(rule.Expr); err != nil {
			t.Errorf("alert %s: %v", rule.Alert, err)
		}
		for _, text := range rule.Annotations {
			for _, m := range regexp.MustCompile(`printf "([^"]*)"`).FindAllStringSubmatch(text, -1) {
				if err := all.wrong(m[1]); err != nil {
					t.Errorf("alert %s asks for its text: %v", rule.Alert, err)
				}
			}
		}
	}
	for _, query := range readDashboard(t).queries() {
		if err := all.wrong(query); err != nil {
			t.Errorf("dashboard: %v", err)
		}
	}
	for _, query := range []string{"clockbridge_nothing", `clockbridge_feed_state{stat="x"}`, `clockbridge_feed_state{state="well"}`, "sum by (x) (up)", "1"} {
		if all.wrong(query) == nil {
			t.Errorf("nothing is found wrong with %s", query)
		}
	}

	told := map[string]bool{}
	for _, name := range inREADME(t, "metric", regexp.MustCompile("`(clockbridge_[a-z_]+)`")) {
		told[name] = true
	}
	shown := map[string]bool{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "clockbridge_") {
			shown[f.GetName()] = true
		}
	}
	if !maps.Equal(told, shown) {
		t.Errorf("the README's table tells of\n%v\nthe program shows\n%v", slices.Sorted(maps.Keys(told)), slices.Sorted(maps.Keys(shown)))
	}
}

// readmeTable is the README's table whose header begins with head.
func readmeTable(t *testing.T, head string) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "\n| "+head+" |")
	table, _, _ = strings.Cut(table, "\n\n")
	if !ok {
		t.Fatalf("the README has no table of each %s", head)
	}
	return table
}

// inREADME finds what stands in the first column of the table whose header begins with head.
func inREADME(t *testing.T, head string, what *regexp.Regexp) []string {
	t.Helper()
	var found []string
	for row := range strings.Lines(readmeTable(t, head)) {
		if cells := strings.Split(row, "|"); len(cells) > 1 {
			for _, m := range what.FindAllStringSubmatch(cells[1], -1) {
				found = append(found, m[1])
			}
		}
	}
	return found
}

// TestAlerts: every rule says how bad it is and what to do, stands in the README, and has tests that promtool runs: one where it fires, and one
// where it does not.
func TestAlerts(t *testing.T) {
	var file struct {
		Tests []struct {
			Alerts []struct {
				Name     string `yaml:"alertname"`
				Expected []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	readDeploy(t, "alerts_test.yml", func(data []byte) error { return yaml.Unmarshal(data, &file) })
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, a := range test.Alerts {
			fires[a.Name] = fires[a.Name] || len(a.Expected) > 0
			quiet[a.Name] = quiet[a.Name] || len(a.Expected) == 0
		}
	}
	told := inREADME(t, "alert", regexp.MustCompile("`(Clockbridge[A-Za-z]+)`"))
	var names []string
	for _, rule := range alertRules(t) {
		names = append(names, rule.Alert)
		if !fires[rule.Alert] || !quiet[rule.Alert] {
			t.Errorf("%s: it fires in a test: %t, it does not in a test: %t, want both", rule.Alert, fires[rule.Alert], quiet[rule.Alert])
		}
		if s := rule.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity is %q", rule.Alert, s)
		}
		for _, command := range advised(t, rule.Expr) {
			if !strings.Contains(rule.Annotations["description"], command) {
				t.Errorf("%s: it does not say %q, as the README's table of states does", rule.Alert, command)
			}
		}
		if rule.Annotations["summary"] == "" || len(rule.Annotations["description"]) < 100 {
			t.Errorf("%s: it does not say what is wrong and what to do", rule.Alert)
		}
	}
	if !slices.Equal(told, names) {
		t.Errorf("the README's table tells of\n%v\nthe rules are\n%v", told, names)
	}
}

// advised are the commands that the README's table of states tells for those that a query asks for by name.
func advised(t *testing.T, query string) (commands []string) {
	t.Helper()
	q, err := parsePromQL(query)
	if err != nil {
		t.Fatal(err)
	}
	table := readmeTable(t, "state")
	for _, s := range q.series {
		for state := range strings.SplitSeq(s.labels["state"], "|") {
			for row := range strings.Lines(table) {
				if !strings.HasPrefix(row, "| `"+state+"` |") {
					continue
				}
				cells := strings.Split(strings.TrimSpace(row), "|")
				for _, m := range regexp.MustCompile("`((?:clockbridge|nats) [^`]+)`").FindAllStringSubmatch(cells[len(cells)-2], -1) {
					commands = append(commands, m[1])
				}
			}
		}
	}
	return commands
}

// TestDashboard: it asks the data source that is provisioned, its panels do not cover each other, and nothing known is not shown as good.
func TestDashboard(t *testing.T) {
	var sources struct {
		Datasources []struct {
			UID string `yaml:"uid"`
		} `yaml:"datasources"`
	}
	readDeploy(t, "grafana/provisioning/datasources/prometheus.yml", func(data []byte) error { return yaml.Unmarshal(data, &sources) })
	uid := sources.Datasources[0].UID
	d := readDashboard(t)
	ids, cells := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%s: id %d is taken", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && (p.Datasource.UID != uid || len(p.Targets) == 0) {
			t.Errorf("%s: asks %q %d queries, want some of %q", p.Title, p.Datasource.UID, len(p.Targets), uid)
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != uid {
				t.Errorf("%s: asks %q, want %q", p.Title, target.Datasource.UID, uid)
			}
		}
		// Of a figure that there is not, the colour is that of the first step. That no alert is there is good.
		if steps := p.FieldConfig.Defaults.Thresholds.Steps; p.Type == "stat" && len(steps) > 0 && p.Title != "Alerts" && (steps[0].Value != nil || steps[0].Color == "green") {
			t.Errorf("%s: is %s while nothing is known", p.Title, steps[0].Color)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s lies over %q, or off the edge, at %d, %d", p.Title, other, x, y)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
	}
	if len(d.queries()) < 30 {
		t.Errorf("only %d queries were found", len(d.queries()))
	}
}

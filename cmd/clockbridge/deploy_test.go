package main

import (
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/nats-io/nats-server/v2/server"
)

// TestDeploy_nats: what is acknowledged is on the disk, and JetStream has limits: alone, and as one of three.
func TestDeploy_nats(t *testing.T) {
	for _, name := range []string{"nats.conf", "cluster.conf"} {
		o, err := server.ProcessConfigFile(filepath.Join(deployDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !o.JetStream || !o.SyncAlways || o.StoreDir != "/data" || o.JetStreamMaxStore != 20<<30 || o.JetStreamMaxMemory != 256<<20 || o.HTTPPort != 8222 {
			t.Errorf("%s: JetStream %t in %q, every write synced %t, limits %d and %d bytes, monitoring on %d", name,
				o.JetStream, o.StoreDir, o.SyncAlways, o.JetStreamMaxStore, o.JetStreamMaxMemory, o.HTTPPort)
		}
		if want := map[string]int{"cluster.conf": 3}[name]; len(o.Routes) != want || want > 0 && !o.Cluster.NoAdvertise {
			t.Errorf("%s: %d routes, want %d, and addresses kept inside", name, len(o.Routes), want)
		}
	}
}

// composeFile is of a compose file what is looked at here.
type composeFile struct {
	Services map[string]struct {
		Restart     string         `yaml:"restart"`
		ReadOnly    bool           `yaml:"read_only"`
		CapDrop     []string       `yaml:"cap_drop"`
		Environment map[string]any `yaml:"environment"`
		Logging     struct {
			Options map[string]string `yaml:"options"`
		} `yaml:"logging"`
		DependsOn map[string]struct {
			Condition string `yaml:"condition"`
		} `yaml:"depends_on"`
		Healthcheck struct {
			Test string `yaml:"test"`
		} `yaml:"healthcheck"`
		Ports []string `yaml:"ports"`
	} `yaml:"services"`
}

// TestDeploy_compose: every container starts again and keeps its log short, those of ours cannot do much, nobody else reaches a port, and
// clockbridge waits for a NATS that is well.
func TestDeploy_compose(t *testing.T) {
	var one, three composeFile
	readDeploy(t, "../docker-compose.yml", func(data []byte) error { return yaml.Unmarshal(data, &one) })
	readDeploy(t, "cluster.yml", func(data []byte) error { return yaml.Unmarshal(data, &three) })
	for _, name := range []string{"bridge", "grafana", "nats", "prometheus", "sim"} {
		s, ok := one.Services[name]
		if size, files := s.Logging.Options["max-size"], s.Logging.Options["max-file"]; !ok || s.Restart != "unless-stopped" || size == "" || files == "" {
			t.Errorf("%s: restart %q, logs of %q in %q files", name, s.Restart, size, files)
		}
		public := name == "prometheus" || name == "grafana" // images that we do not know well enough
		if !public && (!s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"})) {
			t.Errorf("%s: read-only root %t, capabilities dropped %q", name, s.ReadOnly, s.CapDrop)
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %q is open to others", name, port)
			}
		}
	}
	if one.Services["nats"].Healthcheck.Test == "" {
		t.Error("nobody sees whether NATS is well")
	}
	const healthy = "service_healthy"
	waits := one.Services["bridge"].DependsOn
	if waits["nats"].Condition != healthy || waits["sim"].Condition != healthy {
		t.Errorf("bridge waits for %v", waits)
	}
	if waits := three.Services["bridge"].DependsOn; waits["nats-2"].Condition != healthy || waits["nats-3"].Condition != healthy {
		t.Errorf("in a cluster bridge waits for %v too", waits)
	}
	// An empty variable lets the file or a context name the server.
	if url := one.Services["bridge"].Environment["NATS_URL"]; url != "${NATS_URL-nats://nats:4222}" {
		t.Errorf("NATS_URL is %v", url)
	}
}

// TestDeploy_systemd: the unit reloads by SIGHUP, starts clockbridge again but for a wrong configuration, and gives it time to stop.
func TestDeploy_systemd(t *testing.T) {
	unit := map[string]string{}
	readDeploy(t, "clockbridge.service", func(data []byte) error {
		for line := range strings.Lines(string(data)) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
				unit[key] = value
			}
		}
		return nil
	})
	for key, want := range map[string]string{
		"ExecReload": "/bin/kill -HUP $MAINPID", "Restart": "on-failure", "RestartPreventExitStatus": strconv.Itoa(exitUsage),
		"StartLimitIntervalSec": "0", "DynamicUser": "yes", "ProtectSystem": "strict",
	} {
		if unit[key] != want {
			t.Errorf("%s is %q, want %q", key, unit[key], want)
		}
	}
	if stop, err := time.ParseDuration(unit["TimeoutStopSec"]); err != nil || stop <= stopsWithin {
		t.Errorf("it may take %q to stop, and promises to take %s", unit["TimeoutStopSec"], stopsWithin)
	}
}

// stopsWithin is how long clockbridge may take to stop, as the README says.
const stopsWithin = 10 * time.Second

// manifest is of an object for Kubernetes what is looked at here.
type manifest struct {
	Kind string            `yaml:"kind"`
	Data map[string]string `yaml:"data"` // of a ConfigMap
	Spec struct {
		MaxUnavailable int `yaml:"maxUnavailable"` // of a PodDisruptionBudget
		Selector       struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		} `yaml:"selector"`
		Replicas int `yaml:"replicas"` // of a StatefulSet, like all below
		Template struct {
			Metadata struct {
				Labels map[string]string `yaml:"labels"`
			} `yaml:"metadata"`
			Spec struct {
				Grace      int         `yaml:"terminationGracePeriodSeconds"`
				Containers []container `yaml:"containers"`
			} `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

type container struct {
	Liveness  probe `yaml:"livenessProbe"`
	Readiness probe `yaml:"readinessProbe"`
}

type probe struct {
	HTTPGet struct {
		Path string `yaml:"path"`
	} `yaml:"httpGet"`
}

// TestDeploy_kubernetes: clockbridge takes the manifest's configuration, both probes ask what they should, and a node can be drained
// while another instance goes on.
func TestDeploy_kubernetes(t *testing.T) {
	objects := map[string]manifest{}
	readDeploy(t, "kubernetes.yaml", func(data []byte) error {
		for documents := yaml.NewDecoder(bytes.NewReader(data)); ; {
			var o manifest
			if err := documents.Decode(&o); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			objects[o.Kind] = o
		}
	})
	path := filepath.Join(t.TempDir(), "clockbridge.yaml")
	if err := os.WriteFile(path, []byte(objects["ConfigMap"].Data["clockbridge.yaml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := readConfig(path); err != nil || len(c.Tenants) != 1 || c.HTTPAddr != ":8080" || c.DataDir != "/data" {
		t.Errorf("configuration: %+v, %v", c, err)
	}
	pods := objects["StatefulSet"].Spec
	if len(pods.Template.Spec.Containers) != 1 {
		t.Fatalf("a pod has %d containers", len(pods.Template.Spec.Containers))
	}
	c := pods.Template.Spec.Containers[0]
	if c.Liveness.HTTPGet.Path != "/healthz" || c.Readiness.HTTPGet.Path != "/readyz" {
		t.Errorf("it is taken for alive by %q, for ready by %q", c.Liveness.HTTPGet.Path, c.Readiness.HTTPGet.Path)
	}
	if grace := time.Duration(pods.Template.Spec.Grace) * time.Second; grace <= stopsWithin {
		t.Errorf("a pod has %s to stop, and promises to take %s", grace, stopsWithin)
	}
	budget := objects["PodDisruptionBudget"].Spec
	if budget.MaxUnavailable < 1 || budget.MaxUnavailable >= pods.Replicas {
		t.Errorf("%d of %d pods may be away, want at least one, and not all", budget.MaxUnavailable, pods.Replicas)
	}
	if !maps.Equal(budget.Selector.MatchLabels, pods.Template.Metadata.Labels) {
		t.Errorf("the budget is of %v, the pods are %v", budget.Selector.MatchLabels, pods.Template.Metadata.Labels)
	}
}

// TestDeploy_readme: the compose suite runs every command that the README gives for docker compose.
func TestDeploy_readme(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	suite, err := os.ReadFile("compose_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "\n### With docker compose\n")
	section, _, _ = strings.Cut(section, "\n### ")
	found := regexp.MustCompile("(?m)(?:^    |`)(docker compose [^`\n]*)").FindAllStringSubmatch(section, -1)
	for _, m := range found {
		if call := "(" + strconv.Quote(m[1]) + ")"; !strings.Contains(string(suite), "s.literally"+call) && !strings.Contains(string(suite), "s.attached"+call) {
			t.Errorf("the compose suite does not run %q as it stands there", m[1])
		}
	}
	if len(found) < 10 {
		t.Errorf("found %d commands in the README", len(found))
	}
}

// TestDrills: every command of the README's drills is run by their script.
func TestDrills(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(filepath.Join("testdata", "script", "drills.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	_, drills, _ := strings.Cut(string(readme), "\n### Drills\n")
	drills, _, _ = strings.Cut(drills, "\n### ")
	commands := 0
	for line := range strings.Lines(drills) {
		command, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "    ")
		if !ok {
			continue
		}
		commands++
		if !strings.Contains(string(script), "exec "+command+"\n") && !strings.Contains(string(script), command+"'\n") && !strings.Contains(string(script), "exec "+command+" ") {
			t.Errorf("the script does not run %q", command)
		}
	}
	if commands < 10 {
		t.Errorf("found %d commands in the README's drills", commands)
	}
}

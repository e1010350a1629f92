package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// TestDeploy_kubernetes: the manifest's configuration is one that clockbridge takes.
func TestDeploy_kubernetes(t *testing.T) {
	manifest, err := os.Open(filepath.Join("..", "..", "deploy", "kubernetes.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer manifest.Close()
	found := false
	for documents := yaml.NewDecoder(manifest); ; {
		var d struct {
			Kind string            `yaml:"kind"`
			Data map[string]string `yaml:"data"`
		}
		if err := documents.Decode(&d); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if d.Kind != "ConfigMap" {
			continue
		}
		found = true
		path := filepath.Join(t.TempDir(), "clockbridge.yaml")
		if err := os.WriteFile(path, []byte(d.Data["clockbridge.yaml"]), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := readConfig(path); err != nil || len(c.Tenants) != 1 || c.HTTPAddr != ":8080" || c.DataDir != "/data" {
			t.Errorf("got %+v, %v", c, err)
		}
	}
	if !found {
		t.Error("the manifest has no ConfigMap")
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

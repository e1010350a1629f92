package main

import (
	"io"
	"os"
	"path/filepath"
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

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestREADME_examples: what the README shows of the examples is what is tested, and it leads to each of them.
func TestREADME_examples(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]string{"examples/go/durable/main.go": "go", "examples/javascript/durable.mjs": "js", "examples/nats-cli/durable.sh": "sh"}
	found := 0
	for _, pattern := range []string{"go/*/main.go", "javascript/*.mjs", "nats-cli/*.sh"} {
		files, err := filepath.Glob("../../examples/" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			found++
			name := strings.TrimPrefix(filepath.ToSlash(file), "../../")
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			switch fence, ok := shown[name]; {
			case ok && !strings.Contains(string(readme), "```"+fence+"\n"+string(text)+"```\n"):
				t.Errorf("the README does not show %s as it is", name)
			case !ok && !strings.Contains(string(readme), "]("+name+")"):
				t.Errorf("the README does not lead to %s", name)
			}
		}
	}
	if found != 12 {
		t.Errorf("%d examples found, want 12", found)
	}
}

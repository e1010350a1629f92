package bridge

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDoc: every test that the package documentation and the README name exists.
func TestDoc(t *testing.T) {
	tests := map[string]bool{}
	files, err := filepath.Glob("../*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	deeper, err := filepath.Glob("../*/*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, deeper...) {
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)\w+)\(`).FindAllStringSubmatch(text(t, file), -1) {
			tests[m[1]] = true
		}
	}
	for _, file := range []string{"doc.go", "../README.md"} {
		names := regexp.MustCompile(`\b(?:Test|Benchmark|Fuzz)[A-Z]\w+…?`).FindAllString(text(t, file), -1)
		if len(names) == 0 {
			t.Errorf("%s names no test", file)
		}
		for _, name := range names {
			prefix, several := strings.CutSuffix(name, "…")
			if several && slices.ContainsFunc(slices.Collect(maps.Keys(tests)), func(test string) bool { return strings.HasPrefix(test, prefix) }) {
				continue
			}
			if !tests[name] {
				t.Errorf("%s names %s, which does not exist", file, name)
			}
		}
	}
}

func text(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

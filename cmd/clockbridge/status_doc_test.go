package main

import (
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fields lists the JSON fields of a struct and of those inside it, such as "feeds.state".
func fields(t *testing.T, of reflect.Type, prefix string) map[string]bool {
	all := map[string]bool{}
	for field := range of.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		if name == "" {
			t.Errorf("%s.%s has no JSON name", of, field.Name)
		}
		all[prefix+name] = true
		inner := field.Type
		for inner.Kind() == reflect.Slice || inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && strings.HasPrefix(inner.PkgPath(), "clockbridge/") {
			maps.Copy(all, fields(t, inner, name+"."))
		}
	}
	return all
}

// TestStatusJSON_documented: the README explains every field of /status.json, and none that there is not.
func TestStatusJSON_documented(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "\n### status.json\n")
	section, _, _ = strings.Cut(section, "\n### ")
	row, quoted := regexp.MustCompile(`^\| (.+?) \| (.*?)\|$`), regexp.MustCompile("`([^`]+)`")
	documented := map[string]bool{}
	prefix := ""
	for line := range strings.Lines(section) {
		m := row.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || m[1] == "---" {
			continue
		}
		if of, heading := strings.CutPrefix(m[1], "field"); heading {
			prefix = ""
			if name := quoted.FindStringSubmatch(of); name != nil {
				prefix = name[1] + "."
			}
			continue
		}
		for _, name := range quoted.FindAllStringSubmatch(m[1], -1) {
			documented[prefix+name[1]] = true
			if m[2] == "" {
				t.Errorf("README: nothing is said of %s%s", prefix, name[1])
			}
		}
	}
	there := fields(t, reflect.TypeFor[statusPage](), "")
	for _, name := range slices.Sorted(maps.Keys(there)) {
		if !documented[name] {
			t.Errorf("README: %s of /status.json is not explained", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(documented)) {
		if !there[name] {
			t.Errorf("README: /status.json has no %s", name)
		}
	}
	if len(there) < 30 {
		t.Errorf("%d fields only", len(there))
	}
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
)

// readConfig reads the YAML file. Its errors name the line and never show it: a secret may stand there by mistake.
func readConfig(path string) (*config, error) {
	c := new(config)
	if path == "" {
		return c, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	if err := decoder.Decode(c); errors.Is(err, io.EOF) {
		return c, nil
	} else if err != nil {
		return nil, fileError(path, err)
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: must be one YAML document", path)
	}
	if c.NATS.URL == "" {
		return c, nil
	}
	all, err := servers(c.NATS.URL)
	if err != nil {
		return nil, fmt.Errorf("%s: nats: url: %w", path, err)
	}
	for _, u := range all {
		if u.User != nil {
			return nil, fmt.Errorf("%s: nats: url: a secret does not belong into this file: use user with password_file, token_file, or NATS_URL", path)
		}
	}
	return c, nil
}

// fileError words what the YAML decoder found.
func fileError(path string, err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return fmt.Errorf("%s: not valid YAML", path)
	}
	token := at.GetToken()
	where := fmt.Sprintf("%s:%d", path, token.Position.Line)
	var (
		unknown *yaml.UnknownFieldError
		kind    *yaml.TypeError
	)
	switch {
	case errors.As(err, &kind):
		return fmt.Errorf("%s: the value must be %s", where, kindName(kind.DstType))
	case strings.HasPrefix(at.GetMessage(), "mapping key "):
		return fmt.Errorf("%s: key%s stands here a second time", where, shownKey(token.Value))
	case !errors.As(err, &unknown):
		// What stands in quotes is a piece of the line.
		message, _, _ := strings.Cut(at.GetMessage(), `"`)
		return fmt.Errorf("%s: not valid YAML: %s", where, strings.TrimRight(message, ": "))
	case token.Value == "client_secret" || token.Value == "password" || token.Value == "token":
		return fmt.Errorf("%s: a secret does not belong into this file: use %s_file, or the environment", where, token.Value)
	}
	return fmt.Errorf("%s: unknown key%s; there are: %s; of a tenant: %s; of nats: %s", where, shownKey(token.Value),
		keys[config](), keys[tenantConfig](), keys[natsConfig]())
}

var keyRE = regexp.MustCompile(`^[a-z_]{1,30}$`)

// shownKey is what a message shows of a key: nothing of one that does not look like ours, since a secret may stand there.
func shownKey(key string) string {
	if !keyRE.MatchString(key) {
		return ""
	}
	return fmt.Sprintf(" %q", key)
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a text"
	case reflect.Int:
		return "a number"
	case reflect.Slice:
		return "a list"
	}
	return "a mapping of keys to values"
}

// keys lists the keys that the file may have in a T.
func keys[T any]() string {
	var names []string
	for field := range reflect.TypeFor[T]().Fields() {
		if key := field.Tag.Get("yaml"); key != "" && key != "-" {
			names = append(names, key)
		}
	}
	return strings.Join(names, ", ")
}

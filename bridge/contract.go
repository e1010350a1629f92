package bridge

import (
	"bytes"
	_ "embed" // the document
	"encoding/json"
	"fmt"

	"github.com/goccy/go-yaml"
)

// AsyncAPI is what subscribers may rely on: an AsyncAPI 3.0 document, in YAML, of subjects, streams and messages. It is written
// by hand, and TestContract holds what a feed publishes against it.
//
//go:embed asyncapi.yaml
var AsyncAPI []byte

// payloads names the schemas in AsyncAPI of what Schema knows.
var payloads = map[string]string{"clockings": "clocking", "deletion": "deletion"}

// Schema returns the JSON Schema, draft 7 as in AsyncAPI, of a payload: of a record of "clockings", the only collection whose fields are
// documented, or of a "deletion".
func Schema(of string) ([]byte, error) {
	name, ok := payloads[of]
	if !ok {
		return nil, fmt.Errorf("no schema of %q", of)
	}
	var doc struct {
		Components struct {
			Schemas map[string]yaml.MapSlice `yaml:"schemas"`
		} `yaml:"components"`
	}
	if err := yaml.UnmarshalWithOptions(AsyncAPI, &doc, yaml.UseOrderedMap()); err != nil {
		return nil, fmt.Errorf("read AsyncAPI document: %w", err)
	}
	schema := append(yaml.MapSlice{{Key: "$schema", Value: "http://json-schema.org/draft-07/schema#"}}, doc.Components.Schemas[name]...)
	text, err := yaml.MarshalWithOptions(schema, yaml.JSON())
	if err != nil {
		return nil, fmt.Errorf("write schema of %s: %w", of, err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, text, "", "  "); err != nil {
		return nil, fmt.Errorf("write schema of %s: %w", of, err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

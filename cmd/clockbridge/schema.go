package main

import (
	"fmt"
	"os"

	"clockbridge/bridge"
)

type schemaCmd struct {
	Payload string `arg:"" optional:"" help:"The JSON Schema of a payload instead: clockings or deletion."`
	Output  string `placeholder:"FILE" help:"Write to a file."`
}

// Run needs neither configuration nor network: the contract is that of this very binary.
func (c *schemaCmd) Run(p *program) error {
	text := bridge.AsyncAPI
	if c.Payload != "" {
		var err error
		if text, err = bridge.Schema(c.Payload); err != nil {
			return usagef("%w: say clockings or deletion", err)
		}
	}
	if c.Output != "" {
		return os.WriteFile(c.Output, text, 0o644) //nolint:gosec // for everybody to read
	}
	if _, err := p.stdout.Write(text); err != nil {
		return fmt.Errorf("print schema: %w", err)
	}
	return nil
}

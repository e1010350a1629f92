package main

import (
	"fmt"

	"clockbridge/bridge"
)

type schemaCmd struct {
	Payload string `arg:"" optional:"" help:"The JSON Schema of a payload instead: clockings or deletion."`
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
	if _, err := p.stdout.Write(text); err != nil {
		return fmt.Errorf("print schema: %w", err)
	}
	return nil
}

package main

import (
	"errors"
	"slices"
	"testing"
)

// What was started is ended in reverse order, all of it, and each failure says where.
func TestClosers_close(t *testing.T) {
	var ended []string
	var c closers
	boom := errors.New("boom")
	for _, what := range []string{"store", "server", "connection"} {
		c.add("close "+what, func() error {
			ended = append(ended, what)
			if what == "server" {
				return boom
			}
			return nil
		})
	}
	err := c.close()
	if !errors.Is(err, boom) || err.Error() != "close server: boom" {
		t.Errorf("got %v, want what failed and where", err)
	}
	if want := []string{"connection", "server", "store"}; !slices.Equal(ended, want) {
		t.Errorf("ended %v, want %v", ended, want)
	}
}

package main

import (
	"testing"

	"clockbridge/protime/protimetest"
)

// TestShow_settled: a message of an earlier version does not stand for a later change.
func TestShow_settled(t *testing.T) {
	key := func(id string) recordKey { return recordKey{"people", id} }
	truth := func() map[recordKey]protimetest.Record {
		return map[recordKey]protimetest.Record{key("1"): {Version: "B"}, key("2"): {Version: "C", Removed: true}, key("3"): {Version: "D", Removed: true}}
	}
	for name, tt := range map[string]struct {
		last map[string]sighting
		want bool
	}{
		"OK":             {map[string]sighting{"1": {"B", false}, "2": {"C", true}}, true},
		"OlderVersion":   {map[string]sighting{"1": {"A", false}, "2": {"C", true}}, false},
		"NeverSeen":      {map[string]sighting{"2": {"C", true}}, false},
		"DeletionToCome": {map[string]sighting{"1": {"B", false}, "2": {"A", false}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &show{last: map[recordKey]sighting{{"clockings", "1"}: {"B", false}}} // another's of the same id
			for id, last := range tt.last {
				s.last[key(id)] = last
			}
			if got := s.settled(truth()); got != tt.want {
				t.Errorf("settled = %v, want %v", got, tt.want)
			}
		})
	}
}

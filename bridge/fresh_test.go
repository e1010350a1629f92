package bridge

import (
	"testing"

	"clockbridge/store"
)

// TestNews is when a change is newer than what the index holds.
func TestNews(t *testing.T) {
	alive := store.Entry{ID: "1", Version: "B", Position: 7}
	deleted := store.Entry{ID: "1", Version: "B", Position: 7, Deleted: true}
	lost := func(e store.Entry) store.Entry { e.Position = 0; return e }
	change := func(version string, deleted bool) store.Entry {
		return store.Entry{ID: "1", Version: version, Deleted: deleted}
	}
	tests := []struct {
		name           string
		change, was    store.Entry
		want, trusting verdict
	}{
		{"Unknown", change("B", false), store.Entry{}, isFresh, isFresh},
		{"Newer", change("C", false), alive, isFresh, isFresh},
		{"NewerThanADeletion", change("C", false), deleted, isFresh, isFresh},
		{"Older", change("A", false), alive, isStale, isFresh},
		{"OlderDeletion", change("A", true), alive, isStale, isFresh},
		{"OlderThanLost", change("A", false), lost(alive), isStale, isFresh},
		{"Same", change("B", false), alive, isSame, isSame},
		{"SameDeletion", change("B", true), deleted, isSame, isSame},
		{"DeletionOfTheSameVersion", change("B", true), alive, isFresh, isFresh},
		{"DeletedSince", change("B", false), deleted, isSame, isFresh},
		{"Lost", change("B", false), lost(alive), isFresh, isFresh},
		{"LostDeletion", change("B", true), lost(deleted), isFresh, isFresh},
		{"DeletionOfALostRecord", change("B", true), lost(alive), isFresh, isFresh},
		{"BeforeALostDeletion", change("B", false), lost(deleted), isSame, isFresh},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := judge(tt.change, tt.was, false); got != tt.want {
				t.Errorf("verdict %d, want %d", got, tt.want)
			}
			if got := judge(tt.change, tt.was, true); got != tt.trusting {
				t.Errorf("verdict %d where the API is trusted, want %d", got, tt.trusting)
			}
		})
	}
}

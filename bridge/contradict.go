package bridge

import (
	"bytes"
	"encoding/json"
)

// contradict reports whether two representations of a record cannot both be true: some member that both have differs. One
// may have members that the other lacks, null being the same as absent: the API's lists, deltas and single records are documented to differ
// in that, and it may learn new members at any time.
func contradict(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return false
	}
	x, xok := decodeJSON(a)
	y, yok := decodeJSON(b)
	return !xok || !yok || differ(x, y)
}

func decodeJSON(data []byte) (v any, ok bool) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return v, d.Decode(&v) == nil
}

func differ(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok {
			return true
		}
		for name, v := range a {
			if other := b[name]; v != nil && other != nil && differ(v, other) {
				return true
			}
		}
		return false
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return true
		}
		for i := range a {
			if differ(a[i], b[i]) {
				return true
			}
		}
		return false
	}
	return a != b // scalars: comparing with a map or slice is false, not a panic, as the types differ
}

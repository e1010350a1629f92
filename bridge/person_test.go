package bridge

import (
	"fmt"
	"testing"

	"clockbridge/protime"
)

func TestPerson_NamedBy(t *testing.T) {
	for _, test := range []struct {
		collection, id, data string
		deleted, want        bool
	}{
		{"clockings", "7", `{"id":1,"person":{"id":7}}`, false, true},
		{"clockings", "7", `{"id":1,"person":{"externalReferences":{"id":8},"id":7}}`, false, true},
		{"clockings", "7", `{"id":7,"person":{"id":71}}`, false, false},
		{"clockings", "7", `{"id":1,"person":{"externalReferences":{"id":7},"id":8}}`, false, false},
		{"clockings", "7", `{"person":7}`, false, true},
		{"clockings", "7", `{"person":"7"}`, false, true},
		{"clockings", "a-b", `{"person":{"id":"\u0061-b"}}`, false, true},
		{"clockings", "7", `{"p\u0065rson":{"id":7}}`, false, true},
		{"clockings", "a/b", `{"person":{"id":"a\/b"}}`, false, true},
		{"clockings", "7", `{"person":[{"id":8},{"id":7}]}`, false, true},
		{"clockings", "7", `{"approvals":[{"by":{"person":{"id":7}}}]}`, false, true},
		{"clockings", "7", `{"terminal":{"id":7},"x":"person"}`, false, false},
		{"clockings", "null", `{"person":null}`, false, false},
		{"clockings", "true", `{"person":{"id":true}}`, false, false},
		{"clockings", "7", `{"id":1,"person":{"id":7}}`, true, true},
		{"clockings", "7", `{"id":1,"person":{"id":7},"cut`, false, true},
		{"clockings", "7", `{"id":1,"person":{"id":7`, false, true},
		{"clockings", "7", `{"id":7,"pers`, false, false},
		{"clockings", "7", ``, false, false},
		{"clockings", "7", `7`, false, false},
		{"people", "7", `{"id":7}`, false, true},
		{"people", "7", `{"id":7}`, true, false},
		{"people", "7", `{"changeVersion":"A","id":7}`, true, false},
		{"people", "7", `{"id":7,"changeVersion":"A","firstName":"An"}`, true, true},
		{"people", "7", `{"id":8,"contract":{"id":7}}`, false, false},
		{"people", "7", `{"id":8,"manager":{"person":{"id":7}}}`, false, true},
	} {
		p := NewPerson(test.collection, test.id, nil)
		if got := p.NamedBy([]byte(test.data), test.deleted); got != test.want {
			t.Errorf("%s, deleted %v: person %s is named by %s: %v", test.collection, test.deleted, test.id, test.data, got)
		}
	}
	aside := keepAside(protime.Change{Data: []byte(`{"id":7}`)}, "no changeVersion", OriginDelta, 100)
	if p := NewPerson("people", "7", nil); !p.in(&aside) {
		t.Error("a person who could not be read is not found")
	}
	private := newPrivacy(t, nil, []string{"person.id"}, hashKey)
	for _, id := range []string{`7`, `"7"`} {
		data := fmt.Sprintf(`{"person":{"id":%s}}`, private.digest(nil, []byte(id)))
		if p := NewPerson("clockings", "7", private); !p.NamedBy([]byte(data), false) {
			t.Errorf("person 7 is not named by the hash of %s", id)
		}
		if p := NewPerson("clockings", "8", private); p.NamedBy([]byte(data), false) {
			t.Errorf("person 8 is named by the hash of %s", id)
		}
	}
}

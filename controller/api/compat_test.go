package api

import (
	"encoding/json"
	"reflect"
	"testing"
)

// Programs that read the names of schema 1 go on working for one release.
func TestOutcomesHaveTheirOldNameForOneRelease(t *testing.T) {
	want := map[string]uint64{"redirect": 7, "pass_host": 1}
	b, err := json.Marshal(Stats{Schema: Schema, Outcomes: want})
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Schema             int
		Outcomes, Verdicts map[string]uint64
	}
	if err := json.Unmarshal(b, &doc); err != nil || doc.Schema != 2 || !reflect.DeepEqual(doc.Outcomes, want) || !reflect.DeepEqual(doc.Verdicts, want) {
		t.Errorf("%s: %+v, %v", b, doc, err)
	}
	for _, in := range []string{string(b), `{"schema":1,"verdicts":{"redirect":7,"pass_host":1}}`} {
		var s Stats
		if err := json.Unmarshal([]byte(in), &s); err != nil || !reflect.DeepEqual(s.Outcomes, want) {
			t.Errorf("%s: read as %+v, %v", in, s, err)
		}
	}
}

// A flow's verdicts are the parser's, and keep their name.
func TestFlowsHaveVerdicts(t *testing.T) {
	b, err := json.Marshal(Flow{Verdicts: map[string]uint64{"ok": 1}})
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(b, &doc); err != nil || !reflect.DeepEqual(doc["verdicts"], map[string]any{"ok": 1.0}) || doc["outcomes"] != nil {
		t.Errorf("%s, %v", b, err)
	}
}

package api

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// What a remedy tells to type, a shell reads as the name.
func TestANameIsTypedAsAShellReadsIt(t *testing.T) {
	for _, name := range []string{"web1", "web 1", "a(b)+c", "it's", "~x", "a;b", "$(x)", "#", "[a]", "-", ""} {
		out, err := exec.Command("sh", "-c", "printf '<%s>' "+ShellWord(name)).Output()
		if err != nil || string(out) != "<"+name+">" {
			t.Errorf("%q: %s: %q, %v", name, ShellWord(name), out, err)
		}
	}
	if ShellWord("web1.example-2") != "web1.example-2" {
		t.Error("quotes where none are needed")
	}
}

func TestWhatIsWrongWithADocumentIsSaidWithoutGo(t *testing.T) {
	for text, want := range map[string]string{
		"": "it is empty", `{"vm":`: "it is cut short", `{"vm":7}`: "vm cannot be a number", `{"patch":{"hold_ns":"x"}}`: "patch.hold_ns cannot be a string",
		`{"colour":1}`: `unknown field "colour"`, "hello": "it is no JSON at byte 1", "[]": "the document cannot be an array",
	} {
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		var v PolicyRequest
		err := JSONError(d.Decode(&v))
		if err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	if other := errors.New("x"); JSONError(other) != other || JSONError(nil) != nil {
		t.Error("what is no error of a document is changed")
	}
}

func TestAMergedPatchHasWhatEachSays(t *testing.T) {
	on, off, n, hold := true, false, 8, int64(7)
	got := PolicyPatch{Coalesce: &off, HoldNS: &hold}.Merge(PolicyPatch{Coalesce: &on, MaxSegments: &n})
	if *got.Coalesce || *got.HoldNS != 7 || *got.MaxSegments != 8 || got.IPv4 != nil {
		t.Errorf("%+v", got)
	}
}

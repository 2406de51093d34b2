package api

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The table of docs/architecture.md lists every code with its HTTP status.
func TestEveryCodeIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		found := false
		for line := range strings.Lines(string(b)) {
			found = found || strings.Contains(line, fmt.Sprintf("`%s`", k.code)) && strings.Contains(line, fmt.Sprintf("| %d |", k.status))
		}
		if !found {
			t.Errorf("no row for %s (%d)", k.code, k.status)
		}
	}
}

package doctor

import (
	"fmt"
	"slices"

	"github.com/rscctl/rscctl/controller/state"
)

// Severity says how much a finding matters.
type Severity string

// The severities, the gravest first.
const (
	Error   Severity = "error"   // rscctl does not work
	Warning Severity = "warning" // it works, and something is lost: frames, speed, counters
	Note    Severity = "note"    // good to know, or could not be looked at
	OK      Severity = "ok"      // looked at, and as it should be
)

var severities = []Severity{Error, Warning, Note, OK}

// Host is the subject of findings that concern no interface.
const Host = "host"

// Finding is the result of one check. IDs are part of the contract: they are added, never changed.
type Finding struct {
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"` // an interface, or Host
	What     string   `json:"what"`
	Why      string   `json:"why"`     // why it matters; "" for what is well
	Remedy   string   `json:"remedy"`  // a command, or what to do; "" when nothing need be done
	Fixable  bool     `json:"fixable"` // Fix mends it

	change *state.Change // what Fix does: switch an offload, or
	tap    int           // remove what was left on the tap of this index
}

// String is the finding in one line, without its remedy.
func (f Finding) String() string {
	s := fmt.Sprintf("%s: %s", f.Subject, f.What)
	if f.Why != "" {
		s += ": " + f.Why
	}
	return s
}

// Report is what is printed as JSON.
type Report struct {
	Schema   int       `json:"schema"`
	Findings []Finding `json:"findings"`         // the gravest first
	Fixed    []string  `json:"fixed,omitempty"`  // what Fix did, in words; Findings are of afterwards
	Undone   []string  `json:"undone,omitempty"` // what Undo did, in words
}

// sorted puts the gravest first, otherwise in the order of the checks.
func sorted(list []Finding) []Finding {
	slices.SortStableFunc(list, func(a, b Finding) int {
		return slices.Index(severities, a.Severity) - slices.Index(severities, b.Severity)
	})
	return list
}

// Count tells how many findings have a severity.
func Count(list []Finding, s Severity) (n int) {
	for _, f := range list {
		if f.Severity == s {
			n++
		}
	}
	return n
}

func ok(id, subject, format string, args ...any) Finding {
	return Finding{ID: id, Severity: OK, Subject: subject, What: fmt.Sprintf(format, args...)}
}

// unseen says of a check that it could not be made.
func unseen(id, subject, what, why string) Finding {
	return Finding{ID: id, Severity: Note, Subject: subject, What: what + " not looked at", Why: why, Remedy: asRoot}
}

const asRoot = "run it as root: sudo rscctl doctor"

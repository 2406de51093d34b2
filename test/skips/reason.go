package main

import (
	"regexp"
	"strings"
)

// logEntry is where the testing package begins an entry of a test's log: file, line, text. A program's own output without a
// newline at its end may stand before it.
var logEntry = regexp.MustCompile(`[\w.-]+\.go:\d+: (.*)$`)

// continued is how the testing package begins the further lines of an entry.
const continued = "        "

// reason is what a test said when it skipped: its last entry that begins as a skip of this module does, or else its last. A test
// logs before it skips, and its cleanups log after.
func reason(output string) string {
	var last, skip string
	var open *string
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, "\n")
		m := logEntry.FindStringSubmatch(line)
		switch {
		case m != nil && (strings.HasPrefix(m[1], "allowed:") || strings.HasPrefix(m[1], "needs ")):
			skip, open = m[1], &skip
		case m != nil:
			last, open = m[1], &last
		case open != nil && strings.HasPrefix(line, continued):
			*open += " " + strings.TrimSpace(line)
		default:
			open = nil
		}
	}
	switch {
	case skip != "":
		return skip
	case last != "":
		return last
	}
	return "no reason given"
}

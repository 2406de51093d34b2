// Package near finds what was meant by a word that nobody knows: a verb, a flag, a VM, an interface.
package near

import (
	"slices"
	"strings"

	"github.com/xrash/smetrics"
)

// least is how like a known word must be, between 0 and 1, to be named. At 0.8 it forgives a letter that is wrong, missing, added or
// swapped in a word of three and more.
const least = 0.8

// Word is the known word that is most like word, the first in alphabetical order of equals, or "" when none is like it.
func Word(word string, known []string) (best string) {
	known = slices.Sorted(slices.Values(known))
	most := least
	for _, k := range known {
		like := smetrics.JaroWinkler(strings.ToLower(word), strings.ToLower(k), 0.7, 4)
		if like > most {
			best, most = k, like
		}
	}
	return best
}

// Hint is "did you mean WORD? ", to stand before the remedy of an error, or "".
func Hint(word string, known []string) string {
	if w := Word(word, known); w != "" {
		return "did you mean " + w + "? "
	}
	return ""
}

package api

import (
	"slices"
	"strconv"
	"strings"
)

// ShellWord is a name as it has to be typed: in quotes when a shell would read it otherwise.
func ShellWord(name string) string {
	plain := name != "" && strings.IndexFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.:@,=+-/", r))
	}) < 0
	if plain {
		return name
	}
	return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
}

// QueuesText is a list of queues as the command line takes it: sorted, between commas.
func QueuesText(queues []uint16) string {
	words := make([]string, len(queues))
	for i, q := range slices.Sorted(slices.Values(queues)) {
		words[i] = strconv.Itoa(int(q))
	}
	return strings.Join(words, ",")
}

package survey

import (
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Scrubber takes out of a text what tells whose machine it is of. It rather takes too much.
type Scrubber struct {
	names []alias // the longest first
}

type alias struct{ name, word string }

// NewScrubber knows names by the words that take their place, whatever their case. A name without letters tells nothing and stays, and
// so does one that thousands of machines have.
func NewScrubber(words map[string]string) *Scrubber {
	s := &Scrubber{}
	for name, word := range words {
		name = strings.TrimSpace(name)
		if strings.ContainsFunc(name, unicode.IsLetter) && !slices.Contains(everybodys, strings.ToLower(name)) {
			s.names = append(s.names, alias{name, word})
		}
	}
	slices.SortFunc(s.names, func(a, b alias) int { return len(b.name) - len(a.name) })
	return s
}

// everybodys are names of users, hosts and interfaces that tell nobody from anybody.
var everybodys = []string{"root", "localhost", "lo", "host", "linux", "debian", "ubuntu", "fedora", "centos", "arch", "proxmox", "pve", "kvm", "qemu", "libvirt", "vm", "guest", "server"}

// Forms of what is taken out wherever it stands.
var (
	uuidForm = regexp.MustCompile(`(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}`)
	// Of MAC and IPv6 addresses; a time of the day has fewer colons.
	colonForm = regexp.MustCompile(`(?i)[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*`)
	macForm   = regexp.MustCompile(`(?i)[0-9a-f]{1,2}(?:-[0-9a-f]{1,2}){5,}|[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}`)
	// An address without separators, as in enx525400123456; the hash in a Go module's version has a date in front.
	hexForm  = regexp.MustCompile(`(?i)(?:\b[0-9]{14}-)?[0-9a-f]{12,}`)
	ipv4Form = regexp.MustCompile(`[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+`)
	pathForm = regexp.MustCompile("(^|[^\\w/.~-])((?:~[\\w.-]*)?/[^\\s\"'`,;|)]+)")
	// systems are the folders whose paths are the same everywhere.
	systems = regexp.MustCompile(`^/(sys|proc|dev|usr|boot|etc|lib|bin|sbin|var/lib/rscctl|run/rscctl|run/netns)(/|$)`)
)

const (
	fewColons  = 3            // and fewer are a time's
	moduleHash = 14 + 1 + 12  // date, dash, hash
	address    = "ADDRESS"    // what stands for one
	someID     = "IDENTIFIER" // for a UUID, or another number that long
)

// Text is a text without names of this machine, addresses, UUIDs and paths of its users.
func (s *Scrubber) Text(text string) string {
	text = uuidForm.ReplaceAllString(s.known(text), someID)
	text = colonForm.ReplaceAllStringFunc(text, func(m string) string {
		short := strings.Contains(m, "::") && strings.Trim(m, ":.") != ""
		if !short && strings.Count(m, ":") <= fewColons {
			return m
		}
		return address
	})
	text = macForm.ReplaceAllString(text, address)
	text = hexForm.ReplaceAllStringFunc(text, func(m string) string {
		if len(m) == moduleHash && m[14] == '-' {
			return m
		}
		return someID
	})
	text = ipv4Form.ReplaceAllString(text, address)
	return pathForm.ReplaceAllStringFunc(text, func(m string) string {
		at := strings.IndexAny(m, "~/")
		if systems.MatchString(m[at:]) {
			return m
		}
		return m[:at] + "PATH"
	})
}

// known replaces names where they stand as words: no letter or digit is beside them.
func (s *Scrubber) known(text string) string {
	var b strings.Builder
next:
	for at := 0; at < len(text); {
		for _, a := range s.names {
			to := at + len(a.name)
			if to <= len(text) && !joined(text, at) && !joined(text, to) && strings.EqualFold(text[at:to], a.name) {
				b.WriteString(a.word)
				at = to
				continue next
			}
		}
		b.WriteByte(text[at])
		at++
	}
	return b.String()
}

// joined tells whether a word goes on over a place in a text.
func joined(text string, at int) bool {
	letter := func(c byte) bool {
		return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
	}
	return at > 0 && at < len(text) && letter(text[at-1]) && letter(text[at])
}

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
	// Of MAC and IPv6 addresses, and of half of one; a time of the day and a PCI address have fewer colons.
	colonForm = regexp.MustCompile(`(?i)[0-9a-f:.]*:[0-9a-f:.]*:[0-9a-f:.]*`)
	// Of mail, of a login, of an instance of a unit.
	atForm = regexp.MustCompile(`[\w.+-]+@[\w-][\w.-]*`)
	// Of hosts: what ends as the names of networks do. Countries whose letters are a file's are left out: so, sh, md, rs, py.
	hostForm = regexp.MustCompile(`(?i)\b(?:[a-z0-9_-]+\.)+(?:com|net|org|edu|gov|mil|int|info|biz|io|dev|app|cloud|tech|online|site|xyz|arpa|local|lan|home|internal|intranet|corp|private|localdomain|example|test|invalid|eu|us|uk|de|fr|nl|be|at|ch|it|es|pt|pl|cz|sk|se|no|fi|dk|ie|ru|ua|cn|jp|kr|tw|in|au|nz|ca|br|mx|ar|cl|za|tr|il|ir|gr|hu|ro|bg|hr|si|lt|lv|ee|lu|li|is|me|tv|ai|co|cc)\b`)
	macForm  = regexp.MustCompile(`(?i)[0-9a-f]{1,2}(?:-[0-9a-f]{1,2}){5,}|[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}`)
	// An address without separators, as in enx525400123456; the hash in a Go module's version has a date in front.
	hexForm  = regexp.MustCompile(`(?i)(?:\b[0-9]{14}-)?[0-9a-f]{12,}`)
	ipv4Form = regexp.MustCompile(`[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+`)
	pathForm = regexp.MustCompile("(^|[^\\w/.~])((?:~[\\w.-]*)?/[^\\s\"'`,;|)]+)")
	// systems are the paths that are the same everywhere, each to its end: below a folder of the system there can be anybody's names.
	systems = regexp.MustCompile(`^/(?:sys|proc|dev|usr|boot|etc|lib|bin|sbin|run|tmp` +
		`|dev/(?:kvm|vhost-net|net|net/tun|null|zero|shm|hugepages|vfio|vfio/vfio)` +
		`|proc/(?:stat|modules|cpuinfo|meminfo|config\.gz|version|version_signature|net|sys|net/snmp6?|sys/(?:net/(?:core|bridge)|kernel|vm)(?:/[a-z0-9_-]+)?|(?:self|thread-self|[0-9]+)/(?:cmdline|ns/[a-z]+|net/[a-z0-9_]+))` +
		`|sys/(?:fs|fs/bpf|fs/bpf/rscctl(?:/flows)?|kernel/btf(?:/vmlinux)?|class/net(?:/(?:nic|if)[0-9]+(?:-peer)?(?:/(?:queues|device|speed|mtu|operstate))?)?)` +
		`|usr/(?:s?bin|lib|libexec)(?:/(?:rscctl|qemu-kvm|qemu-system-[a-z0-9_]+|libvirtd|virtqemud|virsh|ethtool|bpftool|ip))?` +
		`|etc/(?:os-release|rscctl|default/rscctl|libvirt|libvirt/qemu\.conf)|lib/modules|var/lib/rscctl|run/(?:rscctl|rscctl/rscctl\.sock|netns|libvirt))/?$`)
)

const (
	fewColons  = 2            // between digits, and fewer, are a time's
	moduleHash = 14 + 1 + 12  // date, dash, hash
	address    = "ADDRESS"    // what stands for one
	someID     = "IDENTIFIER" // for a UUID, or another number that long
)

// Text is a text without names of this machine, addresses, UUIDs and paths of its users.
func (s *Scrubber) Text(text string) string {
	text = uuidForm.ReplaceAllString(s.known(text), someID)
	text = atForm.ReplaceAllString(text, address)
	text = hostForm.ReplaceAllString(text, "HOST")
	text = colonForm.ReplaceAllStringFunc(text, func(m string) string {
		short := strings.Contains(m, "::") && strings.Trim(m, ":.") != ""
		if !short && strings.Count(strings.Trim(m, ":."), ":") <= fewColons {
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
		if systems.MatchString(strings.TrimRight(m[at:], ".:")) {
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

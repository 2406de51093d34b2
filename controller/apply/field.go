package apply

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/rscctl/rscctl/controller/near"
)

// fields are what can be said of a VM beside which one it is and the way to it: where it stands, and whether it is text whatever it looks
// like.
var fields = []struct {
	name         string
	policy, text bool
}{
	{name: "name", text: true}, {name: "iface", text: true}, {name: "mac", text: true}, {name: "vlan"}, {name: "mtu"},
	{name: "socket-owner", text: true}, {name: "socket-mode", text: true}, {name: "bypass-filters"}, {name: "trust-tap"}, {name: "allow-spoof"},
	{name: "isolate"}, {name: "any-memory"}, {name: "fix-offloads"},
	{name: "coalesce", policy: true}, {name: "ipv4", policy: true}, {name: "ipv6", policy: true}, {name: "udp", policy: true}, {name: "profile", policy: true},
	{name: "hold", policy: true}, {name: "max-bytes", policy: true}, {name: "max-segments", policy: true}, {name: "exclude-ports", policy: true},
	{name: "host", policy: true}, {name: "rate-tx", policy: true, text: true}, {name: "rate-rx", policy: true, text: true}, {name: "macs"}, {name: "ips"},
	{name: "xsk-map", text: true}, {name: "queue"},
}

// Set sets one field from text, as an attribute of some other file has it: the names are those of this one, without the way to the VM; those
// of the policy need no "policy" in front, and ports stand between blanks or commas. Errors: ErrFile.
func (v *VM) Set(name, value string) error {
	var names []string
	for _, f := range fields {
		if f.name != name {
			names = append(names, f.name)
			continue
		}
		node := &yaml.Node{Kind: yaml.ScalarNode, Value: value}
		if f.text {
			node.Tag = "!!str"
		}
		if name == "exclude-ports" || name == "ips" || name == "macs" || name == "queue" {
			node = list(value)
		}
		var into any = v
		if f.policy {
			into = &v.Policy
		}
		one := yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Value: name}, node}}
		if value == "" || one.Decode(into) != nil {
			return fmt.Errorf("%w: %s=%q is no value of that kind: see 'rscctl attach --help'", ErrFile, name, value)
		}
		return nil
	}
	slices.Sort(names)
	return fmt.Errorf("%w: no field is called %s: %suse %s", ErrFile, name, near.Hint(name, names), strings.Join(names, ", "))
}

func list(value string) *yaml.Node {
	out := &yaml.Node{Kind: yaml.SequenceNode}
	for _, word := range strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == ',' }) {
		if word != "none" {
			out.Content = append(out.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: word})
		}
	}
	return out
}

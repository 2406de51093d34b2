package apply

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/rscctl/rscctl/controller/near"
)

// What the yaml package says of a value or a name that does not fit, by line.
var (
	wrongName  = regexp.MustCompile(`^(line \d+): field (.*) not found in type apply\.(\w+)$`)
	wrongValue = regexp.MustCompile("(?s)^(line \\d+): cannot unmarshal !!(\\w+) (?:`(.*)` )?into (.+)$")
)

// wanted is what a value of a Go type has to be.
var wanted = map[string]string{
	"int": "a whole number", "bool": "on or off", "string": "a text", "uint16": "a TCP port, 1 to 65535", "[]uint16": "a list of TCP ports, such as [22, 443]",
	"api.Profile": "a profile, gro or rsc", "apply.Policy": "a policy, such as {hold: 20us}", "apply.VM": "a VM, such as {name: web1, iface: eth1}",
	"[]apply.VM": "a list of VMs", "apply.File": "a description, which begins with 'version: 1'",
}

// namesIn are the names that a type of the file has.
var namesIn = map[string][]string{"File": namesOf(File{}), "VM": namesOf(VM{}), "Policy": namesOf(Policy{})}

func namesOf(v any) (names []string) {
	t := reflect.TypeOf(v)
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name != "" { // one that is in no file has none
			names = append(names, name)
		}
	}
	return names
}

// readable says what is wrong with a file in the words of the file, not of the program that reads it: the first fault, and how many
// more there are.
func readable(err error) error {
	var all *yaml.TypeError
	if !errors.As(err, &all) || len(all.Errors) == 0 {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	first := all.Errors[0]
	if m := wrongName.FindStringSubmatch(first); m != nil {
		first = fmt.Sprintf("%s: %s: no such name: %ssay one of %s", m[1], shown(m[2]), near.Hint(m[2], namesIn[m[3]]), strings.Join(namesIn[m[3]], ", "))
	} else if m := wrongValue.FindStringSubmatch(first); m != nil && wanted[m[4]] != "" {
		what := shown(m[3])
		if m[3] == "" {
			what = map[string]string{"seq": "a list", "map": "names with values"}[m[2]]
		}
		first = fmt.Sprintf("%s: %s: wrong value: say %s", m[1], what, wanted[m[4]])
	}
	if more := len(all.Errors) - 1; more > 0 {
		first += fmt.Sprintf(" (and %d more)", more)
	}
	return errors.New(first)
}

// shown is a word of the file in a message: quoted where it would not be seen, or would break the line.
func shown(word string) string {
	if word == "" || strings.ContainsFunc(word, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Sprintf("%q", word)
	}
	return word
}

package main

import (
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"
)

// verb is one command as documents and completion show it.
type verb struct {
	path        string // "policy set"; "" is the program itself
	usage       string // one line
	synopsis    string // the command line in full
	description string
	flags       []flagDoc
	subs        []string // names of what may follow
	operand     operand  // what a word behind it is
}

// flagDoc is a flag. value is the placeholder of its value, "" where it takes none.
type flagDoc struct {
	names    []string // the long one first
	value    string
	usage    string
	fallback string // what holds where it is not given, in words; "" when that is nothing
	env      []string
	choices  []string // the values there are, nil when there are more
	operand  operand  // what the value is otherwise
}

// operand is what a shell can complete.
type operand int

const (
	anything operand = iota
	aFile
	anInterface
	aVM
)

// choices are the values of flags whose placeholder does not show them.
var choices = map[string][]string{
	"output": {"table", "json"}, "profile": {"gro", "rsc"}, "log-level": {"debug", "info", "warn", "error"}, "log-format": {"text", "json"},
}

var placeholder = regexp.MustCompile("`([^`]+)`")

// verbs lists the program and its verbs, each before what may follow it. Hidden ones, and hidden flags, are left out.
func verbs(app *cli.App) []verb {
	root := verb{usage: app.Usage, synopsis: "rscctl VERB [WORD...] [FLAG...]", description: app.Description}
	var rest []verb
	var walk func(parent string, list []*cli.Command, to *verb)
	walk = func(parent string, list []*cli.Command, to *verb) {
		for _, c := range list {
			if c.Hidden || c.Name == "help" {
				continue
			}
			to.subs = append(to.subs, c.Name)
			v := verb{path: strings.TrimSpace(parent + " " + c.Name), usage: c.Usage, synopsis: c.UsageText, description: c.Description}
			for _, f := range c.Flags {
				seen, _ := f.(cli.VisibleFlag)
				if d, ok := f.(cli.DocGenerationFlag); ok && f.Names()[0] != "help" && (seen == nil || seen.IsVisible()) {
					v.flags = append(v.flags, describe(f, d))
				}
			}
			if v.synopsis == "" {
				v.synopsis = "rscctl " + v.path
				if len(v.flags) > 0 {
					v.synopsis += " [FLAG...]"
				}
			}
			v.operand = operandOf(strings.Fields(strings.TrimPrefix(v.synopsis, "rscctl "+v.path) + " -")[0])
			rest = append(rest, v)
			at := len(rest) - 1
			walk(v.path, c.Subcommands, &v)
			rest[at].subs = v.subs
		}
	}
	walk("", app.Commands, &root)
	return append([]verb{root}, rest...)
}

func describe(f cli.Flag, d cli.DocGenerationFlag) flagDoc {
	out := flagDoc{names: f.Names(), usage: strings.ReplaceAll(d.GetUsage(), "`", ""), env: d.GetEnvVars()}
	if !d.TakesValue() {
		return out
	}
	out.value = "VALUE"
	if m := placeholder.FindStringSubmatch(d.GetUsage()); m != nil {
		out.value = m[1]
	}
	out.fallback = strings.Trim(d.GetDefaultText(), `"`)
	out.choices, out.operand = choices[out.names[0]], operandOf(out.value)
	if strings.Contains(out.value, "|") {
		out.choices = strings.Split(out.value, "|")
	}
	if out.names[0] == "vm" {
		out.operand = aVM
	}
	return out
}

// operandOf knows what placeholders stand for.
func operandOf(placeholder string) operand {
	switch strings.Trim(placeholder, "[].") {
	case "FILE", "DIR", "PATH", "SOCKET", "IN.pcap", "OUT.pcap":
		return aFile
	case "IFACE", "I", "DEV":
		return anInterface
	case "VM":
		return aVM
	}
	return anything
}

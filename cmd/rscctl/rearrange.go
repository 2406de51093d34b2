package main

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/near"
)

// The cli package hands everything behind the first positional argument to the action unparsed, so `attach eth0 --vm a`
// would lose its flags. rearrange puts a command line into the one order the package understands:
//
//	verb [subverb] --flag=value ... -- positional ...
//
// On the way it finds what the package would let through, or name by words that help nobody: unknown flags by their own name, a
// flag without its value, with an empty one (a variable of a script that is not set) or with one of another type, and a flag given twice.

type parsed struct {
	flags []flagUse
	words []string // positionals, the verb among them
}

type flagUse struct {
	typed string // as it stands on the command line, dashes and all
	name  string
	value string
	given bool // a value was given
	short bool // a value is needed, and the line ends here
}

func rearrange(app *cli.App, args []string) ([]string, error) {
	p := split(args, takesValue(app, args))
	path, flags := []string(nil), []cli.Flag{cli.HelpFlag, cli.VersionFlag}
	level := app.Commands
	asked := len(p.words) > 1 && (p.words[0] == "help" || p.words[0] == "h")
	if asked { // help VERB is VERB --help
		p.words, p.flags = p.words[1:], append(p.flags, flagUse{typed: "--help", name: "help"})
	}
	for len(p.words) > 0 {
		c := find(level, p.words[0])
		if c == nil {
			break
		}
		path, p.words = append(path, c.Name), p.words[1:]
		flags, level = append([]cli.Flag{cli.HelpFlag}, c.Flags...), c.Subcommands
		if len(level) == 0 {
			break
		}
	}
	if len(path) == 0 && len(p.words) > 0 && p.words[0] != "help" && p.words[0] != "h" {
		return nil, usagef("%s: no such verb: %ssee rscctl --help", p.words[0], near.Hint(p.words[0], names(level)))
	}
	if asked && len(path) > 0 && len(p.words) > 0 {
		return nil, usagef("help: %s %s: no such verb: %ssee rscctl --help", strings.Join(path, " "), p.words[0], near.Hint(p.words[0], names(level)))
	}
	line, err := render(p.flags, flags, strings.Join(path, " "))
	if err != nil {
		return nil, err
	}
	line = append(path, line...)
	if slices.Contains(line, "--help") {
		return line, nil // with a word behind it the package would look for a topic of that name
	}
	if len(p.words) > 0 {
		if len(path) > 0 {
			line = append(line, "--")
		}
		line = append(line, p.words...)
	}
	return line, nil
}

// split sorts arguments into flags and words. "--" ends the flags, a lone "-" is a word.
func split(args []string, takes map[string]bool) (p parsed) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			p.words = append(p.words, args[i+1:]...)
			return p
		case len(arg) < 2 || arg[0] != '-':
			p.words = append(p.words, arg)
			continue
		}
		use := flagUse{}
		use.typed, use.value, use.given = strings.Cut(arg, "=")
		use.name = strings.TrimPrefix(use.typed[1:], "-")
		if takes[use.name] && !use.given {
			if i++; i < len(args) {
				use.value, use.given = args[i], true
			} else {
				use.short = true
			}
		}
		if !takes[use.name] && isSwitch(use.name) {
			if !use.given && i+1 < len(args) && onOrOff(args[i+1]) != "" { // --isolate off, as --coalesce off
				i++
				use.value, use.given = args[i], true
			}
			use.value = cmp.Or(onOrOff(use.value), use.value)
		}
		p.flags = append(p.flags, use)
	}
	return p
}

// isSwitch tells of a flag that is on when it stands alone, whether it may be followed by on or off.
func isSwitch(name string) bool { return name == "isolate" }

// onOrOff is a switch's word as a boolean's, "" when it is none.
func onOrOff(word string) string { return map[string]string{"on": "true", "off": "false"}[word] }

// render writes the flags of one verb in a form that cannot be misread.
func render(uses []flagUse, known []cli.Flag, verb string) ([]string, error) {
	var line []string
	seen := map[string]bool{}
	on, help := "", "see rscctl --help"
	if verb != "" {
		on, help = verb+": ", "see rscctl "+verb+" --help"
	}
	for _, u := range uses {
		f := lookup(known, u.name)
		if f == nil {
			return nil, usagef("%s%s: no such flag: %s%s", on, u.typed, flagHint(u.name, known), help)
		}
		if _, isBool := f.(*cli.BoolFlag); u.short || u.given && u.value == "" && !isBool {
			return nil, usagef("%s%s: needs a value: %s", on, u.typed, help)
		}
		name := f.Names()[0]
		if _, repeats := f.(*cli.StringSliceFlag); seen[name] && !repeats {
			return nil, usagef("%s--%s: given twice: give it once", on, name)
		}
		seen[name] = true
		if !u.given {
			line = append(line, "--"+name)
			continue
		}
		if want := mistyped(f, u.value); want != "" {
			between := " "
			if u.value == "" {
				between = "="
			}
			return nil, usagef("%s--%s%s%s: %s, %s", on, name, between, u.value, want, help)
		}
		line = append(line, "--"+name+"="+u.value)
	}
	return line, nil
}

// mistyped says what a flag's value is not and what to say, "" when it is of the flag's type.
func mistyped(f cli.Flag, value string) string {
	var err error
	switch f.(type) {
	case *cli.BoolFlag:
		if _, err = strconv.ParseBool(value); err != nil {
			return "takes no value: give the flag alone"
		}
	case *cli.IntFlag:
		if _, err = strconv.Atoi(value); errors.Is(err, strconv.ErrRange) {
			return "too large a number: give a smaller one"
		} else if err != nil {
			return "not a whole number: give one"
		}
	case *cli.DurationFlag:
		if _, err = time.ParseDuration(value); err != nil {
			return "not a time: say for example 500ms, 2s or 1m"
		}
	}
	return ""
}

func flagHint(name string, known []cli.Flag) string {
	var all []string
	for _, f := range known {
		all = append(all, f.Names()[0])
	}
	if w := near.Word(name, all); w != "" {
		return "did you mean --" + w + "? "
	}
	return ""
}

// names are those that a person may type.
func names(commands []*cli.Command) (out []string) {
	for _, c := range commands {
		if !c.Hidden {
			out = append(out, c.Name)
		}
	}
	return out
}

// takesValue tells which flags need a value: those of the verb in args, wherever it stands, or of every verb when there is
// none. A name can differ between verbs: --ipv6 alone is demo's, --ipv6 on|off a policy's.
func takesValue(app *cli.App, args []string) map[string]bool {
	takes := map[string]bool{}
	var walk func([]*cli.Command)
	walk = func(commands []*cli.Command) {
		for _, c := range commands {
			for _, f := range c.Flags {
				if _, isBool := f.(*cli.BoolFlag); isBool {
					continue
				}
				for _, name := range f.Names() {
					takes[name] = true
				}
			}
			walk(c.Subcommands)
		}
	}
	for _, a := range args {
		if c := find(app.Commands, a); c != nil {
			walk([]*cli.Command{c})
			return takes
		}
	}
	walk(app.Commands)
	return takes
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func lookup(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

package main

import (
	"fmt"
	"io"
	"strings"
)

// What the shells complete by looking at the host: interfaces, and the VMs that the controller has.
const (
	listInterfaces = `command ls /sys/class/net 2>/dev/null`
	listVMs        = `rscctl export 2>/dev/null | sed -n 's/^ *- name: //p'`
)

// long is a flag's long name as it is typed.
func (f *flagDoc) long() string { return dashed(f.names[0]) }

// typed are all names of a flag as they are typed.
func (f *flagDoc) typed() (out []string) {
	for _, n := range f.names {
		out = append(out, dashed(n))
	}
	return out
}

// writeBash writes a completion for bash.
func writeBash(w io.Writer, list []verb) error {
	var b strings.Builder
	b.WriteString(`# bash completion of rscctl, made by 'rscctl completion bash'

_rscctl() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path= word words=
	for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case "${path:+$path }$word" in
`)
	for _, v := range list[1:] {
		fmt.Fprintf(&b, "\t\t'%s') path='%s' ;;\n", v.path, v.path)
	}
	b.WriteString("\t\tesac\n\tdone\n\tcase \"$path $prev\" in\n")
	for _, v := range list {
		for _, f := range v.flags {
			if f.value == "" {
				continue
			}
			var patterns []string
			for _, n := range f.typed() {
				patterns = append(patterns, fmt.Sprintf("'%s %s'", v.path, n))
			}
			fmt.Fprintf(&b, "\t%s) %s; return ;;\n", strings.Join(patterns, " | "), bashWords(f.choices, f.operand))
		}
	}
	b.WriteString("\tesac\n\tcase $path in\n")
	for _, v := range list {
		words := append([]string{}, v.subs...)
		for _, f := range v.flags {
			words = append(words, f.long())
		}
		fmt.Fprintf(&b, "\t'%s') words='%s' ;;\n", v.path, strings.Join(append(words, "--help"), " "))
	}
	b.WriteString("\tesac\n\tif [[ $cur == -* ]]; then\n\t\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n\t\treturn\n\tfi\n\tcase $path in\n")
	for _, v := range list {
		if v.operand != anything && len(v.subs) == 0 {
			fmt.Fprintf(&b, "\t'%s') %s ;;\n", v.path, bashWords(nil, v.operand))
		}
	}
	b.WriteString("\t*) COMPREPLY=($(compgen -W \"$words\" -- \"$cur\")) ;;\n\tesac\n}\ncomplete -F _rscctl rscctl\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func bashWords(choices []string, o operand) string {
	words := strings.Join(choices, " ")
	switch {
	case choices != nil:
	case o == aFile:
		return `COMPREPLY=($(compgen -f -- "$cur")); compopt -o filenames 2>/dev/null`
	case o == anInterface:
		words = "$(" + listInterfaces + ")"
	case o == aVM:
		words = "$(" + listVMs + ")"
	default:
		return "COMPREPLY=()"
	}
	return fmt.Sprintf(`COMPREPLY=($(compgen -W "%s" -- "$cur"))`, words)
}

// writeZsh writes a completion for zsh, where a variable called path is the search path.
func writeZsh(w io.Writer, list []verb) error {
	usage := map[string]string{}
	for _, v := range list {
		usage[v.path] = v.usage
	}
	var b strings.Builder
	fmt.Fprintf(&b, "#compdef rscctl\n# zsh completion of rscctl, made by 'rscctl completion zsh'\n\n")
	fmt.Fprintf(&b, "_rscctl_interfaces() { local -a l=(${(f)\"$(%s)\"}); compadd -a l }\n", listInterfaces)
	fmt.Fprintf(&b, "_rscctl_vms() { local -a l=(${(f)\"$(%s)\"}); compadd -a l }\n", listVMs)
	b.WriteString("_rscctl_verb() { local -a l=(\"$@\"); _describe verb l }\n\n_rscctl() {\n\tlocal at= word\n\tfor word in ${words[2,CURRENT-1]}; do\n\t\tcase \"${at:+$at }$word\" in\n")
	for _, v := range list[1:] {
		fmt.Fprintf(&b, "\t\t'%s') at='%s' ;;\n", v.path, v.path)
	}
	b.WriteString("\t\tesac\n\tdone\n\tcase $at in\n")
	for _, v := range list {
		if len(v.subs) > 0 {
			fmt.Fprintf(&b, "\t'%s') _rscctl_verb", v.path)
			for _, s := range v.subs {
				fmt.Fprintf(&b, " %s", quoted(s+":"+usage[strings.TrimSpace(v.path+" "+s)]))
			}
			b.WriteString(" ;;\n")
			continue
		}
		fmt.Fprintf(&b, "\t'%s') _arguments", v.path)
		for _, f := range v.flags {
			for _, n := range f.typed() {
				spec := n + "[" + zshText(f.usage) + "]"
				if f.value != "" {
					spec += ":" + zshText(f.value) + ":" + zshAction(f.choices, f.operand)
				}
				fmt.Fprintf(&b, " %s", quoted(spec))
			}
		}
		fmt.Fprintf(&b, " '--help[show help]' %s ;;\n", quoted("*:word:"+zshAction(nil, v.operand)))
	}
	b.WriteString("\tesac\n}\n\n_rscctl \"$@\"\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func zshText(s string) string {
	return strings.NewReplacer("[", `\[`, "]", `\]`, ":", `\:`).Replace(s)
}

func zshAction(choices []string, o operand) string {
	switch {
	case choices != nil:
		return "(" + strings.Join(choices, " ") + ")"
	case o == aFile:
		return "_files"
	case o == anInterface:
		return "_rscctl_interfaces"
	case o == aVM:
		return "_rscctl_vms"
	}
	return " "
}

// writeFish writes a completion for fish.
func writeFish(w io.Writer, list []verb) error {
	var b strings.Builder
	b.WriteString("# fish completion of rscctl, made by 'rscctl completion fish'\n\ncomplete -c rscctl -f\ncomplete -c rscctl -l help -d 'show help'\n")
	for _, v := range list[1:] {
		parent, name := "", v.path
		if i := strings.LastIndex(v.path, " "); i >= 0 {
			parent, name = v.path[:i], v.path[i+1:]
		}
		before := "__fish_use_subcommand"
		if parent != "" {
			before = "__fish_seen_subcommand_from " + parent
		}
		fmt.Fprintf(&b, "complete -c rscctl -n %s -a %s -d %s\n", quoted(before), name, quoted(v.usage))
		inside := "__fish_seen_subcommand_from " + strings.ReplaceAll(v.path, " ", "; and __fish_seen_subcommand_from ")
		for _, f := range v.flags {
			fmt.Fprintf(&b, "complete -c rscctl -n %s", quoted(inside))
			for _, n := range f.names {
				if len(n) == 1 {
					fmt.Fprintf(&b, " -s %s", n)
				} else {
					fmt.Fprintf(&b, " -l %s", n)
				}
			}
			if f.value != "" {
				fmt.Fprintf(&b, " -r%s", fishWords(f.choices, f.operand))
			}
			fmt.Fprintf(&b, " -d %s\n", quoted(f.usage))
		}
		if v.operand != anything {
			fmt.Fprintf(&b, "complete -c rscctl -n %s%s\n", quoted(inside), fishWords(nil, v.operand))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func fishWords(choices []string, o operand) string {
	switch {
	case choices != nil:
		return " -a " + quoted(strings.Join(choices, " "))
	case o == aFile:
		return " -F"
	case o == anInterface:
		return " -a " + quoted("("+listInterfaces+")")
	case o == aVM:
		return ` -a "(` + listVMs + `)"`
	}
	return ""
}

// quoted puts a text into single quotes, as all three shells read them.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

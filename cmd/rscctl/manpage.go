package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// writeMan writes rscctl(1) in the man macros (man(7)), from the command tree.
func writeMan(w io.Writer, app *cli.App) error {
	var b strings.Builder
	list := verbs(app)
	root := list[0]
	fmt.Fprintf(&b, ".TH RSCCTL 1 \"\" %q \"rscctl\"\n", roff("rscctl "+app.Version))
	fmt.Fprintf(&b, ".SH NAME\nrscctl \\- %s\n", roff(root.usage))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.nf\n%s\n.fi\n", roff(root.synopsis))
	b.WriteString(".SH DESCRIPTION\n")
	paragraphs(&b, root.description)
	b.WriteString("Flags may stand before or after the other words.\n.SH VERBS\n")
	for _, v := range list[1:] {
		fmt.Fprintf(&b, ".SS %s\n%s.\n.PP\n.nf\n%s\n.fi\n", roff(v.path), roff(strings.ToUpper(v.usage[:1])+v.usage[1:]), roff(v.synopsis))
		paragraphs(&b, v.description)
		for _, f := range v.flags {
			fmt.Fprintf(&b, ".TP\n%s\n%s\n", manFlag(&f), roff(f.said()))
		}
	}
	b.WriteString(".SH ENVIRONMENT\n")
	seen := map[string]bool{}
	for _, v := range list {
		for _, f := range v.flags {
			for _, name := range f.env {
				if !seen[name] {
					seen[name] = true
					fmt.Fprintf(&b, ".TP\n.B %s\nThe value of \\-\\-%s where that is not given.\n", roff(name), roff(f.names[0]))
				}
			}
		}
	}
	b.WriteString(`.SH FILES
.TP
.I /etc/rscctl/rscctl.yaml
The VMs that the service brings in at its start and at 'systemctl reload rscctl'; the form is that of 'rscctl export'.
.TP
.I /run/rscctl
The control socket, and the place for VMs' sockets.
.TP
.I /var/lib/rscctl
What survives a restart.
.TP
.I /usr/share/rscctl
Alert rules for Prometheus, a dashboard for Grafana.
.TP
.I /usr/share/doc/rscctl
Documents, and examples of drop-ins for the service.
.SH SEE ALSO
.BR ip (8),
.BR ethtool (8),
.BR virsh (1),
.BR systemctl (1)
`)
	_, err := io.WriteString(w, b.String())
	return err
}

// paragraphs writes text with what is indented in it as it stands.
func paragraphs(b *strings.Builder, text string) {
	if text == "" {
		return
	}
	b.WriteString(".PP\n")
	literal := false
	for line := range strings.Lines(strings.TrimSpace(text)) {
		line = strings.TrimRight(line, "\n")
		if indented := strings.HasPrefix(line, " "); indented != literal {
			literal = indented
			if literal {
				b.WriteString(".PP\n.nf\n")
			} else {
				b.WriteString(".fi\n")
			}
		}
		if line == "" {
			b.WriteString(".PP\n")
			continue
		}
		b.WriteString(roff(line) + "\n")
	}
	if literal {
		b.WriteString(".fi\n")
	}
	b.WriteString(".PP\n")
}

// manFlag is the tag of a flag's paragraph.
func manFlag(f *flagDoc) string {
	var names []string
	for _, n := range f.names {
		names = append(names, `\fB`+roff(dashed(n))+`\fR`)
	}
	tag := strings.Join(names, ", ")
	if f.value != "" {
		tag += ` \fI` + roff(f.value) + `\fR`
	}
	return tag
}

// said is a flag's help with what holds where it is not given.
func (f *flagDoc) said() string {
	text := strings.ToUpper(f.usage[:1]) + f.usage[1:]
	if f.fallback != "" && !strings.Contains(f.usage, "(required)") {
		text += " (default: " + f.fallback + ")"
	}
	return text + "."
}

// dashed is a flag as it is typed.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// roff escapes what the formatter would take for its own: a dash, which would become a hyphen, the backslash, and dots and quotes that
// begin a line.
func roff(s string) string {
	lines := strings.Split(strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// manCommand prints the page, for who packages it.
func manCommand(s streams) *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page", Hidden: true,
		Action: func(c *cli.Context) error {
			if _, err := positionals(c, 0, 0, ""); err != nil {
				return err
			}
			return writeMan(s.out, c.App)
		},
	}
}

// completionCommand prints what makes a shell complete rscctl's words.
func completionCommand(s streams) *cli.Command {
	shells := map[string]func(io.Writer, []verb) error{"bash": writeBash, "zsh": writeZsh, "fish": writeFish}
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the completion of a shell",
		UsageText: "rscctl completion bash|zsh|fish",
		Description: `The package installs it. By hand, for example:
   rscctl completion bash > /etc/bash_completion.d/rscctl`,
		Action: func(c *cli.Context) error {
			words, err := positionals(c, 1, 1, "bash|zsh|fish")
			if err != nil {
				return err
			}
			write := shells[words[0]]
			if write == nil {
				return usagef("completion: %s: no such shell: say bash, zsh or fish", words[0])
			}
			return write(s.out, slices.Clip(verbs(c.App)))
		},
	}
}

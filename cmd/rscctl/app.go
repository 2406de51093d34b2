package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

// Exit codes of every verb.
const (
	exitDone         = 0
	exitFailed       = 1
	exitUsage        = 2
	exitNoController = 3
)

// streams is where a command reads and writes. Tests give it buffers.
type streams struct {
	in  io.Reader
	out io.Writer
	err io.Writer
}

// usageError is a command line that cannot be right. It ends in exit code 2.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// execute runs one command line (without the program's name) and returns the exit code. It writes at most one line about
// an error, to s.err.
func execute(ctx context.Context, args []string, s streams) int {
	help := &helpWriter{to: s.out}
	app := newApp(s)
	app.Writer = help
	line, err := rearrange(app, args)
	if err == nil {
		if err = app.RunContext(ctx, append([]string{app.Name}, line...)); err == nil && help.err != nil {
			err = fmt.Errorf("help: %w", help.err)
		}
	}
	if err == nil {
		return exitDone
	}
	if child := (*exitError)(nil); errors.As(err, &child) {
		return child.code // it has said why
	}
	if to := (*os.PathError)(nil); errors.As(err, &to) && to.Path == os.Stdout.Name() {
		err = fmt.Errorf("%w: make room there, or have it written elsewhere", err)
	}
	fmt.Fprintf(s.err, "rscctl: %s\n", oneLine(err.Error()))
	return exitCode(err)
}

func exitCode(err error) int {
	var usage *usageError
	switch {
	case errors.Is(err, api.ErrNoController):
		return exitNoController
	case errors.As(err, &usage), errors.Is(err, api.ErrUsage):
		return exitUsage
	}
	return exitFailed
}

// oneLine keeps the promise of one line per error, whatever a library or a name has put into it: what moves a terminal's cursor or
// colours it is written as Go writes it, and of a word without end the beginning is kept.
func oneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	var b strings.Builder
	word := 0
	for _, r := range text {
		if word++; unicode.IsSpace(r) {
			word = 0
		}
		switch {
		case word == longestWord:
			b.WriteString("...")
		case word > longestWord:
		case r == '\t':
			b.WriteByte(' ')
		case !unicode.IsPrint(r):
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// longestWord is longer than any path or name that this program takes.
const longestWord = 300

// helpWriter is a writer whose first error is kept: the package that prints the help throws it away.
type helpWriter struct {
	to  io.Writer
	err error
}

func (w *helpWriter) Write(b []byte) (int, error) {
	n, err := w.to.Write(b)
	w.err = cmp.Or(w.err, err)
	return n, err
}

func newApp(s streams) *cli.App {
	app := &cli.App{
		Name:      "rscctl",
		Usage:     "eBPF-assisted receive coalescing for KVM guests",
		UsageText: `rscctl VERB [flags]   (flags may stand anywhere; 'rscctl help VERB' lists them)`,
		Version:   version(),
		Description: `The controller ('rscctl run') merges consecutive TCP segments of a flow into one large frame and puts it into
a VM's virtio-net receive queue. Every other verb talks to it over its control socket; observe, doctor, report,
purge, replay and demo need no controller. 'rscctl observe' tells whether this host needs it at all.

A first session, as root:
   rscctl run &
   rscctl attach eth0 --vm web --mac 52:54:00:12:34:56 --vhost-user /run/rscctl/web.sock
   rscctl status
   rscctl stats --vm web
   rscctl policy set web --coalesce off
   rscctl detach eth0 --vm web

Lists take -o json, or --json. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no controller reachable.`,
		Writer:         s.out,
		ErrWriter:      s.err,
		Reader:         s.in,
		ExitErrHandler: func(*cli.Context, error) {}, // execute decides
		OnUsageError:   onUsageError,
		Action:         noVerb,
		Commands: []*cli.Command{
			runCommand(s), attachCommand(s), detachCommand(s), statusCommand(s), flowsCommand(s), policyCommand(s),
			statsCommand(s), whyCommand(s), topCommand(s), traceCommand(s), captureCommand(s), observeCommand(s), doctorCommand(s), reportCommand(s), applyCommand(s), exportCommand(s), hookCommand(s), purgeCommand(s), replayCommand(s), demoCommand(s), versionCommand(s), completionCommand(s), manCommand(s), demoChildCommand(),
		},
	}
	for _, c := range app.Commands {
		finish(c, app.Name+" "+c.Name)
	}
	return app
}

// finish sets what all verbs have in common. path is how the verb is typed.
func finish(c *cli.Command, path string) {
	c.HideHelpCommand = true // 'rscctl help VERB' and 'rscctl VERB --help' are enough
	c.OnUsageError = onUsageError
	if lookup(c.Flags, "output") != nil && lookup(c.Flags, "json") == nil {
		c.Flags = append(slices.Clip(c.Flags), boolFlag("json", "the same as -o json"))
	}
	if c.UsageText == "" {
		c.UsageText = strings.TrimSuffix(path+" "+c.ArgsUsage, " ")
		if len(c.Flags) > 0 {
			c.UsageText += " [flags]"
		}
	}
	if act := c.Action; act != nil {
		verb := strings.TrimPrefix(path, "rscctl ")
		c.Action = func(c *cli.Context) error { return on(verb, act(c)) }
	}
	for _, sub := range c.Subcommands {
		finish(sub, path+" "+sub.Name)
	}
}

func onUsageError(_ *cli.Context, err error, _ bool) error {
	return usagef("%v: see rscctl --help", err)
}

func noVerb(c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef("%s: no such verb: see rscctl --help", c.Args().First())
	}
	return usagef("no verb given: see rscctl --help")
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/top"
)

func topCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:  "top",
		Usage: "show live what each VM and each queue does",
		Description: `Of each VM: bits and packets a second, segments a frame, how long frames wait for their next segment, what is lost, the reason that
most frames left for, and the rate so far. Of each queue: the processor time of its worker, frames and losses. A ! in front of
a row says that something is wrong with it, an x that it does not work.

Keys: q ends, s orders by the next figure, r reverses, / filters by a part of a name, p pauses, tab goes to the other table,
enter shows all of one VM, arrows move.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "sort", Usage: "order by `KEY`: " + listed(top.Keys), Value: string(top.Keys[0])},
			&cli.StringFlag{Name: "filter", Usage: "show only what has `TEXT` in its name or its interface's", DefaultText: "everything"},
			intervalFlag("looks"), socketFlag(),
		},
		Action: func(c *cli.Context) error { return runTop(c, s) },
	}
}

const (
	answerWithin = 3 * time.Second // a look that takes longer is a controller that is gone
	framesPerSec = 20              // drawn at most: enough for keys, and a slow line
)

func runTop(c *cli.Context, s streams) error {
	if _, err := positionals(c, 0, 0, ""); err != nil {
		return err
	}
	key := top.Key(c.String("sort"))
	if !slices.Contains(top.Keys, key) {
		return usagef("top: --sort %s: no such key: say one of %s", key, listed(top.Keys))
	}
	interval, err := watchInterval(c)
	if err != nil {
		return err
	}
	if !isTerminal(s.out) || dumb() {
		return usagef("top: standard output is no terminal that it can draw on: use 'rscctl status --watch' or 'rscctl stats --watch'")
	}
	m := &topScreen{
		ctx: c.Context, client: client(c), interval: interval, colours: colours(s.out),
		model: top.New(top.Options{Sort: key, Filter: c.String("filter"), ASCII: !unicodeTerminal()}),
	}
	first, err := m.look() // who calls it where no controller is gets the exit code for that
	if err != nil {
		return err
	}
	m.model.See(first)
	_, err = tea.NewProgram(m, tea.WithContext(c.Context), tea.WithInput(s.in), tea.WithOutput(s.out), tea.WithoutSignalHandler(), tea.WithFPS(framesPerSec)).Run()
	if errors.Is(err, tea.ErrProgramKilled) && c.Context.Err() != nil {
		return nil // SIGINT and SIGTERM end it as q does
	}
	return err
}

// unicodeTerminal tells whether the terminal shows UTF-8, by the variables of setlocale(3) in their order.
func unicodeTerminal() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToUpper(os.Getenv(name)); v != "" {
			return strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8")
		}
	}
	return false
}

// topScreen joins the model with the terminal and the control socket.
type topScreen struct {
	ctx           context.Context
	client        *api.Client
	interval      time.Duration
	model         *top.Model
	colours       bool
	width, height int
}

// looked is the outcome of a look.
type looked struct {
	look top.Look
	err  error
}

func (m *topScreen) look() (l top.Look, err error) {
	ctx, cancel := context.WithTimeout(m.ctx, answerWithin)
	defer cancel()
	if l.Status, err = m.client.Status(ctx, ""); err == nil {
		l.Stats, err = m.client.Stats(ctx, "")
	}
	l.At = time.Now()
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer in %v", answerWithin)
	}
	return l, err
}

// next looks again after the interval. A look that takes long puts off the next: there is one at a time.
func (m *topScreen) next() tea.Msg {
	select {
	case <-m.ctx.Done():
		return nil
	case <-time.After(m.interval):
	}
	l, err := m.look()
	return looked{l, err}
}

// Init implements tea.Model.
func (m *topScreen) Init() tea.Cmd { return m.next }

// Update implements tea.Model.
func (m *topScreen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case looked:
		if msg.err != nil {
			m.model.Miss(time.Now(), msg.err)
		} else {
			m.model.See(msg.look)
		}
		return m, m.next
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		if msg.String() == "ctrl+z" {
			return m, tea.Suspend
		}
		if m.model.Key(msg.String(), msg.Text, time.Now()) {
			return m, tea.Quit
		}
	}
	return m, nil
}

// View implements tea.Model.
func (m *topScreen) View() tea.View {
	var b strings.Builder
	for i, l := range m.model.Screen(m.width, m.height, time.Now()) {
		if i > 0 {
			b.WriteByte('\n')
		}
		for _, s := range l {
			b.WriteString(m.paint(s))
		}
	}
	v := tea.NewView(b.String())
	v.AltScreen = true
	return v
}

func (m *topScreen) paint(s top.Span) string {
	colour := map[top.Style]string{top.Head: colourHead, top.Good: colourGood, top.Warn: colourWarn, top.Bad: colourBad, top.Dim: colourDim}[s.Style]
	if colour == "" || !m.colours {
		return s.Text
	}
	return colour + s.Text + colourNone
}

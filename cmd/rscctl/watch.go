package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// Where the cursor goes and what is wiped (ECMA-48 CUP, EL, ED).
const (
	toTop     = "\x1b[H"
	wipeLine  = "\x1b[K"
	wipeBelow = "\x1b[J"
)

// watch calls show once, or with --watch every interval until the context ends. A page says when it was made. On a terminal it takes
// the place of the one before and is cut to the window, from the top; elsewhere it is appended. JSON is appended as it is.
func watch(c *cli.Context, s streams, show func(io.Writer) error) error {
	if !c.Bool("watch") {
		if c.IsSet("interval") {
			return usagef("%s: --interval: means nothing without --watch: give both or neither", c.Command.Name)
		}
		return show(s.out)
	}
	interval, err := watchInterval(c)
	if err != nil {
		return err
	}
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	repaint := isTerminal(s.out) && !dumb() && !asJSON
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		pg := &page{width: foldAt, colours: colours(s.out)}
		if width, _, ok := window(s.out); ok {
			pg.width = width
		}
		if !asJSON {
			fmt.Fprintf(pg, "%s, every %v\n\n", time.Now().Format(time.TimeOnly), interval)
		}
		if err := show(pg); err != nil {
			if c.Context.Err() != nil {
				return nil // interrupted in the middle of a request: that is how a watch ends
			}
			return err
		}
		if repaint {
			pg.fill(s.out)
		} else if !asJSON {
			pg.WriteByte('\n')
		}
		if _, err := pg.WriteTo(s.out); err != nil {
			return err
		}
		select {
		case <-c.Context.Done():
			if repaint {
				fmt.Fprintln(s.out)
			}
			return nil
		case <-tick.C:
		}
	}
}

// fill makes of a page what draws it on the terminal that out is, from the top, with nothing beyond its window. The cursor stays on
// the last line, so that nothing scrolls.
func (pg *page) fill(out io.Writer) {
	lines := strings.Split(strings.TrimRight(pg.String(), "\n"), "\n")
	width, height, ok := window(out)
	if ok && len(lines) > height {
		hidden := len(lines) - height + 1
		lines = append(lines[:height-1], fmt.Sprintf("%d more lines: a higher window shows them", hidden))
	}
	pg.Reset()
	for i, l := range lines {
		if ok {
			l = ansi.Truncate(l, width, "")
		}
		lines[i] = l + colourEnd(l) + wipeLine
	}
	pg.WriteString(toTop + strings.Join(lines, "\n") + wipeBelow)
}

// colourEnd ends a colour that a line has begun and may have lost the end of.
func colourEnd(l string) string {
	if strings.Contains(l, "\x1b") {
		return colourNone
	}
	return ""
}

// watchInterval is the time between two looks.
func watchInterval(c *cli.Context) (time.Duration, error) {
	interval := c.Duration("interval")
	if interval < 10*time.Millisecond {
		return 0, usagef("%s: --interval %v: too short: say 10ms and above", c.Command.Name, interval)
	}
	return interval, nil
}

// window is the size of the terminal that w is; ok is false when it is none.
func window(w any) (width, height int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return 0, 0, false
	}
	return int(size.Col), int(size.Row), true
}

// isTerminal tells whether somebody looks at what is written to w.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

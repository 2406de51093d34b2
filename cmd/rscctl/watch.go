package main

import (
	"bytes"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// clearScreen moves to the top left corner and wipes (ECMA-48 CUP, ED).
const clearScreen = "\x1b[H\x1b[2J"

// watch calls show once, or with --watch every interval until the context ends. On a terminal each page replaces the one
// before, elsewhere it is appended.
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
	repaint := isTerminal(s.out)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var page bytes.Buffer // written in one piece, or the screen would flicker while the controller answers
	for {
		page.Reset()
		if repaint {
			page.WriteString(clearScreen)
		}
		if err := show(&page); err != nil {
			if c.Context.Err() != nil {
				return nil // interrupted in the middle of a request: that is how a watch ends
			}
			return err
		}
		if _, err := page.WriteTo(s.out); err != nil {
			return err
		}
		select {
		case <-c.Context.Done():
			return nil
		case <-tick.C:
		}
	}
}

// watchInterval is the time between two looks.
func watchInterval(c *cli.Context) (time.Duration, error) {
	interval := c.Duration("interval")
	if interval < 10*time.Millisecond {
		return 0, usagef("%s: --interval %v: too short: say 10ms and above", c.Command.Name, interval)
	}
	return interval, nil
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

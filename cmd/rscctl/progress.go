package main

import (
	"fmt"
	"io"
	"time"
)

const progressEvery = 200 * time.Millisecond

// progress counts what is read from a capture and, when err is a terminal, says so a few times a second.
type progress struct {
	in   io.Reader
	to   io.Writer // nil: silent
	size int64     // -1: not known
	read int64
	last time.Time
	used bool // something stands on the line
}

// newProgress stays silent when quiet: lines on the same terminal would run into each other.
func newProgress(in io.Reader, err io.Writer, size int64, quiet bool) *progress {
	p := &progress{in: in, size: size, last: time.Now()}
	if isTerminal(err) && !quiet {
		p.to = err
	}
	return p
}

// Read implements io.Reader. Reads are large, so looking at the clock each time costs nothing.
func (p *progress) Read(b []byte) (int, error) {
	n, err := p.in.Read(b)
	p.read += int64(n)
	if p.to != nil && time.Since(p.last) >= progressEvery {
		p.last, p.used = time.Now(), true
		text := size(uint64(p.read))
		if p.size > 0 {
			text += " of " + size(uint64(p.size)) + ", " + percent(uint64(p.read), uint64(p.size))
		}
		fmt.Fprintf(p.to, "\rreplay: %s\x1b[K", text)
	}
	return n, err
}

// done wipes the line.
func (p *progress) done() {
	if p.used {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
}

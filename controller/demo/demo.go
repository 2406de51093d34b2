package demo

import (
	"context"
	"errors"
	"io"
	"time"
)

// ChildVerb is the hidden verb of the binary that runs one of the demo's processes: os.Executable() ChildVerb ROLE.
const ChildVerb = "demo-child"

// Options are what the command line asks for.
type Options struct {
	JSON    bool      // print one JSON object instead of the table
	IPv6    bool      // run over IPv6 instead of IPv4
	Stdout  io.Writer // the result
	Stderr  io.Writer // progress lines, one a step; nil: none
	Version string    // handed to the controller

	// Round is the measured time of one transfer, 0 for the default of two seconds. Tests shorten it.
	Round time.Duration
	// Rounds is how often every mode is measured, 0 for the default of three.
	Rounds int
	// Executable is the binary started for the three processes, "" for os.Executable().
	Executable string
}

// Run runs the demo and prints its result. When it fails it cleans up, prints {"schema","error"} if JSON was asked for,
// and returns the error (one line; the caller prints it to stderr and exits 1). It ends early when ctx ends.
// It needs root. It is not safe to call twice at once in one process.
func Run(ctx context.Context, o Options) error {
	return errors.New("demo: not built yet")
}

// Child is the body of ChildVerb: it serves the demo in one of the roles "sender", "controller" and "guest" until its
// standard input ends.
func Child(ctx context.Context, role string, version string) error {
	return errors.New("demo: not built yet")
}

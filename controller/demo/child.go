package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Roles of a child.
const (
	roleSender     = "sender"
	roleController = "controller"
	roleGuest      = "guest"
)

// Child is the body of ChildVerb: it serves the demo in one of the roles "sender", "controller" and "guest" until its
// standard input ends. It expects to be alone in its network namespace, which the parent sees to.
func Child(ctx context.Context, role string, version string) error {
	return ChildWith(ctx, role, version, Extra{})
}

// ChildWith is Child for a program whose processes can do more.
func ChildWith(ctx context.Context, role string, version string, x Extra) error {
	var s server
	switch role {
	case roleSender:
		s = newSender(x)
	case roleController:
		surviveParent()
		s = newControl(ctx, version, x)
	case roleGuest:
		s = newGuest(x)
	default:
		return fmt.Errorf("demo: role %q: not one of %s, %s, %s", role, roleSender, roleController, roleGuest)
	}
	err := serve(s, os.Stdin, os.Stdout)
	return errors.Join(err, s.close())
}

// surviveParent takes SIGTERM, which the kernel sends when the parent was killed, as a bound on the way out that begins
// with the end of the standard input: the controller undoes what it did and removes the demo's folder. Nobody reads its
// log any more then, and a log line must not kill it.
func surviveParent() {
	signal.Ignore(unix.SIGPIPE)
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGTERM)
	go func() {
		<-c
		time.Sleep(2*stopTimeout + giveBackTimeout)
		os.Exit(1)
	}()
}

// server is a role. Its operations are called in turn.
type server interface {
	do(q *request) (*reply, error)
	close() error
}

var errOp = errors.New("operation unknown to this role")

// serve answers requests until in ends. A request that fails is answered with the error's text; serve itself fails only
// when it cannot talk.
func serve(s server, in io.Reader, out io.Writer) error {
	r := bufio.NewReader(in)
	enc := json.NewEncoder(out)
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("demo: requests: %w", err)
		}
		var q request
		if err := json.Unmarshal(line, &q); err != nil {
			return fmt.Errorf("demo: request: %w", err)
		}
		answer, err := s.do(&q)
		if answer == nil {
			answer = &reply{}
		}
		if err != nil {
			answer.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		if err := enc.Encode(answer); err != nil {
			return fmt.Errorf("demo: reply: %w", err)
		}
	}
}

// cpuTime is the user and system time this process has used, its threads in the kernel included: what the tap's writes
// make the network stack do is charged here.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

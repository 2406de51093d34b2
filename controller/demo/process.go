package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Times a child is given.
const (
	replyTimeout = 20 * time.Second // for one reply
	dataTimeout  = 2 * time.Minute  // for one that waits for the end of a transfer: a machine may be an emulated one
	stopTimeout  = 3 * time.Second  // to end by itself after its input ended

	giveBackTimeout = 10 * time.Second // beside that, for two NICs
)

// ErrChild is returned when one of the demo's processes ended or stopped answering.
var ErrChild = errors.New("process of the demo failed")

// child is one of the demo's processes, seen by the parent.
type child struct {
	role  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan []byte // replies; closed at the end of the output
	done  chan struct{}
	err   error // how it ended, once done is closed
	log   *tail
	mu    sync.Mutex // one request at a time
}

// startChild starts a role of this binary in new namespaces: its own network, so that nothing of the host is touched,
// and its own mounts. Neither has a name, so both are gone when the process is, however it ends.
func startChild(executable, role string, death syscall.Signal) (*child, error) {
	c := &child{role: role, lines: make(chan []byte, 1), done: make(chan struct{}), log: &tail{}}
	c.cmd = exec.Command(executable, ChildVerb, role)
	c.cmd.Stderr = c.log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Setpgid:      true, // Ctrl-C is for the parent, which ends its children in order
		Pdeathsig:    death,
	}
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("demo: %s: %w", role, err)
	}
	c.in = in
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("demo: %s: %w", role, err)
	}
	started := make(chan error)
	go c.babysit(out, started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("demo: %s: start: %w%s", role, err, startHint(err))
	}
	return c, nil
}

func startHint(err error) string {
	switch {
	case errors.Is(err, syscall.EPERM):
		return " (the demo makes network and mount namespaces: run it as root, in a container with CAP_SYS_ADMIN)"
	case errors.Is(err, syscall.EINVAL): // "/" cannot be made private
		return " (the root folder is no mount point, as in a chroot: run 'mount --bind DIR DIR' before 'chroot DIR', or run the demo outside)"
	}
	return ""
}

// babysit starts the process and reads its output to the end. It stays on one thread for that long, because the signal
// for the parent's death fires when the *thread* that forked ends.
func (c *child) babysit(out io.Reader, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := c.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			break
		}
		c.lines <- line
	}
	close(c.lines)
	c.err = c.cmd.Wait()
	close(c.done)
}

// ask sends one request and waits for the reply. The error of a failed request begins with the role.
func (c *child) ask(ctx context.Context, q request) (*reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	line, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("demo: %s: %s: %w", c.role, q.Op, err)
	}
	if _, err := c.in.Write(append(line, '\n')); err != nil {
		return nil, c.failure()
	}
	limit := replyTimeout
	if slices.Contains([]string{"complete", "finish", "received"}, q.Op) {
		limit = dataTimeout
	}
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-timeout.C:
		return nil, fmt.Errorf("demo: %s: %s: no answer within %v: %w%s", c.role, q.Op, limit, ErrChild, c.log.lastLine())
	case line, ok := <-c.lines:
		if !ok {
			return nil, c.failure()
		}
		var r reply
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("demo: %s: %s: reply: %w", c.role, q.Op, err)
		}
		if r.Error != "" {
			return nil, fmt.Errorf("demo: %s: %s", c.role, r.Error)
		}
		return &r, nil
	}
}

// failure says how a child that does not answer ended.
func (c *child) failure() error {
	how := "it closed its output"
	select {
	case <-c.done:
		how = "it ended"
		if c.err != nil {
			how = c.err.Error()
		}
	case <-time.After(time.Second):
	}
	return fmt.Errorf("demo: %s: %w: %s%s", c.role, ErrChild, how, c.log.lastLine())
}

// stop ends the child: its input ends, and if it has not ended after the grace, it is killed.
func (c *child) stop(grace time.Duration) {
	if c == nil {
		return
	}
	c.in.Close()
	go func() { // a reply nobody waits for must not keep babysit from the end of the output
		for range c.lines {
		}
	}()
	select {
	case <-c.done:
		return
	case <-time.After(grace):
	}
	_ = c.cmd.Process.Kill()
	<-c.done
}

// tail keeps the end of what a child wrote to its standard error.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailLen = 4096

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b) - tailLen; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

// lastLine is the last line in brackets, for the end of an error; "" if there is none. A panic's first line is worth
// more than the end of its traces.
func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.TrimSpace(string(t.b))
	if i := strings.Index(text, "panic: "); i >= 0 {
		text, _, _ = strings.Cut(text[i:], "\n")
	}
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	if text == "" {
		return ""
	}
	return " (" + string(bytes.TrimSpace([]byte(text))) + ")"
}

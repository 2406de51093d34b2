package vm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rscctl/rscctl/test/vm/control"
)

// QEMU is the program that Start runs unless told another; it must be in the path.
const QEMU = "qemu-system-x86_64"

// VM is a running guest. Its methods may be called from several goroutines.
type VM struct {
	opts    Options
	proc    *process
	ctl     *channel
	console string // file
	errors  *tail
	read    chan struct{} // closed when the control port has been read to its end
}

// Start runs QEMU and returns at once: a vhost-user netdev makes QEMU wait for its back-end, so the boot may begin later.
func Start(o Options) (*VM, error) {
	o.defaults()
	v := &VM{opts: o, console: filepath.Join(o.Dir, o.Name+"-console.log"), errors: &tail{}, read: make(chan struct{})}
	cmd := exec.Command(o.QEMU, o.args(v.console)...)
	cmd.Stderr = v.errors
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("vm %s: %w", o.Name, err)
	}
	// Not StdoutPipe: Wait would close it before the last answers are read.
	out, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("vm %s: %w", o.Name, err)
	}
	cmd.Stdout = w
	v.proc, err = startProcess(cmd, o.NS)
	w.Close()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("vm %s: %w", o.Name, err)
	}
	v.ctl = newChannel(in)
	go func() {
		v.ctl.run(out)
		out.Close()
		close(v.read)
	}()
	return v, nil
}

// WaitReady waits until the guest takes orders: once after Start and once after every reboot.
func (v *VM) WaitReady(ctx context.Context) (control.Hello, error) {
	select {
	case hello, ok := <-v.ctl.ready:
		if !ok {
			<-v.proc.done
			return hello, fmt.Errorf("vm %s: %w (%v): %s", v.opts.Name, ErrGone, v.proc.err, v.errors)
		}
		return hello, nil
	case <-ctx.Done():
		return control.Hello{}, fmt.Errorf("vm %s: not ready: %w; %s", v.opts.Name, ctx.Err(), v.errors)
	}
}

// Do gives the guest an order of package control and waits for its answer. Args may be nil; result is a pointer to the
// answer's type, or nil.
func (v *VM) Do(ctx context.Context, op string, args, result any) error {
	return v.ctl.do(ctx, op, args, result, nil)
}

// Exec runs a program of the initramfs and copies what it writes to output, from another goroutine, while it runs. An
// error is only a program that could not be started, or whose VM ended.
func (v *VM) Exec(ctx context.Context, e control.Exec, output io.Writer) (control.ExecResult, error) {
	var r control.ExecResult
	err := v.ctl.do(ctx, control.OpExec, e, &r, output)
	return r, err
}

// PID is QEMU's process number.
func (v *VM) PID() int { return v.proc.pid() }

// Done is closed when QEMU has ended.
func (v *VM) Done() <-chan struct{} { return v.proc.done }

// PowerOff lets the guest end by itself, and kills QEMU when it does not.
func (v *VM) PowerOff(ctx context.Context) error {
	err := v.Do(ctx, control.OpPowerOff, nil, nil)
	select {
	case <-v.proc.done:
		return err
	case <-ctx.Done():
		v.Kill()
		return fmt.Errorf("vm %s: power off: %w", v.opts.Name, ctx.Err())
	}
}

// Kill ends QEMU as SIGKILL does, and waits for that. Killing one that has ended is fine.
func (v *VM) Kill() {
	v.proc.kill()
	select {
	case <-v.read:
	case <-time.After(time.Second):
	}
}

// Report is what a failing test should show: QEMU's own messages and the end of the guest's console.
func (v *VM) Report() string {
	var b strings.Builder
	fmt.Fprintf(&b, "QEMU of vm %s (pid %d, running %v): %s\n", v.opts.Name, v.PID(), v.proc.running(), v.errors)
	console, err := os.ReadFile(v.console)
	if err != nil {
		fmt.Fprintf(&b, "console: %v\n", err)
		return b.String()
	}
	const keep = 8 << 10
	if len(console) > keep {
		console = console[len(console)-keep:]
	}
	fmt.Fprintf(&b, "console:\n%s\n", console)
	return b.String()
}

// tail keeps the last of what a process writes.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

var _ io.Writer = (*tail)(nil)

const tailBytes = 64 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p)
	if over := t.b.Len() - tailBytes; over > 0 {
		t.b.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.b.String())
}

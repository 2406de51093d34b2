package vm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
)

// process is a child that cannot outlive the test binary, not even one that is killed.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended, valid once done is closed
}

// startProcess starts cmd, in the namespace ns unless that is nil.
//
// The kernel sends the parent-death signal when the *thread* that forked ends, so the child gets a goroutine and a thread
// for as long as it lives. That thread may change its namespace without going back: it is not reused.
func startProcess(cmd *exec.Cmd, ns *netnstest.NS) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if ns != nil {
			if err := unix.Setns(ns.FD(), unix.CLONE_NEWNET); err != nil {
				started <- fmt.Errorf("namespace %s: enter: %w", ns.Path(), err)
				return
			}
		}
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop asks with a signal, and kills what has not ended in time. It returns whether killing was needed.
func (p *process) stop(sig os.Signal, within time.Duration) (killed bool) {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.kill()
		return true
	}
	select {
	case <-p.done:
		return false
	case <-time.After(within):
		p.kill()
		return true
	}
}

// kill ends it at once and waits for that.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // the only error is that it has ended
	<-p.done
}

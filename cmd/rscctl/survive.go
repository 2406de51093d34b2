package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller"
	"github.com/rscctl/rscctl/controller/fdstore"
)

// A process that dies must not take the links of VMs down. What the next one goes on with lies in a store outside: systemd's, or a
// keeper's, which is this program as a parent of the one that works.

// keepAlive makes this process a keeper, unless it was started by one or by a service manager. under tells that it was one, and its
// child has ended with that exit code.
func keepAlive(c *cli.Context, log *slog.Logger) (under bool, code int, err error) {
	if fdstore.InKeeper() || os.Getenv("NOTIFY_SOCKET") != "" {
		return false, 0, nil
	}
	self, err := os.Executable()
	if err != nil {
		return true, exitFailed, err
	}
	code, err = fdstore.Keep(c.Context, fdstore.Child{Path: self, Args: os.Args[1:], Heir: c.Bool("replace"), Log: log})
	return true, code, err
}

// Between the processes of a reload.
const (
	readyEnv  = "RSCCTL_READY_FD" // the descriptor by which the heir says that it runs, or its exit code
	orphanEnv = "RSCCTL_ORPHAN"   // for the process between the one that waits and the heir: it starts that one and ends
	bornEnv   = "RSCCTL_BORN_OF"  // for the heir: that process's number
)

// orphanWithin is how long an heir waits for the end of the process that started it.
const orphanWithin = 500 * time.Millisecond

// A reload is tried so often: a host that is busy for a moment is no reason to keep an old version.
const (
	reloadTries = 3
	reloadPause = time.Second
)

// background starts this command line once more, in a session of its own, and returns when that process runs; or ends as it did. A service
// manager waits for the command that reloads a service, and the heir must live on.
func background() error {
	if os.Getenv(orphanEnv) != "" {
		return bear()
	}
	for try := 1; ; try++ {
		err := backgroundOnce()
		var ended *exitError
		if try == reloadTries || !errors.As(err, &ended) || ended.code == exitUsage || ended.code == exitNoController {
			return err
		}
		time.Sleep(reloadPause)
	}
}

func backgroundOnce() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{w}
	cmd.Env = append(os.Environ(), orphanEnv+"=1")
	err = cmd.Run()
	w.Close()
	if err != nil {
		return err
	}
	code := [1]byte{exitFailed}
	_, _ = r.Read(code[:]) // nothing: it died
	if code[0] == exitDone {
		return nil
	}
	return &exitError{int(code[0])}
}

// bear starts the heir and ends, so that the service manager is the heir's parent: of a process that is another's child it does not wait for
// the end, and kills it when the service is stopped.
func bear() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return a == "--"+backgroundFlag })...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{os.NewFile(firstExtra, "ready")}
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, orphanEnv+"=") }),
		readyEnv+"="+strconv.Itoa(firstExtra), bornEnv+"="+strconv.Itoa(os.Getpid()))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// firstExtra is the descriptor that a process has the first of its exec.Cmd's ExtraFiles as.
const firstExtra = 3

// orphaned waits until the process that started this one has ended.
func orphaned() {
	born, err := strconv.Atoi(os.Getenv(bornEnv))
	if err != nil {
		return
	}
	for end := time.Now().Add(orphanWithin); os.Getppid() == born && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// sayEnd tells the process that waits for this one: exitDone when it runs.
func sayEnd(code int) {
	fd, err := strconv.Atoi(os.Getenv(readyEnv))
	if err != nil {
		return
	}
	_ = os.Unsetenv(readyEnv)
	f := os.NewFile(uintptr(fd), "ready")
	_, _ = f.Write([]byte{byte(code)})
	f.Close()
}

// exitError is the exit code of a child that has said why it ended.
type exitError struct{ code int }

func (e *exitError) Error() string { return "" }

// exitWith is how a keeper ends: with an error of its own, or as its child did.
func exitWith(code int, err error) error {
	if err != nil || code == exitDone {
		return err
	}
	return &exitError{code}
}

// begin makes the controller: one that takes over, one that goes on where a process that died stood, or a new one.
// files are what the store has.
func begin(c *cli.Context, log *slog.Logger, files map[string]int, opt controller.Options) (*controller.Controller, error) {
	if c.Bool("replace") && !fdstore.Again() { // who was taken over from is gone by the second life
		if opt.Service {
			orphaned()
		}
		ctl, err := controller.Replace(opt)
		if err == nil {
			sayEnd(exitDone)
		}
		return ctl, err
	}
	if len(files) == 0 {
		return controller.New(opt)
	}
	start := time.Now()
	late := time.AfterFunc(recoverWithin, func() { // what is kept holds frames that nobody takes: the next process begins anew
		log.Error("not gone on in time: what was kept is let go", "kept", len(files))
		for name := range files {
			_ = opt.Store.Drop(name)
		}
		os.Exit(exitFailed)
	})
	ctl, err := controller.Recover(opt, files)
	late.Stop()
	if err == nil {
		log.Warn("gone on where the process before stood", "kept", len(files), "ms", time.Since(start).Milliseconds())
		return ctl, nil
	}
	log.Error("nothing is gone on with: the VMs are attached anew", "err", err)
	return newSoon(opt)
}

// recoverWithin is a keeper's own bound, for where the service manager is the keeper.
const recoverWithin = 2 * time.Second

// newSoon is controller.New for the moment in which the store still has what it was told to drop: the lock and the control socket.
func newSoon(opt controller.Options) (ctl *controller.Controller, err error) {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if ctl, err = controller.New(opt); !errors.Is(err, controller.ErrHeld) || time.Now().After(end) {
			return ctl, err
		}
	}
}

// restarting asks systemd whether the unit that this process is of is being restarted: then it is not the end, and what is in the store is
// gone on with.
func restarting() bool {
	unit := ownUnit()
	if unit == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "list-jobs", "--plain", "--no-legend", unit).Output()
	return err == nil && strings.Contains(string(out), "restart")
}

// ownUnit is the service unit that this process belongs to, "" for none.
func ownUnit() string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if name := path.Base(strings.TrimSpace(line)); strings.HasSuffix(name, ".service") {
			return name
		}
	}
	return ""
}

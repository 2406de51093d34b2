package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is built once, for the tests that run it, into a folder that TestMain removes.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "rscctl-cmd-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "rscctl")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, ".").CombinedOutput(); err != nil {
		return bin, fmt.Errorf("build: %w\n%s", err, out)
	}
	return bin, nil
})

func built(t *testing.T) string {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	builtOne = true
	return bin
}

// builtOne says that TestMain has something to remove.
var builtOne bool

// TestTheBinaryItself runs real processes: exit codes and signals are the process's, not a function's.
func TestTheBinaryItself(t *testing.T) {
	bin := built(t)
	missing := filepath.Join(t.TempDir(), "missing")
	for _, tt := range []struct {
		args string
		code int
	}{{"--version", 0}, {"--help", 0}, {"replay /nonexistent", 1}, {"foo", 2}, {"status --socket " + missing, 3}} {
		err := exec.Command(bin, strings.Fields(tt.args)...).Run()
		code := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != tt.code {
			t.Errorf("%s: exit %d, want %d", tt.args, code, tt.code)
		}
	}

	fake := newFake(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range []string{"status", "stats", "flows", "why web", "export", "policy get web", "version", "help", "status --help", "completion bash", "man", "status --watch"} {
		cmd := exec.Command(bin, strings.Fields(args)...)
		var errs strings.Builder
		cmd.Stdout, cmd.Stderr, cmd.Env = full, &errs, append(os.Environ(), "RSCCTL_SOCKET="+fake.socket)
		_ = cmd.Run() // its exit code tells
		if code := cmd.ProcessState.ExitCode(); code != exitFailed || strings.Count(errs.String(), "no space left on device: make room") != 1 {
			t.Errorf("%s on a full disk: exit %d, %q", args, code, errs.String())
		}
		oneErrorLine(t, errs.String())
	}
	empty := exec.Command(bin, "status")
	empty.Env = append(os.Environ(), "RSCCTL_SOCKET=")
	if out, _ := empty.CombinedOutput(); strings.Contains(string(out), "missing address") || strings.Contains(string(out), "control socket :") {
		t.Errorf("an empty variable names no place: %s", out)
	}

	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		asked := fake.count()
		cmd := exec.Command(bin, "stats", "--watch", "--interval", "20ms", "--socket", fake.socket)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for fake.count() < asked+2 {
			time.Sleep(time.Millisecond)
		}
		cmd.Process.Signal(sig)
		if err := cmd.Wait(); err != nil {
			t.Errorf("watch after %v: %v", sig, err)
		}
	}
}

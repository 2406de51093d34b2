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

package e2e

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
)

// Where the recording is kept, and what README shows of it.
const (
	recordedCast = "../../docs/demo.cast"
	recordedSVG  = "../../docs/demo.svg"
)

// typed is what is recorded: commands at a prompt that is nobody's, and what they print.
const typed = `
say() { printf '\033[1m# \033[0m'; for ((i = 0; i < ${#1}; i++)); do printf %s "${1:i:1}"; sleep 0.03; done; sleep 0.3; echo; eval "$1"; }
say 'rscctl observe --seconds 5'
echo
say 'rscctl demo'
sleep 2
`

// TestRecording makes the recording in docs/ anew: with the asciinema and termtosvg of Debian, on a host with a VM on a tap that receives.
func TestRecording(t *testing.T) {
	if os.Getenv("RSCCTL_RECORD") == "" {
		t.Skip("allowed: RSCCTL_RECORD=1 makes the recording in docs/ anew")
	}
	netnstest.Need(t, netnstest.Tool("asciinema"), netnstest.Tool("termtosvg"))
	r, vm := observed(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() { // while observe looks; the demo has its own
		defer close(done)
		for end := time.Now().Add(7 * time.Second); ctx.Err() == nil && time.Now().Before(end); {
			k, err := vm.Guest.Listen(netip.AddrPortFrom(vm.Guest.IPv4.Addr(), 5001))
			if err != nil {
				t.Error(err)
				return
			}
			if _, err = r.net.A.Send(ctx, netip.AddrPortFrom(vm.Guest.IPv4.Addr(), 5001), 64<<20); err == nil {
				_, _, err = k.Wait(ctx)
			}
			k.Close()
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	cast := filepath.Join(t.TempDir(), "demo.cast")
	cmd := exec.Command("asciinema", "rec", "-q", "--cols", "112", "--rows", "34", "-e", "TERM", "-i", "2", "-t", "rscctl observe, rscctl demo", "-c", "bash -c "+quote(typed), cast)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(product)+":"+os.Getenv("PATH"), "TERM=xterm-256color", "ASCIINEMA_CONFIG_HOME="+t.TempDir(), "SHELL=/bin/bash")
	cmd.Stderr = os.Stderr
	if err := r.net.B.NS.Run(cmd); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	b, err := os.ReadFile(cast)
	if err != nil {
		t.Fatal(err)
	}
	// Of the kernel's name the version is of interest, and not who built it.
	release := kernelRelease(t)
	version, _, _ := strings.Cut(release, "-")
	b = bytes.ReplaceAll(b, []byte(release), []byte(version))
	if err := os.WriteFile(recordedCast, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("termtosvg", "render", recordedCast, recordedSVG, "-t", "window_frame", "-M", "2000", "-D", "5000").CombinedOutput(); err != nil {
		t.Fatalf("termtosvg: %v\n%s", err, out)
	}
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func kernelRelease(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}

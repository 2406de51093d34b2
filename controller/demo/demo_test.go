package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
)

// runVerb makes the test binary run a short demo, for tests that kill the process that runs it.
const runVerb = "demo-run"

// TestMain makes the test binary its own child, as the product's binary is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == ChildVerb || os.Args[1] == runVerb || os.Args[1] == stageVerb) {
		var err error
		switch os.Args[1] {
		case ChildVerb:
			err = Child(context.Background(), os.Args[2], "test")
		case stageVerb:
			err = openForEver(os.Args[2], os.Args[3])
		default:
			err = Run(context.Background(), Options{Stdout: os.Stdout, Stderr: os.Stderr, Round: time.Minute, Rounds: 1})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func need(t *testing.T) {
	t.Helper()
	netnstest.Need(t, netnstest.TAP, netnstest.BPF, netnstest.AFXDP, netnstest.Packets)
}

func short(out io.Writer) Options {
	return Options{JSON: true, Stdout: out, Round: 300 * time.Millisecond, Rounds: 1}
}

func TestDemoMovesDataAndLeavesNothing(t *testing.T) {
	need(t)
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("ipv6=%t", v6), func(t *testing.T) {
			checkLeftovers(t)
			var out, progress bytes.Buffer
			o := short(&out)
			o.IPv6, o.Stderr = v6, &progress
			if err := Run(t.Context(), o); err != nil {
				t.Fatalf("%v\n%s", err, &progress)
			}
			t.Logf("%s%s", &progress, &out)
			checkResult(t, out.Bytes())
		})
	}
}

// checkResult checks what does not depend on the machine's speed.
func checkResult(t *testing.T, b []byte) {
	t.Helper()
	var r Result
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.Schema != api.Schema || !r.DataMatch || r.Kernel == "" || r.XDPMode == "" || r.XSKMode == "" {
		t.Errorf("result %+v", r)
	}
	if have, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control"); err == nil && slices.Contains(strings.Fields(string(have)), usualCongestion) && r.Congestion != usualCongestion {
		t.Errorf("TCP by %q, and this kernel has %s: figures are what most senders would bring", r.Congestion, usualCongestion)
	}
	for name, m := range map[string]*Mode{"off": &r.Off, "off_guest_gro": &r.OffGuestGRO} {
		if m.Gbps <= 0 || m.WireFrames == 0 || m.GuestFrames == 0 || m.CPU.Controller <= 0 || m.CPU.Guest <= 0 || m.CPU.Total <= 0 {
			t.Errorf("%s measured nothing: %+v", name, m)
		}
		if m.MeanBytes > 1514 || m.Segments != 1 {
			t.Errorf("%s: something merged: %+v", name, m)
		}
	}
	for name, m := range map[string]*Mode{"on": &r.On, "on_guest_gro": &r.OnGuestGRO} {
		if m.MeanBytes <= r.Off.MeanBytes || m.Segments <= 1 || len(m.Reasons) == 0 || m.CPU.Sender <= 0 || m.Wakeups == 0 {
			t.Errorf("%s: nothing merged: %+v", name, m)
		}
	}
	switch q := r.Quota; {
	case q == nil && r.NoQuota == "" || q != nil && r.NoQuota != "":
		t.Errorf("quota %v, no quota %q: one of the two has to be there", q, r.NoQuota)
	case q == nil:
		t.Logf("no quota: %s", r.NoQuota)
	default:
		// However fast the machine is, a guest that had more than twice its share was not held.
		for name, m := range map[string]*Mode{"off": &q.Off, "on": &q.On} {
			if used := m.CPU.Guest * m.Gbps / 8; m.Gbps <= 0 || used > 2*q.Processors {
				t.Errorf("quota, %s: %.2f Gb/s, and the guest used %.2f processors of %.2f", name, m.Gbps, used, q.Processors)
			}
		}
	}
}

// started runs a demo with long rounds until its first round, calls do and returns what Run did.
func started(t *testing.T, do func()) (out []byte, err error) {
	t.Helper()
	var result bytes.Buffer
	r, w := io.Pipe()
	o := short(&result)
	o.Round, o.Stderr = time.Minute, w
	ended := make(chan error, 1)
	go func() {
		err := Run(t.Context(), o)
		w.CloseWithError(io.EOF)
		ended <- err
	}()
	untilMeasuring(t, r)
	go func() { _, _ = io.Copy(io.Discard, r) }()
	do()
	select {
	case err = <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the demo goes on")
	}
	return result.Bytes(), err
}

// untilMeasuring reads progress until the verification transfers are done; the first round follows.
func untilMeasuring(t *testing.T, r io.Reader) {
	t.Helper()
	s := bufio.NewScanner(r)
	for n := 0; n < 4; {
		if !s.Scan() {
			t.Fatalf("the demo ended too early: %v", s.Err())
		}
		t.Log(s.Text())
		if strings.Contains(s.Text(), "SHA-256 equal") {
			n++
		}
	}
}

func TestInterruptLeavesNothing(t *testing.T) {
	need(t)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		checkLeftovers(t)
		out, err := started(t, func() { _ = syscall.Kill(os.Getpid(), s) })
		if !errors.Is(err, ErrInterrupted) {
			t.Fatalf("%v: %v", s, err)
		}
		checkFailure(t, out, "interrupted")
	}
}

func TestDeadProcessEndsTheDemoAndLeavesNothing(t *testing.T) {
	need(t)
	for _, role := range []string{roleSender, roleController, roleGuest} {
		t.Run(role, func(t *testing.T) {
			checkLeftovers(t)
			out, err := started(t, func() {
				for pid, r := range children(t, os.Getpid()) {
					if r == role {
						_ = syscall.Kill(pid, syscall.SIGKILL)
					}
				}
			})
			if !errors.Is(err, ErrChild) || !strings.Contains(err.Error(), role) {
				t.Fatalf("error %v", err)
			}
			checkFailure(t, out, role)
		})
	}
}

func checkFailure(t *testing.T, out []byte, text string) {
	t.Helper()
	var f map[string]any
	if err := json.Unmarshal(out, &f); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	message, _ := f["error"].(string)
	if len(f) != 2 || f["schema"] != 2.0 || !strings.Contains(message, text) || strings.Contains(message, "\n") {
		t.Errorf("failure %v, want one line with %q", f, text)
	}
}

// Even a parent that had no chance to clean up leaves nothing: the children see to it.
func TestKilledDemoLeavesNothing(t *testing.T) {
	need(t)
	checkLeftovers(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, runVerb)
	progress, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	untilMeasuring(t, progress)
	pids := children(t, cmd.Process.Pid)
	if len(pids) != 3 {
		t.Errorf("children %v", pids)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, "its processes are gone", func() bool {
		for pid := range pids {
			// A zombie, which waits for the new parent to take notice, is gone: its command line is empty.
			if args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); len(args) > 0 {
				return false
			}
		}
		return true
	})
}

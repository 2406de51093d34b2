package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

var errNotYet = errors.New("not yet")

// Switching the policy under load loses nothing and repeats nothing.
func TestTogglesUnderLoadLoseNothing(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	r.toggle(g.side, 16<<20)
}

// toggle sends n bytes to a guest, vm0, and switches its policy off and on all the while.
func (r *rig) toggle(guest *netnstest.Side, n int64) {
	t := r.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	sink := guest.Sink(t, netip.AddrPortFrom(guest.IPv4.Addr(), 0))
	done := make(chan error, 1)
	var sent [32]byte
	go func() {
		var err error
		sent, err = r.net.A.Send(ctx, sink.Addr, n)
		done <- err
	}()
	toggles := 0
	for state := "off"; ; toggles++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := sink.Wait(ctx)
			if err != nil || got != sent {
				t.Errorf("after %d toggles: hashes %x and %x, %v", toggles, sent[:4], got[:4], err)
			}
			var st api.Stats
			r.json(&st, "stats")
			explain(t, st)
			if toggles == 0 {
				t.Error("no toggle fell into the transfer")
			}
			return
		default:
		}
		r.must("policy", "set", "vm0", "--coalesce", state)
		if state == "off" {
			state = "on"
		} else {
			state = "off"
		}
	}
}

func TestPolicyIsSetReadAndReset(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	r.attach("vm0", macA, "--hold", "20us")
	var p api.PolicyResponse
	r.json(&p, "policy", "get", "vm0")
	if p.Policy.HoldNS != 20_000 || p.Effective != "off" || p.Note == "" {
		t.Errorf("policy %+v", p)
	}
	r.must("policy", "set", "vm0", "--max-segments", "4", "--profile", "rsc")
	r.json(&p, "policy", "get", "vm0")
	if p.Policy.MaxSegments != 4 || p.Policy.Profile != "rsc" || p.Policy.HoldNS != 20_000 {
		t.Errorf("policy %+v", p)
	}
	r.must("policy", "reset", "vm0")
	r.json(&p, "policy", "get", "vm0")
	if p.Policy.MaxSegments != 0 || p.Policy.Profile != "gro" || !p.Policy.HoldAdaptive {
		t.Errorf("policy %+v", p)
	}
	if out, code := r.cli("policy", "get", "nobody"); code != 1 || !strings.Contains(out, "nobody") {
		t.Errorf("exit %d: %s", code, out)
	}
}

// A killed controller leaves nothing on the interface; the next one attaches again what the state names.
func TestKilledControllerLeavesNothingAndTheNextAttachesAgain(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	r.attach("vm0", macA, "--hold", "30us")
	if fdb := r.net.B.Output(t, "ip", "-d", "link", "show", "dev", r.net.B.Dev); !strings.Contains(fdb, "xdp") {
		t.Errorf("no program on the uplink: %s", fdb)
	}
	r.kill()
	r.eventually("XDP is gone with the process", func() error {
		if strings.Contains(r.net.B.Output(t, "ip", "link", "show", "dev", r.net.B.Dev), "xdp") {
			return errNotYet
		}
		return nil
	})
	r.start()
	var st api.Status
	r.json(&st, "status")
	if len(st.Interfaces) != 1 || len(st.Interfaces[0].Ports) != 1 || st.Interfaces[0].Ports[0].Policy.HoldNS != 30_000 {
		t.Fatalf("status after the restart: %+v", st)
	}
	g := r.boot(stackguest.Config{Socket: r.dir + "/vm0.sock", MAC: mac(t, macA)}, "10.77.0.10/24")
	netnstest.Bulk(t, r.net.A, g.side, 4<<20, false, 3*time.Minute)
	r.must("detach", r.net.B.Dev, "--vm", "vm0")
	r.untouched(t)
	r.stop()
	r.start()
	r.untouched(t)
}

// A controller that is killed again and again while it attaches what the state names loses none of it.
func TestCrashesDuringTheRestoreLoseNoVM(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	const vms = 12
	for i := range vms {
		r.attach(fmt.Sprintf("vm%d", i), fmt.Sprintf("52:54:00:00:01:%02x", i))
	}
	r.kill()
	file := filepath.Join(r.dir, "state", "state.json")
	for range 4 {
		before, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		r.launch()
		for end := time.Now().Add(netnstest.Patience(10 * time.Second)); ; time.Sleep(time.Millisecond) { // until the first attach has written the state
			if now, err := os.Stat(file); err == nil && !os.SameFile(before, now) {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the state is not written")
			}
		}
		r.kill()
	}
	r.start()
	var st api.Status
	r.json(&st, "status")
	if len(st.Interfaces) != 1 || len(st.Interfaces[0].Ports)+len(st.Waiting) != vms {
		t.Fatalf("after four crashes: %+v", st)
	}
}

// Rubbish on one VM's socket stops that port, is said, and costs the other nothing; a new connection works.
func TestRubbishOnASocketStopsOnlyThatPort(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	bad := r.attach("bad", macB)
	g := r.boot(stackguest.Config{Socket: r.attach("good", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	for _, text := range []string{strings.Repeat("rubbish ", 40), strings.Repeat("\xff", 12), strings.Repeat("\x00", 300)} {
		c, err := net.Dial("unix", bad)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(text))
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		for b := make([]byte, 512); ; {
			if _, err := c.Read(b); err != nil {
				break
			}
		}
		c.Close()
	}
	r.eventually("status says why the port stopped", func() error {
		var st api.Status
		r.json(&st, "status")
		for _, p := range st.Interfaces[0].Ports {
			if p.VM == "bad" && p.StopReason != "" {
				return nil
			}
		}
		return errNotYet
	})
	netnstest.Bulk(t, r.net.A, g.side, 4<<20, false, 3*time.Minute)
	again := r.boot(stackguest.Config{Socket: bad, MAC: mac(t, macB)}, "10.77.0.11/24")
	netnstest.Bulk(t, r.net.A, again.side, 4<<20, false, 3*time.Minute)
}

// A sender that leaves its checksums to an offload is noticed, said and, where it can be reached, mended.
func TestPartialChecksumsAreSaidAndMended(t *testing.T) {
	r := newRig(t, netnstest.Options{KeepTxChecksum: true})
	out := r.must("attach", r.net.B.Dev, "--vm", "vm0", "--mac", macA, "--vhost-user", r.dir+"/vm0.sock")
	if !strings.Contains(out, "partial checksums") || !strings.Contains(out, "tx off") {
		t.Errorf("attach does not say the remedy:\n%s", out)
	}
	r.must("detach", r.net.B.Dev)
	r.attach("vm0", macA, "--fix-offloads")
	g := r.boot(stackguest.Config{Socket: r.dir + "/vm0.sock", MAC: mac(t, macA)}, "10.77.0.10/24")
	netnstest.Bulk(t, r.net.A, g.side, 4<<20, false, 3*time.Minute)
	if out := r.must("detach", r.net.B.Dev); !strings.Contains(out, "tx-checksumming") {
		t.Errorf("detach does not say what was restored:\n%s", out)
	}
}

func TestFlowsAreCountedWithTheirVM(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("vm0", macA), MAC: mac(t, macA)}, "10.77.0.10/24", "fd77::10/64")
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, false, 3*time.Minute)
	netnstest.Bulk(t, r.net.A, g.side, 1<<20, true, 3*time.Minute)
	var f api.Flows
	r.json(&f, "flows", "--vm", "vm0", "--sort", "bytes", "--limit", "2")
	if len(f.Flows) != 2 {
		t.Fatalf("flows: %+v", f)
	}
	for _, x := range f.Flows {
		if x.VM != "vm0" || x.Packets == 0 || x.PayloadBytes < 1<<20 || x.Verdicts["ok"] == 0 || !strings.Contains(strings.Join(x.TCPFlags, " "), "ACK") {
			t.Errorf("flow %+v", x)
		}
	}
	if out, code := r.cli("flows", "--sort", "colour"); code != 2 {
		t.Errorf("an unknown sort key: exit %d: %s", code, out)
	}
}

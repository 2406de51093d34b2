package vm

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/test/vm/peer"
)

// What the guest of a lab is called and has. The sender is .1 and ::1, the host .2 and ::2 of the same networks.
const (
	guestName = "vm0"
	guestMAC  = "52:54:00:77:00:09"
	guestIPv4 = "10.77.0.9"
	guestIPv6 = "fd77::9"
)

// maxFrame is the longest Ethernet frame of a wire whose MTU is 1500, header what it has beside its packet.
const (
	maxFrame = header + 1500
	header   = 14
)

// lab is a wire with a sender (side A) and a host (side B), where the real controller serves the host's end for one VM.
type lab struct {
	t          *testing.T
	a, b       *netnstest.Side
	mtu        int // of the wire
	dir        string
	binary     string
	controller *process
	log        *tail
	vms        int // started so far
}

// newLab starts the controller and attaches the VM, which can then be booted. attach holds more flags of that verb.
func newLab(t *testing.T, attach ...string) *lab {
	t.Helper()
	return newLabOn(t, netnstest.Options{}, attach...)
}

// newLabOn is newLab on a wire of one's own choice.
func newLabOn(t *testing.T, wire netnstest.Options, attach ...string) *lab {
	t.Helper()
	l := emptyLabOn(t, wire)
	l.must(append([]string{"attach", l.b.Dev, "--vm", guestName, "--mac", guestMAC, "--vhost-user", l.socket()}, attach...)...)
	return l
}

// emptyLab starts the controller.
func emptyLab(t *testing.T) *lab {
	t.Helper()
	return emptyLabOn(t, netnstest.Options{})
}

func emptyLabOn(t *testing.T, wire netnstest.Options) *lab {
	t.Helper()
	asked(t)
	netnstest.Need(t, netnstest.AFXDP, netnstest.BPF, netnstest.Packets)
	binary, err := shared.rscctl()
	if err != nil {
		t.Fatal(err)
	}
	pair := netnstest.Pair(t, wire)
	l := &lab{t: t, a: pair.A, b: pair.B, mtu: cmp.Or(wire.MTU, 1500), dir: t.TempDir(), binary: binary, log: &tail{}}
	t.Cleanup(func() {
		if l.controller != nil && l.controller.running() && l.controller.stop(syscall.SIGTERM, 20*time.Second) {
			t.Error("the controller did not end within 20 s of SIGTERM")
		}
		if t.Failed() {
			t.Logf("controller:\n%s", l.log)
		}
	})
	l.run()
	return l
}

func (l *lab) socket() string  { return filepath.Join(l.dir, "vm0.sock") }
func (l *lab) control() string { return filepath.Join(l.dir, "ctl.sock") }

// launch starts a controller and waits for nothing.
func (l *lab) launch(flags ...string) (*process, error) {
	cmd := exec.Command(l.binary, append([]string{"run", "--socket", l.control(),
		"--state", filepath.Join(l.dir, "state"), "--bpffs", filepath.Join(l.dir, "bpffs")}, flags...)...)
	cmd.Stdout, cmd.Stderr = l.log, l.log
	return startProcess(cmd, l.b.NS)
}

// run starts the controller and waits until it answers. A second run finds the VM in the state of the first.
func (l *lab) run() {
	l.t.Helper()
	p, err := l.launch()
	if err != nil {
		l.t.Fatal(err)
	}
	l.controller = p
	var last error
	for deadline := time.Now().Add(patience(30 * time.Second)); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, last = l.cli("status"); last == nil {
			return
		}
		if !l.controller.running() {
			break
		}
	}
	l.t.Fatalf("the controller does not answer: %v\n%s", last, l.log)
}

// cli runs a verb and returns what it printed.
func (l *lab) cli(args ...string) (string, error) {
	cmd := exec.Command(l.binary, append(args, "--socket", l.control())...)
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("rscctl %v: %w: %s", args, err, text.String())
	}
	return out.String(), nil
}

func (l *lab) must(args ...string) string {
	l.t.Helper()
	out, err := l.cli(args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// boot starts a VM on the lab's socket, gives it addresses and waits until the sender reaches it. The guest's own GRO is
// off: what it counts as large came large.
func (l *lab) boot(o Options) *VM {
	l.t.Helper()
	l.vms++
	o.Name, o.VhostUser, o.MAC = fmt.Sprintf("lab%d", l.vms), l.socket(), guestMAC
	v, hello := boot(l.t, o)
	if hello.NIC == "" {
		l.t.Fatal("the guest has no virtio NIC")
	}
	l.configure(v)
	return v
}

// configure is what a NIC needs after a boot or a reload of its driver.
func (l *lab) configure(v *VM) {
	l.t.Helper()
	do(l.t, v, 20*time.Second, control.OpAddr, control.Addr{Addrs: []string{guestIPv4 + "/24", guestIPv6 + "/64"}}, nil)
	do(l.t, v, 20*time.Second, control.OpOffload, control.Offload{Feature: "rx-gro", On: false}, nil)
	l.reachable()
}

// reachable waits until the sender's echo requests are answered.
func (l *lab) reachable() {
	l.t.Helper()
	for _, to := range []string{guestIPv4, guestIPv6} {
		ok := false
		for deadline := time.Now().Add(patience(30 * time.Second)); !ok && time.Now().Before(deadline); {
			r, err := l.ping(control.Probe{To: to, Size: 56, Count: 1, Timeout: patience(time.Second)})
			ok = err == nil && r.Answered == 1
			if err != nil {
				time.Sleep(100 * time.Millisecond) // no route or no neighbour yet
			}
		}
		if !ok {
			l.t.Fatalf("%s does not answer the sender", to)
		}
	}
}

// ping sends echo requests from the sender.
func (l *lab) ping(p control.Probe) (r *control.ProbeResult, err error) {
	err = l.a.NS.Do(func() (err error) {
		r, err = peer.Ping(p)
		return err
	})
	return r, err
}

// udp sends datagrams from the sender.
func (l *lab) udp(p control.Probe) (r *control.ProbeResult, err error) {
	err = l.a.NS.Do(func() (err error) {
		r, err = peer.UDP(p)
		return err
	})
	return r, err
}

// echo answers datagrams on the sender's side until the test ends.
func (l *lab) echo(port int) {
	l.t.Helper()
	var c net.PacketConn
	l.a.Do(l.t, func() (err error) {
		c, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	})
	done := make(chan error, 1)
	go func() { done <- peer.Echo(c) }()
	l.t.Cleanup(func() {
		c.Close()
		if err := <-done; err != nil && !errors.Is(err, io.EOF) {
			l.t.Error(err)
		}
	})
}

// stats are the counters of a VM, and those of the queues together.
func (l *lab) stats(t *testing.T, name string) (vm api.VMStats, all api.Queue) {
	t.Helper()
	var s api.Stats
	if err := json.Unmarshal([]byte(l.must("stats", "--vm", name, "-o", "json")), &s); err != nil || len(s.VMs) != 1 {
		t.Fatal(err, s)
	}
	if s.Unexplained != 0 {
		t.Errorf("%d packets are unexplained", s.Unexplained)
	}
	for _, q := range s.Queues {
		all.Hangs += q.Hangs
		all.RxTooLong += q.RxTooLong
		all.RxNoBuffer += q.RxNoBuffer
		all.RxBroken += q.RxBroken
	}
	return s.VMs[0], all
}

// families are both ways from the sender to the guest and back.
func (l *lab) families() []family { return l.familiesOf(guestIPv4, guestIPv6, 1500) }

// familiesOf is the same for a guest with other addresses, or another MTU.
func (l *lab) familiesOf(ipv4, ipv6 string, mtu int) []family {
	const overIPv4, overIPv6 = 20 + 8, 40 + 8
	return []family{
		{"IPv4", l.a.IPv4.Addr().String(), ipv4, mtu - overIPv4},
		{"IPv6", l.a.IPv6.Addr().String(), ipv6, mtu - overIPv6},
	}
}

// family is one address family: the sender's and the guest's address, and the payload of ICMP or UDP that fills the guest's MTU.
type family struct {
	name          string
	sender, guest string
	full          int
}

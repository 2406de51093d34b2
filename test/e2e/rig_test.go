package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// product is the binary: the one RSCCTL_BINARY names, or built once by TestMain.
var product = os.Getenv("RSCCTL_BINARY")

func TestMain(m *testing.M) {
	if how := os.Getenv(rogueEnv); how != "" {
		os.Exit(rogue(how))
	}
	if product != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "rscctl-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	product = filepath.Join(dir, "rscctl")
	build := exec.Command("go", "build", "-o", product, "../../cmd/rscctl")
	build.Stderr = os.Stderr
	code := 1
	if err := build.Run(); err == nil {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// rig is one host (side B of the pair, whose interface is the uplink) with a controller, and a wire with a sender (side A).
type rig struct {
	binary string   // of the controllers to start, "" for the product
	flags  []string // of run, beside its places
	under  []string // a program that runs it, with its arguments
	stdin  *os.File // of that
	t      *testing.T
	net    *netnstest.Network
	dir    string
	run    *exec.Cmd
	log    *syncBuffer
	done   chan error
}

// newRig makes the namespaces and starts the controller.
func newRig(t *testing.T, o netnstest.Options) *rig {
	t.Helper()
	return newRigOf(t, "", o)
}

// newRigOf is newRig with a binary of its own.
func newRigOf(t *testing.T, binary string, o netnstest.Options) *rig {
	t.Helper()
	netnstest.Need(t, netnstest.AFXDP, netnstest.BPF, netnstest.TAP)
	r := &rig{binary: binary, t: t, net: netnstest.Pair(t, o), dir: t.TempDir()}
	r.begin()
	return r
}

// begin starts the controller, which ends with the test.
func (r *rig) begin() {
	r.t.Helper()
	r.start()
	r.t.Cleanup(func() {
		r.stop()
		if r.t.Failed() {
			r.t.Logf("controller's log:\n%s", r.log)
		}
	})
}

func (r *rig) places() []string {
	return []string{"--socket", filepath.Join(r.dir, "ctl.sock"), "--state", filepath.Join(r.dir, "state"), "--bpffs", filepath.Join(r.dir, "bpffs")}
}

// start runs a controller on the rig's places and waits until it answers.
func (r *rig) start() {
	r.t.Helper()
	r.launch()
	r.eventually("the controller answers", func() error {
		if out, code := r.cli("status"); code != 0 {
			return errors.New(out)
		}
		return nil
	})
}

// launch starts a controller and waits for nothing.
func (r *rig) launch() {
	r.t.Helper()
	r.log, r.done = &syncBuffer{}, make(chan error, 1)
	line := append(append(slices.Clone(r.under), cmp.Or(r.binary, product), "run"), append(r.places(), r.flags...)...)
	r.run = exec.Command(line[0], line[1:]...)
	r.run.Stderr, r.run.Stdout = r.log, r.log
	if r.stdin != nil {
		r.run.Stdin = r.stdin
	}
	if err := r.net.B.NS.Start(r.run); err != nil {
		r.t.Fatal(err)
	}
	cmd, done := r.run, r.done
	go func() { done <- cmd.Wait() }()
}

// stop ends the controller as an operator would, and waits.
func (r *rig) stop() { r.end(syscall.SIGTERM) }

// kill ends it as a crash would.
func (r *rig) kill() { r.end(syscall.SIGKILL) }

func (r *rig) end(sig os.Signal) {
	r.t.Helper()
	if r.run == nil {
		return
	}
	_ = r.run.Process.Signal(sig)
	select {
	case <-r.done:
	case <-time.After(15 * time.Second):
		_ = r.run.Process.Kill()
		r.t.Errorf("the controller did not end within 15 s of %v", sig)
	}
	r.run = nil
}

// cli runs a verb and returns both outputs and the exit code.
func (r *rig) cli(args ...string) (out string, code int) {
	r.t.Helper()
	cmd := exec.Command(product, args...)
	cmd.Env = append(os.Environ(), "RSCCTL_SOCKET="+filepath.Join(r.dir, "ctl.sock"))
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// must runs a verb that has to succeed.
func (r *rig) must(args ...string) string {
	r.t.Helper()
	out, code := r.cli(args...)
	if code != 0 {
		r.t.Fatalf("rscctl %s: exit %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// json runs a list verb with -o json into v.
func (r *rig) json(v any, args ...string) {
	r.t.Helper()
	out := r.must(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		r.t.Fatalf("rscctl %s -o json: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// attach attaches a VM to the uplink and returns its socket's path.
func (r *rig) attach(vm, mac string, extra ...string) (socket string) {
	r.t.Helper()
	socket = filepath.Join(r.dir, vm+".sock")
	r.must(append([]string{"attach", r.net.B.Dev, "--vm", vm, "--mac", mac, "--vhost-user", socket}, extra...)...)
	return socket
}

// guest is a front-end in a namespace of its own.
type guest struct {
	*stackguest.Guest
	side *netnstest.Side
}

// boot starts a guest on a socket. Its addresses are those given; its neighbours are found by ARP and ND.
func (r *rig) boot(cfg stackguest.Config, addrs ...string) *guest {
	r.t.Helper()
	ns := netnstest.Namespace(r.t)
	cfg.Tap = "tap0"
	g := &guest{side: &netnstest.Side{NS: ns, Dev: cfg.Tap, MAC: cfg.MAC}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := ns.Do(func() (err error) {
		if g.Guest, err = stackguest.Open(ctx, cfg); err != nil {
			return err
		}
		return bringUp(g.side, addrs...)
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := g.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { g.Close() })
	return g
}

// bringUp runs in a side's namespace: its interface, known by name, gets addresses, and the side knows them.
func bringUp(s *netnstest.Side, addrs ...string) error {
	link, err := netlink.LinkByName(s.Dev)
	if err != nil {
		return err
	}
	s.Index = link.Attrs().Index
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range addrs {
		p := netip.MustParsePrefix(a)
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			addr.Flags = 0x02 // IFA_F_NODAD
			s.IPv6 = p
		} else {
			s.IPv4 = p
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return nil
}

// eventually waits up to ten seconds for something to hold.
func (r *rig) eventually(what string, check func() error) {
	r.t.Helper()
	var err error
	for end := time.Now().Add(netnstest.Patience(10 * time.Second)); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	r.t.Fatalf("%s: %v\n%s", what, err, r.log)
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

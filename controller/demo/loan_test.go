package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/netns"
	"github.com/rscctl/rscctl/test/netnstest"
)

// stageVerb makes the test binary open a stage on the NICs of its arguments, for a test that kills the process that has it.
const stageVerb = "demo-stage"

// openForEver opens a stage, says so, and keeps it.
func openForEver(a, b string) error {
	s, err := OpenStage(context.Background(), StageOptions{Wire: [2]string{a, b}, Round: shortRound, Version: "test"})
	if err != nil {
		return err
	}
	fmt.Println("open")
	time.Sleep(time.Hour)
	return s.Close()
}

const shortRound = 300 * time.Millisecond

// borrowed are two NICs with a wire between them that lie in a namespace: those of RSCCTL_WIRE, or the ends of a veth pair.
type borrowed struct {
	home  *netns.NS
	names [2]string
}

// lend makes two NICs with settings that a demo changes, up and with addresses, and checks when the test ends that they are there and as
// they were.
func lend(t *testing.T) borrowed {
	t.Helper()
	need(t)
	b := borrowed{names: [2]string{"lent0", "lent1"}}
	var err error
	if netnstest.Wired() {
		b.names[0], b.names[1], _ = strings.Cut(os.Getenv(netnstest.WireEnv), ",")
		b.home, err = netns.Open("/proc/self/ns/net")
	} else {
		b.home, err = netns.Open(netnstest.Namespace(t).Path())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.home.Close() })
	b.do(t, func() error {
		if !netnstest.Wired() {
			la := netlink.NewLinkAttrs()
			la.Name = b.names[0]
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: b.names[1]}); err != nil {
				return err
			}
		}
		for i, name := range b.names {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetMTU(l, 1400+i)
			}
			if err == nil {
				err = netdev.SetOffload(name, "gro", i == 0)
			}
			if err == nil {
				err = netlink.AddrReplace(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, byte(1+i)), Mask: net.CIDRMask(24, 32)}, Label: name + ":x"})
			}
			if err == nil {
				err = netlink.AddrReplace(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(fmt.Sprintf("2001:db8::%d", 1+i)), Mask: net.CIDRMask(64, 128)}})
			}
			if err == nil && i == 0 { // the other one is down
				err = netlink.LinkSetUp(l)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
	before := b.state(t)
	t.Cleanup(func() {
		var after [2]lent
		eventually(t, "the NICs are at home as they were", func() bool {
			after = b.state(t)
			return reflect.DeepEqual(before, after)
		})
		if !reflect.DeepEqual(before, after) {
			t.Errorf("before %+v\nnow    %+v", before, after)
		}
	})
	return b
}

func (b borrowed) do(t *testing.T, fn func() error) {
	t.Helper()
	if err := b.home.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// state is what the NICs are like, zero while one is away. Of addresses, what the kernel makes of them by itself is left out.
func (b borrowed) state(t *testing.T) (s [2]lent) {
	t.Helper()
	b.do(t, func() error {
		return netdev.With(func(h *netdev.Handle) error {
			for i, name := range b.names {
				n, err := inspect(h, name)
				if errors.Is(err, netdev.ErrNoDevice) {
					return nil
				}
				if err != nil {
					return err
				}
				kept := n.Addresses
				n.Addresses = nil
				for _, a := range kept {
					if !a.IP.IsLinkLocalUnicast() {
						n.Addresses = append(n.Addresses, netlink.Addr{IPNet: a.IPNet, Label: a.Label, Scope: a.Scope})
					}
				}
				s[i] = n
			}
			return nil
		})
	})
	return s
}

// open opens a stage on them.
func (b borrowed) open(t *testing.T, ctx context.Context) (s *Stage, err error) {
	t.Helper()
	b.do(t, func() error {
		s, err = OpenStage(ctx, StageOptions{Wire: b.names, Round: shortRound, Version: "test"})
		return nil
	})
	return s, err
}

// A demo has two NICs instead of its veth pair, and gives them back as they were however it ends.
func TestNICsThatAreLentComeBack(t *testing.T) {
	for name, end := range map[string]func(s *Stage, cancel context.CancelFunc){
		"closed":            func(*Stage, context.CancelFunc) {},
		"interrupted":       func(_ *Stage, cancel context.CancelFunc) { cancel() },
		"controller killed": func(s *Stage, _ context.CancelFunc) { _ = s.d.control.cmd.Process.Kill() },
		"sender killed":     func(s *Stage, _ context.CancelFunc) { _ = s.d.sender.cmd.Process.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			b := lend(t)
			checkLeftovers(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s, err := b.open(t, ctx)
			if err != nil {
				t.Fatal(err)
			}
			xdp, xsk := s.Modes()
			if xdp != "native" || s.Wire() != b.names[0] {
				t.Errorf("XDP %s, AF_XDP %s, the sender's end is %s", xdp, xsk, s.Wire())
			}
			m, err := s.Round(settingOn)
			if err != nil || m.Gbps <= 0 || m.Segments <= 1 {
				t.Errorf("%+v, %v", m, err)
			}
			end(s, cancel)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// The process that has borrowed them is killed: the controller's gives them back.
func TestNICsThatAreLentSurviveTheirBorrower(t *testing.T) {
	b := lend(t)
	checkLeftovers(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, stageVerb, b.names[0], b.names[1])
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	b.do(t, cmd.Start)
	text := make([]byte, 16)
	if n, err := out.Read(text); err != nil || string(text[:n]) != "open\n" {
		t.Errorf("%q, %v", text[:n], err)
	}
	if b.state(t)[0].Name != "" {
		t.Error("the first NIC has not left")
	}
	_ = cmd.Process.Signal(syscall.SIGKILL)
	_ = cmd.Wait()
}

// What cannot be borrowed is refused in one line that names it, and nothing is made.
func TestNICsThatAreNotLent(t *testing.T) {
	b := lend(t)
	checkLeftovers(t)
	open := func(names [2]string, want error, text string) {
		t.Helper()
		_, err := borrowed{b.home, names}.open(t, t.Context())
		if !errors.Is(err, want) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v, want %v and %q", names, err, want, text)
		}
	}
	open([2]string{"nowhere7", b.names[1]}, netdev.ErrNoDevice, "nowhere7")
	open([2]string{b.names[0], "nowhere7"}, netdev.ErrNoDevice, "nowhere7")
	open([2]string{b.names[0], b.names[0]}, errOneNIC, b.names[0])
	b.do(t, func() error {
		l, err := netlink.LinkByName(b.names[0])
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(198, 51, 100, 0), Mask: net.CIDRMask(24, 32)}, Protocol: 4})
	})
	open(b.names, errInUse, "198.51.100.0/24")
	b.do(t, func() error {
		return netlink.RouteDel(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4(198, 51, 100, 0), Mask: net.CIDRMask(24, 32)}})
	})
}

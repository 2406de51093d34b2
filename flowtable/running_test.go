package flowtable_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/flowtable"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// The cases of the kernel's GRO self-test against the running product: `rscctl run` on one end of a veth pair, a raw socket
// on the other as in the self-test's sender, and a guest that is a vhost-user front-end, whose ring tells lengths and headers
// of what arrived.

const (
	// runningHold is the longest there is: far longer than a train takes to send.
	runningHold = 10 * time.Millisecond
	// runningTries is how often a case may be sent: a sender that loses its processor for longer than the hold proves nothing.
	runningTries = 8
	runningRing  = 256
	runningBuf   = 4096
)

// product is a controller with a wire to it.
type product struct {
	t      *testing.T
	wire   *netnstest.Network
	in     *netnstest.Injector
	dir    string
	binary string
	log    bytes.Buffer
}

func startProduct(t *testing.T, mtu int) *product {
	t.Helper()
	netnstest.Need(t, netnstest.AFXDP, netnstest.BPF)
	p := &product{t: t, binary: os.Getenv("RSCCTL_BINARY")}
	var err error
	if p.dir, err = os.MkdirTemp("", "rscctl-"); err != nil { // t.TempDir may be too long for a socket
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(p.dir) })
	if p.binary == "" {
		p.binary = filepath.Join(p.dir, "rscctl")
		if out, err := exec.Command("go", "build", "-o", p.binary, "../cmd/rscctl").CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	p.wire = netnstest.Pair(t, netnstest.Options{NoIPv4: true, NoIPv6: true, MTU: mtu})
	p.in = p.wire.A.Injector(t)
	p.run()
	return p
}

// run starts the controller and waits until it answers.
func (p *product) run() {
	cmd := exec.Command(p.binary, "run", "--socket", p.dir+"/ctl", "--state", p.dir+"/state", "--bpffs", p.dir+"/bpffs")
	cmd.Stderr = &p.log
	if err := p.wire.B.NS.Start(cmd); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil {
			p.t.Errorf("controller: %v", err)
		}
		if p.t.Failed() {
			p.t.Logf("controller's log:\n%s", &p.log)
		}
	})
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		out, err := p.try("status")
		if err == nil {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("the controller does not answer: %v: %s", err, out)
		}
	}
}

func (p *product) try(args ...string) (string, error) {
	cmd := exec.Command(p.binary, args...)
	cmd.Env = append(os.Environ(), "RSCCTL_SOCKET="+p.dir+"/ctl")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// arrival is one frame in the guest's ring.
type arrival struct {
	hdr   virtio.NetHdr
	frame []byte
}

// ringGuest is a guest that is only a receive queue.
type ringGuest struct {
	t    *testing.T
	f    *user.Frontend
	mac  [6]byte
	bufs []vring.Buffer
	mem  [][]byte
}

// attach makes a VM of a profile, with its guest running.
func (p *product) attach(name string, mac [6]byte, profile flowtable.Profile) *ringGuest {
	p.t.Helper()
	socket := filepath.Join(p.dir, name)
	out, err := p.try("attach", p.wire.B.Dev, "--vm", name, "--mac", net.HardwareAddr(mac[:]).String(),
		"--vhost-user", socket, "--hold", runningHold.String(), "--profile", profile.String())
	if err != nil {
		p.t.Fatalf("attach: %v: %s", err, out)
	}
	features := vhost.DefaultFeatures &^ (1<<virtio.FRSCExt | 1<<virtio.FGuestECN)
	if profile == flowtable.RSC {
		features |= 1 << virtio.FRSCExt
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	g := &ringGuest{t: p.t, mac: mac}
	g.f, err = user.OpenFrontend(ctx, user.FrontendConfig{Socket: socket, Features: features, RingSize: runningRing, Memory: runningRing*runningBuf + 1<<20})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { g.f.Close() })
	for i := range uint64(runningRing) {
		gpa, mem, err := g.f.Alloc(runningBuf, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		g.bufs = append(g.bufs, vring.Buffer{Addr: gpa, Len: runningBuf, Writable: true})
		g.mem = append(g.mem, mem)
		if err := g.f.RX(0).Driver.Add(g.bufs[i:i+1], i); err != nil {
			p.t.Fatal(err)
		}
	}
	g.f.RX(0).Driver.Publish()
	if err := g.f.Start(); err != nil {
		p.t.Fatal(err)
	}
	return g
}

// next waits for one frame; nil: none came in time.
func (g *ringGuest) next() *arrival {
	d := g.f.RX(0).Driver
	var a arrival
	for end, left := time.Now().Add(patience), 1; left > 0; {
		i, n, ok := d.Used()
		if !ok {
			if time.Now().After(end) {
				return nil
			}
			time.Sleep(time.Millisecond)
			continue
		}
		b := g.mem[i][:n]
		if len(a.frame) == 0 {
			if err := a.hdr.Decode(b); err != nil {
				g.t.Fatal(err)
			}
			left = int(a.hdr.NumBuffers)
			b = b[virtio.HdrSize:]
		}
		a.frame = append(a.frame, b...)
		left--
		if err := d.Add(g.bufs[i:i+1], i); err != nil {
			g.t.Fatal(err)
		}
		d.Publish()
	}
	if err := virtio.CheckRx(&a.hdr, a.frame, g.f.Features()); err != nil {
		g.t.Errorf("a frame against the rules: %v: %+v", err, a.hdr)
	}
	return &a
}

// send puts a case on the wire, then a FIN that ends it, and returns the payload lengths of what arrived before that.
func (g *ringGuest) send(p *product, steps []any, end pt.TCP) string {
	g.t.Helper()
	put := func(f []byte) {
		copy(f, g.mac[:])
		if err := p.in.Send(f); err != nil {
			g.t.Fatal(err)
		}
	}
	for _, s := range steps {
		switch s := s.(type) {
		case pt.TCP:
			put(s.Frame())
		case []byte:
			put(bytes.Clone(s))
		case wait:
			time.Sleep(time.Duration(s))
		}
	}
	put(end.Frame())
	var got []string
	for {
		a := g.next()
		if a == nil {
			g.t.Fatalf("the end of the case never came, only %v", got)
		}
		q, err := pt.Read(a.frame)
		if err == nil && q.Seq == end.Seq {
			return strings.Join(got, ",")
		}
		n := 100 // not for Read: then it is a packet alone, and how much they carry the case knows
		if err == nil {
			n = len(q.Payload)
		}
		got = append(got, fmt.Sprint(n))
	}
}

// largeOnWire fills an IP length exactly, or by one byte more, with segments of an MTU of 1500, below the 4,096 of the self-test. The second
// remainder does not follow the first.
func largeOnWire(more int) func(b pt.TCP) []any {
	return func(b pt.TCP) (s []any) {
		mss, room := 1460, flowtable.MaxIPLength-40
		if b.V6 {
			mss, room = 1440, flowtable.MaxIPLength-60
		}
		n, rem := room/mss, room%mss
		for i := range n {
			s = append(s, at(b, uint32(i*mss), mss))
		}
		return append(s, at(b, uint32(n*mss), rem+more), at(b, uint32((n+1)*mss), rem+more))
	}
}

// runningCases are the self-test's, those that fit the wire: with an MTU of 9000 its segments of 4,096 bytes, too.
func runningCases(mtu int) []selfCase {
	var list []selfCase
	for _, c := range selfCases() {
		if large := strings.HasPrefix(c.name, "large_"); c.set == nil && (!large || mtu > 4200) {
			list = append(list, c)
		}
	}
	if mtu > 4200 {
		return list
	}
	return append(list,
		selfCase{name: "large_max", family: 4, in: largeOnWire(0), gro: "65495,1255"},
		selfCase{name: "large_max", family: 6, in: largeOnWire(0), gro: "65475,675"},
		selfCase{name: "large_rem", family: 4, in: largeOnWire(1), gro: "64240,1256,1256"},
		selfCase{name: "large_rem", family: 6, in: largeOnWire(1), gro: "64800,676,676"},
	)
}

func TestRunningProductPassesTheKernelsSelftest(t *testing.T) {
	for _, mtu := range []int{1500, 9000} {
		t.Run(fmt.Sprint("MTU ", mtu), func(t *testing.T) {
			if mtu > 1500 {
				netnstest.Need(t, netnstest.Kernel(6, 6))
			}
			runningSelftest(t, mtu)
		})
	}
}

func runningSelftest(t *testing.T, mtu int) {
	p := startProduct(t, mtu)
	guests := map[flowtable.Profile]*ringGuest{
		flowtable.GRO: p.attach("gro", [6]byte{2, 0, 0, 0, 0, 0x10}, flowtable.GRO),
		flowtable.RSC: p.attach("rsc", [6]byte{2, 0, 0, 0, 0, 0x11}, flowtable.RSC),
	}
	for _, c := range runningCases(mtu) {
		for _, v6 := range []bool{false, true} {
			if c.family == 4 && v6 || c.family == 6 && !v6 {
				continue
			}
			for profile, g := range guests {
				t.Run(fmt.Sprintf("%s ipv6=%v %v", c.name, v6, profile), func(t *testing.T) {
					g := &ringGuest{t: t, f: g.f, mac: g.mac, bufs: g.bufs, mem: g.mem}
					b := pt.TCP{V6: v6, Seq: 100, Ack: 100, TTL: 8}
					want := c.gro
					if profile == flowtable.RSC && c.rsc != "" {
						want = c.rsc
					}
					var got string
					for range runningTries {
						if got = g.send(p, c.in(b), at(b, 1<<20, 0, flags(pt.ACK|pt.FIN))); got == want {
							return
						}
					}
					t.Errorf("arrived %s, want %s", got, want)
				})
			}
		}
	}
}

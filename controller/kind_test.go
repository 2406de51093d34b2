package controller

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/controller/report"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// countingKind is a third kind of port, as small as one can be: a VM that takes every frame and counts it. All of it is here,
// and the controller learns of it by one line.
type countingKind struct {
	frames, segments atomic.Uint64
	policies, checks int
	plans, closes    int
	boom             atomic.Bool // the next frame makes its guest panic
	gone             error       // why the VM cannot be served any more
}

func (k *countingKind) plan(*Controller, *attachment, *netdev.Facts, bool) (changes, warnings []string, err error) {
	k.plans++
	return []string{"count frames"}, nil, nil
}

func (k *countingKind) open(a *attachment) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running = true
	for _, q := range a.up.queues {
		if err := q.StartPort(a.idx, &countingGuest{k: k, nic: q.sock}, nil, portConfig(a.policy, k.features())); err != nil {
			return err
		}
	}
	if err := a.up.prog.SetPort(a.key(), bpf.PortValue{Port: a.id(), Flags: bpf.FlagSteer}); err != nil {
		return err
	}
	return a.up.setSteering(a.idx, true)
}

func (k *countingKind) close(*attachment) error { k.closes++; return nil }
func (k *countingKind) enforce(a *attachment, p api.Policy) error {
	k.policies++
	return a.setRules(p)
}
func (k *countingKind) uplinkMTU(int)                      {}
func (k *countingKind) check(*attachment, *look) error     { k.checks++; return k.gone }
func (k *countingKind) prepare(*Controller, *netdev.Facts) {}
func (k *countingKind) pack(a *attachment, _ *parcel.Parcel, _ *packedVM) error {
	return a.up.each(func(q *queue) error { return q.StopPort(a.idx) })
}
func (k *countingKind) keep(*attachment, bag, *packedVM) error             { return nil }
func (k *countingKind) show(*attachment, *parcel.Parcel, *packedVM) error  { return nil }
func (k *countingKind) build(*attachment, *parcel.Parcel, *packedVM) error { return nil }
func (k *countingKind) fits(*packedVM) bool                                { return true }
func (k *countingKind) takeOver(a *attachment) error                       { return k.open(a) }
func (k *countingKind) forsake(*attachment) error                          { return nil }
func (k *countingKind) features() virtio.Features {
	return virtio.Mask(virtio.FGuestCsum) | virtio.Mask(virtio.FGuestTSO4)
}
func (k *countingKind) bridged() bool           { return false }
func (k *countingKind) claim() string           { return "" }
func (k *countingKind) watched() int            { return 0 }
func (k *countingKind) restless() time.Duration { return 0 }
func (k *countingKind) feed() api.Feed          { return "counting" }
func (k *countingKind) to() string              { return "nowhere" }
func (k *countingKind) describe(_ *attachment, vm *report.VM) error {
	vm.Port.State = api.PortRunning
	vm.Interrupts = k.frames.Load()
	return nil
}

// countingGuest is its way in: one method more than what it is about.
type countingGuest struct {
	k   *countingKind
	nic datapath.NIC
	put []*datapath.Frame
}

func (g *countingGuest) Begin(int) bool                { g.put = g.put[:0]; return true }
func (g *countingGuest) Put(f *datapath.Frame) error   { g.put = append(g.put, f); return nil }
func (g *countingGuest) Walked() int                   { return 0 }
func (g *countingGuest) Reap() int                     { return 0 }
func (g *countingGuest) Arm(bool) (fd int, ready bool) { return -1, false }
func (g *countingGuest) Ack()                          {}
func (g *countingGuest) MaxFrame() int                 { return 0 }
func (g *countingGuest) Check(bool) error              { return nil }
func (g *countingGuest) Close() (int, error)           { return 0, nil }
func (g *countingGuest) Commit() (int, error) {
	for _, f := range g.put {
		if g.k.boom.Swap(false) {
			panic("boom")
		}
		g.k.frames.Add(1)
		g.k.segments.Add(uint64(len(f.Refs)))
		for _, r := range f.Refs {
			g.nic.Free(r)
		}
	}
	return len(g.put), nil
}

// thirdRig is a controller with the third kind, on side B of a pair, and one VM of it.
type thirdRig struct {
	t   *testing.T
	net *netnstest.Network
	c   *Controller
	k   *countingKind
}

// withThird runs fn in the namespace of side B. The one line that tells the controller of a new kind is in it.
func withThird(t *testing.T, fn func(r *thirdRig) error) {
	netnstest.Need(t, netnstest.AFXDP)
	r := &thirdRig{t: t, net: netnstest.Pair(t, netnstest.Options{NoIPv6: true}), k: &countingKind{}}
	dir := t.TempDir()
	r.net.B.Do(t, func() (err error) {
		if r.c, err = New(Options{State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "s"), BPFFS: filepath.Join(dir, "bpf"), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}); err != nil {
			return err
		}
		defer func() {
			if err := r.c.shutdown(); err != nil {
				t.Error(err)
			}
		}()
		r.c.restored = true
		r.c.kinds = append(r.c.kinds, kindOf{wanted: func(r *api.AttachRequest) bool { return r.VhostUser+r.Tap == "" }, make: func(*api.AttachRequest) (kind, error) { return r.k, nil }})
		resp, err := r.c.Attach(api.AttachRequest{Iface: r.net.B.Dev, VM: "third", MAC: "52:54:00:00:00:0a"})
		if err != nil {
			return err
		}
		if r.k.plans != 1 || resp.Changes[len(resp.Changes)-1] != "count frames" {
			t.Errorf("planned %d times: %q", r.k.plans, resp.Changes)
		}
		return fn(r)
	})
}

// send sends ten segments to the VM.
func (r *thirdRig) send() {
	p := pt.TCP{DstMAC: [6]byte{0x52, 0x54, 0, 0, 0, 0x0a}, Len: 1000}
	r.net.A.Inject(r.t, pt.Frames(p.Train(10)...)...)
}

func (r *thirdRig) eventually(what string, done func() bool) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s: not within ten seconds", what)
		}
	}
}

// A new kind of port is one file and one line: it attaches, gets merged frames, follows policies, is looked at, described and
// detached like those that the product has.
func TestAThirdKindOfPortIsOneFileAndOneLine(t *testing.T) {
	withThird(t, func(r *thirdRig) error {
		c, k := r.c, r.k
		r.send()
		r.eventually("ten segments", func() bool { return k.segments.Load() == 10 })
		off := false
		if _, err := c.SetPolicy(api.PolicyRequest{VM: "third", Patch: api.PolicyPatch{Coalesce: &off}}); err != nil || k.policies != 1 {
			t.Errorf("policy: %v, enforced %d times", err, k.policies)
		}
		c.mu.Lock()
		c.checkAll()
		c.mu.Unlock()
		st, err := c.Status("")
		if err != nil || len(st.Interfaces) != 1 || st.Interfaces[0].Ports[0].Feed != "counting" || st.Interfaces[0].Ports[0].State != api.PortRunning || k.checks == 0 {
			t.Errorf("status %+v, %v; looked at %d times", st.Interfaces, err, k.checks)
		}
		s, err := c.Stats("third")
		if err != nil || s.VMs[0].Interrupts != k.frames.Load() || s.VMs[0].GuestFrames != k.frames.Load() || s.Unexplained != 0 {
			t.Errorf("stats %+v, %v", s.VMs, err)
		}
		if _, err := c.Detach(api.DetachRequest{Iface: r.net.B.Dev}); err != nil || k.closes != 1 {
			t.Errorf("detach: %v, closed %d times", err, k.closes)
		}
		return nil
	})
}

// A fault of ours in a worker ends that worker and nothing else: it is shown, and made anew with its interface.
func TestAWorkersFaultIsMendedByANewWorker(t *testing.T) {
	withThird(t, func(r *thirdRig) error {
		r.k.boom.Store(true)
		r.send()
		r.eventually("the worker asks for a look", func() bool { return len(r.c.trouble) > 0 })
		st, err := r.c.Status("")
		if err != nil || st.Interfaces[0].Queues[0].Worker != api.WorkerFailed {
			t.Errorf("a worker that has ended is shown as %+v, %v", st.Interfaces[0].Queues, err)
		}
		r.c.mu.Lock()
		r.c.checkAll()
		if len(r.c.waiting) != 1 {
			t.Errorf("waiting: %v", r.c.waiting)
		}
		r.c.wakeWaiting()
		r.c.mu.Unlock()
		if st, err = r.c.Status(""); err != nil || len(st.Waiting) != 0 || st.Interfaces[0].Queues[0].Worker != api.WorkerRunning {
			t.Fatalf("after the mend: %+v, %v", st, err)
		}
		r.k.segments.Store(0)
		r.send()
		r.eventually("frames come again", func() bool { return r.k.segments.Load() == 10 })
		return nil
	})
}

// What fits two kinds, or none, is refused in words before the host is looked at.
func TestARequestFitsOneKind(t *testing.T) {
	c := &Controller{kinds: builtinKinds()}
	for _, r := range []api.AttachRequest{
		{}, {VhostUser: "/s", Tap: "vnet0"}, {VhostUser: "/s", Domain: "db1"}, {Tap: "eth1"}, {Tap: "vnet0", AllowSpoof: true},
		{Tap: "vnet0", AnyMemory: true}, {Domain: "db1", TrustTap: true}, {VhostUser: "/s", SocketMode: "9"}, {VhostUser: "/s", MTU: 67}, {VhostUser: "/s", MTU: 65536}, {Tap: "vnet0", MTU: 1500}, {VhostUser: "/s", SocketOwner: "nobody-of-this-name"},
	} {
		r.Iface, r.VM, r.MAC = "eth1", "web", "52:54:00:00:00:01"
		if _, err := c.checkRequest(r); !errors.Is(err, ErrUsage) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, r := range []api.AttachRequest{{VhostUser: "/s", SocketMode: "0600", SocketOwner: "0:0", AnyMemory: true, MTU: 1500}, {Tap: "vnet0", TrustTap: true}, {Domain: "db1"}} {
		r.Iface, r.VM, r.MAC = "eth1", "web", "52:54:00:00:00:01"
		if a, err := c.checkRequest(r); err != nil || a.kind == nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// A look that gives up the last VM of an interface, and so closes it, does not look at what it has closed.
func TestALookEndsWithTheInterface(t *testing.T) {
	withThird(t, func(r *thirdRig) error {
		r.send()
		r.eventually("ten segments", func() bool { return r.k.segments.Load() == 10 })
		r.k.gone = errMoved
		r.c.mu.Lock()
		defer r.c.mu.Unlock()
		r.c.checkAll() // panics where it looks on
		if len(r.c.uplinks) != 0 || len(r.c.waiting) != 1 {
			t.Errorf("%d interfaces, waiting: %v", len(r.c.uplinks), r.c.waiting)
		}
		return nil
	})
}

// A fault of ours in the look once a second costs that look: it is logged, nothing stays locked, and the next look is made.
func TestAFaultInALookCostsThatLook(t *testing.T) {
	var log bytes.Buffer
	c := &Controller{log: slog.New(slog.NewTextHandler(&log, nil))}
	c.guarded(func() { panic("boom") })
	if !strings.Contains(log.String(), "internal fault") || !strings.Contains(log.String(), "kind_test.go") {
		t.Errorf("logged: %s", log.String())
	}
	again := false
	c.guarded(func() { again = true })
	if !again {
		t.Error("no look after it")
	}
}

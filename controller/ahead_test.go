package controller

import (
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/controller/parcel"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
)

// What changes between the two parcels of a hand-over is as the second says, and what has not changed is what was built of the first: the
// heir has the VMs, policies and connections of the moment in which the controller before stopped, and frames reach them.
func TestAnHeirHasWhatHasChangedSinceTheFirstParcel(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP, netnstest.Kernel(6, 4))
	off := false
	for name, c := range map[string]struct {
		change func(t *testing.T, h *handedOver)
		kept   []string // VMs that are what was built of the first parcel
		all    []string
	}{
		"nothing": {func(*testing.T, *handedOver) {}, []string{"a", "b"}, []string{"a", "b"}},
		"a policy": {func(t *testing.T, h *handedOver) {
			if _, err := h.old.SetPolicy(api.PolicyRequest{VM: "a", Patch: api.PolicyPatch{Coalesce: &off}}); err != nil {
				t.Error(err)
			}
		}, []string{"b"}, []string{"a", "b"}},
		"a VM went":  {func(t *testing.T, h *handedOver) { h.detach(t, "a") }, []string{"b"}, []string{"b"}},
		"a VM came":  {func(t *testing.T, h *handedOver) { h.attach(t, "c", 3) }, []string{"a", "b"}, []string{"a", "b", "c"}},
		"came again": {func(t *testing.T, h *handedOver) { h.detach(t, "a"); h.attach(t, "a", 1) }, []string{"b"}, []string{"a", "b"}},
		"another in its place": {func(t *testing.T, h *handedOver) { h.detach(t, "a"); h.attach(t, "c", 1) },
			[]string{"b"}, []string{"b", "c"}},
		"a front-end connected": {func(t *testing.T, h *handedOver) { h.connect(t, "a") }, []string{"b"}, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := &handedOver{net: netnstest.Pair(t, netnstest.Options{NoIPv6: true}), dir: t.TempDir()}
			h.net.B.Do(t, func() error {
				h.begin(t)
				c.change(t, h)
				want := map[string]api.Policy{}
				for _, u := range h.old.uplinks {
					for vm, a := range u.vms {
						want[vm] = a.policy
					}
				}
				heir := h.end(t)
				got := map[string]api.Policy{}
				var kept []string
				for _, u := range heir.uplinks {
					for vm, a := range u.vms {
						got[vm] = a.policy
						if h.built[vm] == a {
							kept = append(kept, vm)
						}
					}
				}
				if slices.Sort(kept); !slices.Equal(kept, c.kept) || !slices.Equal(slices.Sorted(maps.Keys(got)), c.all) {
					t.Errorf("VMs %v, of the first parcel %v", slices.Sorted(maps.Keys(got)), kept)
				}
				for vm, p := range want {
					if got[vm].Coalesce != p.Coalesce {
						t.Errorf("VM %s: policy %+v, want %+v", vm, got[vm], p)
					}
				}
				for _, vm := range c.all {
					h.reach(t, heir, vm)
				}
				return nil
			})
		})
	}
}

// What was built and is not needed, because the controller before goes on, takes nothing from it.
func TestWhatWasBuiltAheadIsGivenUp(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP, netnstest.Kernel(6, 4))
	h := &handedOver{net: netnstest.Pair(t, netnstest.Options{NoIPv6: true}), dir: t.TempDir()}
	h.net.B.Do(t, func() error {
		h.begin(t)
		h.heir.leavePlaces()
		for vm := range h.built {
			h.reach(t, h.old, vm)
		}
		return h.old.shutdown()
	})
}

// An heir that has other sizes of flow maps makes them when it goes on, and not while the controller before works.
func TestFlowMapsOfAnotherSizeAreNotMadeAhead(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP, netnstest.Kernel(6, 4))
	h := &handedOver{net: netnstest.Pair(t, netnstest.Options{NoIPv6: true}), dir: t.TempDir(), flows: 64}
	h.net.B.Do(t, func() error {
		h.begin(t)
		for _, vm := range []string{"a", "b"} {
			if !h.old.flows.Has(vm) || h.heir.flows.Has(vm) {
				t.Errorf("VM %s: its flow map was made anew", vm)
			}
		}
		heir := h.end(t)
		for _, vm := range []string{"a", "b"} {
			h.reach(t, heir, vm)
		}
		return nil
	})
}

// An heir that has the first parcel is ended when an interface is given back: as long as it had the sockets, nobody could attach it again.
func TestAnInterfaceThatIsGivenBackEndsAnHeir(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP, netnstest.Kernel(6, 4))
	h := &handedOver{net: netnstest.Pair(t, netnstest.Options{NoIPv6: true}), dir: t.TempDir()}
	h.net.B.Do(t, func() error {
		h.begin(t)
		one := &heir{conn: &net.UnixConn{}, pidfd: -1}
		h.old.shown[one] = true
		h.detach(t, "a")
		if one.withdrawn {
			t.Error("ended for a VM of many")
		}
		h.detach(t, "b")
		if !one.withdrawn || len(h.old.shown) != 0 {
			t.Error("not ended")
		}
		h.heir.leavePlaces() // as its end does
		h.attach(t, "a", 1)
		h.reach(t, h.old, "a")
		return h.old.shutdown()
	})
}

// handedOver is a controller with VMs a and b, and its heir, which has the first parcel.
type handedOver struct {
	net       *netnstest.Network
	dir       string
	old, heir *Controller
	flows     int                    // Options.Flows of the heir
	built     map[string]*attachment // of the heir
	index     map[string]byte        // last bytes of the VMs' addresses
	conns     []net.Conn
}

func (h *handedOver) begin(t *testing.T) {
	t.Helper()
	opt := Options{State: filepath.Join(h.dir, "state"), Socket: filepath.Join(h.dir, "s"), BPFFS: filepath.Join(h.dir, "bpf"), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	var err error
	if h.old, err = New(opt); err != nil {
		t.Fatal(err)
	}
	h.old.restored, h.index, h.built = true, map[string]byte{}, map[string]*attachment{}
	h.attach(t, "a", 1)
	h.attach(t, "b", 2)
	p, s := h.parcel(t, func(p *parcel.Parcel) (packed, error) { return h.old.preview(p) })
	defer p.Close()
	opt.Flows = h.flows
	h.heir = newController(opt)
	if h.heir.watcher, err = netdev.NewWatcher(); err == nil {
		_, err = h.heir.flowRows()
	}
	if err == nil {
		err = h.heir.rehearse(p, &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range h.heir.ahead.uplinks {
		maps.Copy(h.built, u.vms)
	}
	if len(h.built) != 2 && h.flows == 0 {
		t.Fatalf("built ahead: %v", h.built)
	}
}

// parcel is what fn describes, as it travels.
func (h *handedOver) parcel(t *testing.T, fn func(p *parcel.Parcel) (packed, error)) (*parcel.Parcel, packed) {
	t.Helper()
	p := parcel.New("")
	s, err := fn(p)
	if err == nil {
		p.State, err = json.Marshal(s)
	}
	if err == nil {
		s, err = readPacked(p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p, s
}

// end hands the second parcel over.
func (h *handedOver) end(t *testing.T) *Controller {
	t.Helper()
	p, left, _, err := h.old.pack()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	h.old.release(left)
	s, err := readPacked(p)
	if err == nil {
		err = h.heir.goOn(p, &s, allOrNothing, func() {})
	}
	if err != nil {
		t.Fatal(err)
	}
	h.old.leavePlaces()
	t.Cleanup(func() {
		for _, c := range h.conns {
			c.Close()
		}
		h.net.B.Do(t, func() error { return h.heir.shutdown() })
	})
	return h.heir
}

func (h *handedOver) attach(t *testing.T, vm string, n byte) {
	t.Helper()
	h.index[vm] = n
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, n}
	if _, err := h.old.Attach(api.AttachRequest{Iface: h.net.B.Dev, VM: vm, MAC: mac.String(), VhostUser: filepath.Join(h.dir, vm)}); err != nil {
		t.Fatal(err)
	}
}

func (h *handedOver) detach(t *testing.T, vm string) {
	t.Helper()
	if _, err := h.old.Detach(api.DetachRequest{Iface: h.net.B.Dev, VM: vm}); err != nil {
		t.Fatal(err)
	}
}

// connect is a front-end that says nothing.
func (h *handedOver) connect(t *testing.T, vm string) {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(h.dir, vm))
	if err != nil {
		t.Fatal(err)
	}
	h.conns = append(h.conns, c)
	for end := time.Now().Add(10 * time.Second); h.vm(h.old, vm).Port.State == api.PortWaiting; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no front-end is seen")
		}
	}
}

type seenVM struct {
	Port  api.Port
	Stats api.VMStats
}

func (h *handedOver) vm(c *Controller, name string) (v seenVM) {
	st, _ := c.Status("")
	for _, i := range st.Interfaces {
		for _, p := range i.Ports {
			if p.VM == name {
				v.Port = p
			}
		}
	}
	if s, err := c.Stats(name); err == nil && len(s.VMs) == 1 {
		v.Stats = s.VMs[0]
	}
	return v
}

// reach sends a VM, which has no guest, frames until they are counted.
func (h *handedOver) reach(t *testing.T, c *Controller, vm string) {
	t.Helper()
	was := h.vm(c, vm).Stats.RxPackets
	p := pt.TCP{DstMAC: [6]byte{0x52, 0x54, 0, 0, 0, h.index[vm]}, Len: 100}
	for end := time.Now().Add(10 * time.Second); h.vm(c, vm).Stats.RxPackets == was; {
		if time.Now().After(end) {
			t.Fatalf("VM %s: no frame reaches it", vm)
		}
		h.net.A.Inject(t, pt.Frames(p.Train(1)...)...)
	}
}

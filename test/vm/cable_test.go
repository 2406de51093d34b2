package vm

import (
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable"
	"github.com/rscctl/rscctl/flowtable/checksum"
	"github.com/rscctl/rscctl/flowtable/packet"
	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/virtio"
)

// Two real guests on the two ends of a cable made of our parts: what one sends is completed and segmented, coalesced
// again and put into the other's buffers. No network of this machine is involved and no privilege is needed. During the second
// transfer the ports are handed over again and again, which neither QEMU nor the guests notice.
func TestTwoGuestsOnACable(t *testing.T) {
	needVM(t)
	c := newCable(t)
	a := c.guest(t, 0, "10.79.0.1/24", "fd79::1/64")
	b := c.guest(t, 1, "10.79.0.2/24", "fd79::2/64")
	do(t, b, 10*time.Second, control.OpListen, control.Listen{Port: guestPort}, nil)
	for i, to := range []string{"10.79.0.2:5001", "[fd79::2]:5001"} {
		const bytes = 60e6
		seed := uint64(61 + i)
		c.handing.Store(i > 0)
		before, sender := nic(t, b), nic(t, a)
		got := receiveAsync(t, b, control.Receive{Port: guestPort, Timeout: transferWithin})
		var sent control.Transfer
		do(t, a, transferWithin, control.OpSend, control.Send{To: to, Bytes: bytes, Seed: seed, Timeout: transferWithin}, &sent)
		checkTransfer(t, "from guest to guest, "+to, <-got, seed, bytes)
		f, after := framesBetween(before, nic(t, b)), nic(t, a)
		t.Log(f)
		// How much comes at once depends on the sending guest: a slow one makes small TSO frames.
		if f.mean() < 4*maxFrame {
			t.Errorf("mean guest frame %.0f bytes: hardly anything was merged", f.mean())
		}
		noErrors(t, f)
		if out := after.Stats["tx_packets"] - sender.Stats["tx_packets"]; out > bytes/3000 {
			t.Errorf("the sending guest made %d frames: it did not leave segmentation to us", out)
		}
	}
	if err := c.end(); err != nil {
		t.Error(err)
	}
	for _, p := range c.ports {
		if s := p.State(); s.Connections != 1 || s.Name != vhost.StateRunning {
			t.Errorf("%d connections, %s: %s", s.Connections, s.Name, s.Reason)
		}
	}
	if c.handed < 20 {
		t.Errorf("%d hand-overs", c.handed)
	}
	t.Logf("%d hand-overs", c.handed)
}

// cable joins two ports. Everything but the hooks runs on its one goroutine.
type cable struct {
	sockets [2]string
	configs [2]vhost.Config
	ports   [2]*vhost.Port
	handing atomic.Bool // ports are handed over, each four times a second
	handed  int
	next    time.Time // for the next one
	table   *flowtable.Table
	started chan int // ports whose rings have (re)started, for the table's configuration
	stop    chan struct{}
	done    chan error
	bad     error // the first frame that broke a rule
}

func newCable(t *testing.T) *cable {
	t.Helper()
	c := &cable{started: make(chan int, 64), stop: make(chan struct{}), done: make(chan error, 1)}
	table, err := flowtable.New(flowtable.Config{Slots: 256, MaxHeld: 4096, Ports: 2}, c)
	if err != nil {
		t.Fatal(err)
	}
	c.table = table
	dir := t.TempDir()
	for i := range c.ports {
		c.sockets[i] = filepath.Join(dir, []string{"a", "b"}[i])
		c.configs[i] = vhost.Config{
			Name: "cable", Socket: c.sockets[i], UID: -1, GID: -1, MaxPairs: 1, Logf: t.Logf,
			Hooks: vhost.Hooks{Started: func(*vhost.Port) { c.started <- i }},
		}
		p, err := vhost.NewPort(c.configs[i])
		if err != nil {
			t.Fatal(err)
		}
		c.ports[i] = p
	}
	go func() { c.done <- c.run() }()
	t.Cleanup(func() {
		_ = c.end()
		for _, p := range c.ports {
			p.Close()
		}
	})
	return c
}

// handOver packs each port and goes on with another one.
func (c *cable) handOver() error {
	for i, p := range c.ports {
		st, files, err := p.Pack()
		if errors.Is(err, vhost.ErrBusy) {
			continue
		}
		if err != nil {
			return err
		}
		if c.ports[i], err = vhost.Unpack(c.configs[i], st, files); err != nil {
			c.ports[i] = p
			return err
		}
		c.handed++
	}
	return nil
}

func (c *cable) guest(t *testing.T, end int, addrs ...string) *VM {
	t.Helper()
	v, _ := boot(t, Options{
		Name: []string{"a", "b"}[end], VhostUser: c.sockets[end], MAC: []string{"52:54:00:79:00:01", "52:54:00:79:00:02"}[end],
	})
	do(t, v, 20*time.Second, control.OpAddr, control.Addr{Addrs: addrs}, nil)
	do(t, v, 20*time.Second, control.OpOffload, control.Offload{Feature: "rx-gro", On: false}, nil)
	return v
}

// end stops the goroutine and returns what it found. A second call returns nil.
func (c *cable) end() error {
	select {
	case <-c.stop:
		return nil
	default:
		close(c.stop)
		return <-c.done
	}
}

func (c *cable) run() error {
	for {
		select {
		case <-c.stop:
			return c.bad
		case i := <-c.started:
			f := c.ports[i].Features()
			p := flowtable.DefaultPortConfig()
			p.GuestCsum, p.ECN, p.RSCExt = f.Has(virtio.FGuestCsum), f.Has(virtio.FGuestECN), f.Has(virtio.FRSCExt)
			p.TSO4, p.TSO6 = f.Has(virtio.FGuestTSO4), f.Has(virtio.FGuestTSO6)
			if err := c.table.SetPort(uint32(i), p, now()); err != nil {
				return err
			}
		default:
		}
		if c.handing.Load() && time.Now().After(c.next) {
			if err := c.handOver(); err != nil {
				return err
			}
			c.next = time.Now().Add(100 * time.Millisecond)
		}
		moved := 0
		for i, p := range c.ports {
			n, _, err := p.TX(0).Poll(64, func(f *vhost.TxFrame) vhost.Next {
				c.keep(c.carry(f, uint32(1-i)))
				return vhost.TakeOn
			}, nil)
			if err == nil {
				moved += n
			}
		}
		c.table.EndBurst(now())
		c.table.Expire(now())
		if moved == 0 {
			time.Sleep(50 * time.Microsecond)
		}
	}
}

func (c *cable) keep(err error) {
	if c.bad == nil {
		c.bad = err
	}
}

func now() int64 { return time.Now().UnixNano() }

// carry makes wire frames of what a guest sent and gives them to the table.
func (c *cable) carry(f *vhost.TxFrame, to uint32) error {
	if f.Hdr.GSOType == virtio.GSONone {
		frame := append([]byte(nil), f.Data...)
		if f.Hdr.Flags&virtio.HdrNeedsCsum != 0 {
			if err := checksum.Complete(frame, int(f.Hdr.CsumStart), int(f.Hdr.CsumOffset)); err != nil {
				return err
			}
		}
		c.add(frame, to)
		return nil
	}
	var s flowtable.Segmenter
	if err := s.Init([][]byte{f.Data}, flowtable.GSO{Type: f.Hdr.GSOType, Size: f.Hdr.GSOSize}); err != nil {
		return err
	}
	for {
		frame := make([]byte, maxFrame)
		n, ok, err := s.Next(frame)
		if err != nil || !ok {
			return err
		}
		c.add(frame[:n], to)
	}
}

func (c *cable) add(frame []byte, to uint32) {
	p := &flowtable.Packet{Data: frame, Port: to}
	packet.Parse(frame, &p.Info)
	c.table.Add(p, now())
}

// Deliver puts what the table releases into the guest's buffers, checked against the virtio text first.
func (c *cable) Deliver(sf *flowtable.Superframe) {
	port := c.ports[sf.Port]
	q := port.RX(0)
	f := virtio.Frame{Frags: sf.Frags, Len: sf.Len, Hdr: virtio.NetHdr{
		Flags: sf.Flags, GSOType: sf.GSOType, GSOSize: sf.GSOSize, HdrLen: sf.HdrLen,
		CsumStart: sf.CsumStart, CsumOffset: sf.CsumOffset, NumBuffers: 1,
	}}
	var whole []byte
	for _, frag := range sf.Frags {
		whole = append(whole, frag...)
	}
	if features := port.Features(); features != 0 {
		c.keep(virtio.CheckRx(&f.Hdr, whole, features))
	}
	for range 200 { // a guest that posts no buffers for 20 ms loses the frame, as on any NIC
		if !q.Begin() {
			return
		}
		err := q.Put(&f)
		if bad := q.Commit(); err == nil {
			err = bad
		}
		if err == nil || !errors.Is(err, vhost.ErrNoBuffers) {
			c.keep(err)
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
}

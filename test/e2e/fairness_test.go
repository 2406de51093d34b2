package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/vhost/stackguest"
	"github.com/rscctl/rscctl/vhost/user"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// The shares themselves are proved to the percent in controller/datapath, where time is counted. Here real neighbours share a real
// queue, on a machine that does other things too, so the bounds are wide, and what counts above all is that every byte is right.
const fairEnough = 60 // percent

const fairFeatures = virtio.Features(1)<<virtio.FVersion1 | 1<<virtio.FMrgRxbuf | 1<<virtio.FEventIdx | 1<<virtio.FCsum | 1<<virtio.FHostTSO4 | 1<<virtio.FGuestCsum

// driver is a VM whose driver is the test's.
type driver struct {
	*user.Frontend
	t   *testing.T
	mac net.HardwareAddr
}

func (r *rig) driver(name string, i int) *driver {
	r.t.Helper()
	addr := fmt.Sprintf("52:54:00:00:01:%02x", i)
	sock := r.attach(name, addr)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	f, err := user.OpenFrontend(ctx, user.FrontendConfig{Socket: sock, Features: fairFeatures, Memory: 4 << 20})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = f.Close() })
	if err := f.Start(); err != nil {
		r.t.Fatal(err)
	}
	return &driver{Frontend: f, t: r.t, mac: mac(r.t, addr)}
}

// floods keeps the TX ring full of one TSO frame until stop is closed.
func (d *driver) floods(to net.HardwareAddr, payload int, size uint16, stop <-chan struct{}) <-chan error {
	out := make(chan error, 1)
	p := pt.TCP{SrcMAC: [6]byte(d.mac), DstMAC: [6]byte(to), Len: payload}
	h := virtio.NetHdr{Flags: virtio.HdrNeedsCsum, GSOType: virtio.GSOTCPv4, GSOSize: size, CsumStart: 34, CsumOffset: 16}
	b := make([]byte, virtio.HdrSize)
	h.Encode(b)
	b = append(b, p.Frame()...)
	gpa, mem, err := d.Alloc(len(b), 1)
	if err != nil {
		d.t.Fatal(err)
	}
	copy(mem, b)
	chain := []vring.Buffer{{Addr: gpa, Len: uint32(len(b))}}
	go func() {
		r := d.TX(0)
		r.Driver.DisableCalls()
		for {
			select {
			case <-stop:
				out <- r.Driver.Err()
				return
			default:
			}
			for _, _, ok := r.Driver.Used(); ok; _, _, ok = r.Driver.Used() {
			}
			for r.Driver.Free() > 0 && r.Driver.Add(chain, 1) == nil {
			}
			if r.Driver.Publish() {
				r.Kick()
			}
			time.Sleep(200 * time.Microsecond) // a ring of 256 frames lasts longer
		}
	}()
	return out
}

// paced sends numbered frames to a VM, each behind some for others, and returns how many of so many arrived, each as it was sent.
func (r *rig) paced(to *guest, n int, others ...net.HardwareAddr) (arrived int) {
	r.t.Helper()
	const length, every = 600, 500 * time.Microsecond
	frame := func(i int) []byte {
		b := make([]byte, length)
		binary.BigEndian.PutUint32(b, uint32(i))
		for j := 4; j < len(b); j++ {
			b[j] = byte(i * j)
		}
		return probe(to.side.MAC, r.net.A.MAC, "paced"+string(b))
	}
	in, c := r.net.A.Injector(r.t), to.side.Capture(r.t)
	sent := make(chan error, 1)
	go func() {
		next := time.Now()
		for i := range n {
			if len(others) > 0 {
				for k := range 4 {
					dst := others[(4*i+k)%len(others)]
					if err := in.Send(probe(dst, r.net.A.MAC, string(make([]byte, length)))); err != nil {
						sent <- err
						return
					}
				}
			}
			if err := in.Send(frame(i)); err != nil {
				sent <- err
				return
			}
			next = next.Add(every)
			time.Sleep(time.Until(next))
		}
		close(sent)
	}()
	last := -1
	for {
		f, ok := c.Poll(2 * time.Second)
		if !ok {
			break
		}
		if !has("paced")(f) {
			continue
		}
		i := int(binary.BigEndian.Uint32(f.Data[14+len("paced"):]))
		if i <= last || i >= n || !bytes.Equal(f.Data, frame(i)) {
			r.t.Fatalf("frame %d came behind frame %d, or with other bytes", i, last)
		}
		last = i
		arrived++
	}
	if err := <-sent; err != nil {
		r.t.Fatal(err)
	}
	return arrived
}

func (r *rig) wireFrames(vm string) uint64 {
	r.t.Helper()
	var st api.Stats
	r.json(&st, "stats", "--vm", vm)
	return st.VMs[0].TxWireFrames
}

// Three VMs send TSO frames of 256 packets as fast as they can. An honest bulk sender among them has its share, a receiver gets its
// frames, and TCP both ways arrives whole.
func TestHostileSendersLeaveTheOthersTheirShare(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("honest", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	nobody := mac(t, "52:54:00:00:02:01")
	stop := make(chan struct{})
	names := []string{"bad0", "bad1", "bad2", "good"}
	var ends []<-chan error
	for i, name := range names {
		payload, size := 4*256, uint16(4)
		if name == "good" { // the last one
			payload, size = 45*1448, 1448
		}
		ends = append(ends, r.driver(name, i).floods(nobody, payload, size, stop))
	}
	before := map[string]uint64{}
	for _, name := range names {
		before[name] = r.wireFrames(name)
	}
	const frames = 6000
	arrived := r.paced(g, frames)
	sum := uint64(0)
	for _, name := range names {
		before[name] = r.wireFrames(name) - before[name]
		sum += before[name]
	}
	t.Logf("packets sent: %v; %d of %d frames received", before, arrived, frames)
	if share := sum / uint64(len(names)); before["good"]*100 < share*fairEnough || sum == 0 {
		t.Errorf("the honest sender got %d packets of a share of %d", before["good"], share)
	}
	if arrived*100 < frames*fairEnough {
		t.Errorf("%d of %d frames received", arrived, frames)
	}
	netnstest.Bulk(t, r.net.A, g.side, 4<<20, false, time.Minute)
	netnstest.Bulk(t, g.side, r.net.A, 4<<20, false, time.Minute)
	close(stop)
	for i, end := range ends {
		if err := <-end; err != nil {
			t.Errorf("%s: %v", names[i], err)
		}
	}
}

// Thirty-two VMs never post a buffer, and frames come for all of them. The one beside them loses nothing that it would not lose alone.
func TestVMsWithoutBuffersLeaveTheOthersTheirFrames(t *testing.T) {
	r := newRig(t, netnstest.Options{})
	g := r.boot(stackguest.Config{Socket: r.attach("honest", macA), MAC: mac(t, macA)}, "10.77.0.10/24")
	var stuck []net.HardwareAddr
	for i := range 32 {
		stuck = append(stuck, r.driver(fmt.Sprintf("stuck%d", i), i).mac)
	}
	const frames = 6000
	arrived := r.paced(g, frames, stuck...)
	t.Logf("%d of %d frames received", arrived, frames)
	if arrived*100 < frames*fairEnough {
		t.Errorf("%d of %d frames received", arrived, frames)
	}
	netnstest.Bulk(t, r.net.A, g.side, 8<<20, false, time.Minute)
	r.eventually("their frames are counted", func() error { return r.droppedAt("stuck7", "guest_no_buffers") })
}

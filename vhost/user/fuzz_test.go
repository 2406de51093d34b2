package user

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
)

// fuzzDevice runs rings as a port does: it looks into each as soon as it starts.
type fuzzDevice struct {
	t       *testing.T
	running map[int]vring.Device
	chain   vring.Chain
}

func (d *fuzzDevice) BeforeChange(bool) {}
func (d *fuzzDevice) AfterChange()      {}

func (d *fuzzDevice) StartRing(r RingSetup) error {
	if d.running[r.Index] != nil {
		d.t.Errorf("ring %d started twice", r.Index)
	}
	call := false
	err := r.Dev.Touch(func() {
		for range 4 {
			ok, err := r.Dev.Next(&d.chain)
			if err != nil || !ok {
				break
			}
			r.Dev.Push([]vring.Used{{Head: d.chain.Head}})
		}
		call = r.Dev.Publish()
	})
	if err != nil {
		return err
	}
	if call && r.Call != nil {
		_ = r.Call.Signal()
	}
	r.Kick.Drain()
	d.running[r.Index] = r.Dev
	return nil
}

func (d *fuzzDevice) StopRing(i int) (vring.Position, error) {
	dev := d.running[i]
	if dev == nil {
		d.t.Errorf("ring %d stopped twice", i)
		return vring.Position{}, nil
	}
	delete(d.running, i)
	base := dev.Base()
	return base, dev.Close()
}

func (d *fuzzDevice) EnableRing(int, bool) error      { return nil }
func (d *fuzzDevice) SetCall(i int, _ *EventFD) error { return nil }

// In a fuzz input a message is: request, flags, kind and number of descriptors,
// bytes of payload, payload. Request 0xff resizes the memory file to the
// payload's first byte times 4 KiB. Request 0xfe does so, to 0, in the middle of
// a handler: at as many touches of guest memory from here as the payload's first
// byte says.
const (
	fuzzTruncate = 0xff
	fuzzFault    = 0xfe
)

func fuzzMessage(r Request, flags byte, fds byte, payload []byte) []byte {
	return append([]byte{byte(r), flags, fds, byte(len(payload))}, payload...)
}

const (
	fuzzMemFD   = 0x10 // high nibble: kind; low nibble: how many
	fuzzEventFD = 0x20
	fuzzPipe    = 0x30
	fuzzFile    = 0x40
)

// FuzzSession: whatever a peer sends, the session ends when the peer is gone,
// every ring that was started was stopped, no mistake of ours showed, and no
// descriptor and no mapping is left.
func FuzzSession(f *testing.F) {
	start := func(i uint32) (b []byte) {
		b = append(b, fuzzMessage(SetVringNum, 1, 0, state(i, 256))...)
		b = append(b, fuzzMessage(SetVringBase, 1, 0, state(i, 0))...)
		b = append(b, fuzzMessage(SetVringAddr, 1, 0, addr(i))...)
		b = append(b, fuzzMessage(SetVringKick, 1, fuzzEventFD|1, u64(uint64(i)))...)
		return append(b, fuzzMessage(SetVringCall, 1, fuzzEventFD|1, u64(uint64(i)))...)
	}
	hello := append(fuzzMessage(GetFeatures, 1, 0, nil), fuzzMessage(SetProtocolFeatures, 1, 0, u64(uint64(DefaultProtocol)))...)
	hello = append(hello, fuzzMessage(SetFeatures, 1, 0, u64(protocolF|1<<virtio.FVersion1))...)
	slots := append(append([]byte{}, hello...), fuzzMessage(AddMemReg, 9, fuzzMemFD|1, AppendSingleRegion(nil, region()))...)
	table := append(append([]byte{}, hello...), fuzzMessage(SetMemTable, 9, fuzzMemFD|1, AppendMemTable(nil, []MemRegion{region()}))...)
	running := append(append(append([]byte{}, slots...), start(0)...), start(1)...)
	f.Add(append(append([]byte{}, running...), fuzzMessage(GetVringBase, 1, 0, state(0, 0))...))
	f.Add(append(append([]byte{}, running...), fuzzMessage(RemMemReg, 9, 0, AppendSingleRegion(nil, region()))...))
	pair2 := append(fuzzMessage(AddMemReg, 9, fuzzMemFD|1, AppendSingleRegion(nil, region())), fuzzMessage(RemMemReg, 9, 0, AppendSingleRegion(nil, region()))...)
	f.Add(append(append(append([]byte{}, slots...), pair2...), pair2[len(pair2)/2:]...))
	f.Add(append(append([]byte{}, running...), fuzzMessage(ResetDevice, 9, 0, nil)...))
	f.Add(append(append(append([]byte{}, table...), start(3)...), fuzzMessage(SetFeatures, 9, 0, u64(1<<virtio.FVersion1))...))
	f.Add(append(append(append([]byte{}, table...), fuzzTruncate, 0, 0, 1, 0), start(0)...))
	f.Add(append(append(append([]byte{}, table...), fuzzMessage(fuzzFault, 0, 0, []byte{3})...), append(start(0), start(1)...)...))
	f.Add(append(append(append([]byte{}, running...), fuzzMessage(fuzzFault, 0, 0, []byte{2})...),
		fuzzMessage(SetMemTable, 9, fuzzMemFD|1, AppendMemTable(nil, []MemRegion{region()}))...))
	f.Add(append(append([]byte{}, table...), fuzzMessage(SetVringKick, 1, fuzzPipe|1, u64(0))...))
	f.Add(fuzzMessage(SetMemTable, 1, fuzzFile|8, AppendMemTable(nil, make([]MemRegion, 5))))
	f.Add(fuzzMessage(GetConfig, 1, 0, make([]byte, 20)))

	const memName = "fuzz-session" // the fuzzer's workers are processes of their own
	mem, err := unix.MemfdCreate(memName, unix.MFD_CLOEXEC)
	if err != nil {
		f.Fatal(err)
	}
	event, err := NewEventFD()
	if err != nil {
		f.Fatal(err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		f.Fatal(err)
	}
	file, err := os.CreateTemp(f.TempDir(), "")
	if err != nil {
		f.Fatal(err)
	}
	kinds := map[byte]int{fuzzMemFD: mem, fuzzEventFD: event.FD(), fuzzPipe: pipe[1], fuzzFile: int(file.Fd())}

	count := func(t *testing.T) int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(entries)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if err := unix.Ftruncate(mem, memSize); err != nil {
			t.Fatal(err)
		}
		before := count(t)
		a, b := socketPair(t)
		dev := &fuzzDevice{t: t, running: map[int]vring.Device{}}
		var fault atomic.Int64 // touches left until the memory vanishes; 0 and less: it stays
		s := NewSession(NewConn(b), SessionConfig{
			Features: virtio.Mask(virtio.FVersion1, virtio.FMrgRxbuf, virtio.FEventIdx, virtio.FIndirectDesc), MaxPairs: 2, Device: dev,
			Memory: guestmem.Options{Touching: func() {
				if fault.Add(-1) == 0 {
					_ = unix.Ftruncate(mem, 0)
				}
			}},
		})
		done := make(chan error, 1)
		go func() { done <- s.Run() }()
		go func() { // a peer that reads
			b := make([]byte, 4096)
			for {
				if _, err := a.Read(b); err != nil {
					return
				}
			}
		}()
		for len(in) >= 4 {
			r, flags, fds, n := Request(in[0]), in[1], in[2], min(int(in[3]), len(in)-4)
			payload := in[4 : 4+n]
			in = in[4+n:]
			if r == fuzzTruncate && n > 0 {
				_ = unix.Ftruncate(mem, int64(payload[0])<<12)
			}
			if r == fuzzFault && n > 0 {
				fault.Store(int64(payload[0]))
			}
			if r == fuzzTruncate || r == fuzzFault {
				continue
			}
			msg := make([]byte, HeaderSize)
			(&Header{Request: r, Flags: uint32(flags), Size: uint32(n)}).Encode(msg)
			var oob []byte
			if fd, ok := kinds[fds&0xf0]; ok {
				list := make([]int, fds&0xf)
				for i := range list {
					list[i] = fd
				}
				oob = unix.UnixRights(list...)
			}
			if _, _, err := a.WriteMsgUnix(append(msg, payload...), oob, nil); err != nil {
				break
			}
		}
		_ = unix.Shutdown(fdOf(a), unix.SHUT_WR)
		select {
		case err := <-done:
			if err == nil || errors.Is(err, ErrInternal) {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("session does not end")
		}
		_ = a.Close()
		if len(dev.running) != 0 {
			t.Errorf("%d rings still run", len(dev.running))
		}
		if n := mapsOf(t, memName); n != 0 {
			t.Errorf("%d mappings left", n)
		}
		for end := time.Now().Add(5 * time.Second); count(t) > before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d descriptors, %d before", count(t), before)
			}
		}
	})
}

package user

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/virtio"
)

// The order of messages is what QEMU 7.2 sends for two queue pairs.
func TestQEMUsSequenceRunsStopsAndRunsAgain(t *testing.T) {
	p := newPeer(t)
	const acked = protocolF | 1<<virtio.FVersion1 | 1<<virtio.FMrgRxbuf | 1<<virtio.FEventIdx
	for pair := range uint32(2) { // 1. connect
		if f := p.get(GetFeatures); f&protocolF == 0 || f&(1<<virtio.FMQ) == 0 {
			t.Fatalf("features %#x", f)
		}
		proto := p.get(GetProtocolFeatures)
		if proto&(1<<14|1<<17) != 0 || proto != uint64(DefaultProtocol) {
			t.Fatalf("protocol features %#x", proto)
		}
		p.send(SetProtocolFeatures, 0, u64(proto))
		if pair == 0 {
			if n := p.get(GetQueueNum); n != 2 {
				t.Fatalf("%d queue pairs", n)
			}
		}
		if n := p.get(GetMaxMemSlots); n < 64 || n > 512 {
			t.Fatalf("%d memory slots", n)
		}
		if pair == 0 {
			p.send(SetOwner, 0, nil)
		}
		p.get(GetFeatures)
		for i := 2 * pair; i < 2*pair+2; i++ {
			p.send(SetVringCall, 0, u64(uint64(i)), p.event())
			p.send(SetVringErr, 0, u64(uint64(i)), p.event())
		}
	}
	for range 3 { // 2. resets
		for i := range uint32(4) {
			on := uint32(0)
			if i < 2 {
				on = 1
			}
			p.send(SetVringEnable, 0, state(i, on))
		}
	}
	p.settle()
	p.want("before the driver", "enable0:true enable1:true")
	for round := range uint32(3) {
		for pair := range uint32(2) { // 3. driver ok
			if r := p.ack(NetSetMTU, u64(1500)); r != 0 {
				t.Fatalf("MTU refused: %d", r)
			}
			for i := 2 * pair; i < 2*pair+2; i++ {
				p.send(SetVringEnable, 0, state(i, 1))
			}
			p.send(SetFeatures, 0, u64(acked))
			p.get(GetStatus)
			p.send(SetStatus, 0, u64(0x8))
			if round == 0 { // each pair tells of the same memory
				if r := p.ack(AddMemReg, AppendSingleRegion(nil, region()), p.mem); r != 0 {
					t.Fatalf("memory refused: %d", r)
				}
			}
			for i := 2 * pair; i < 2*pair+2; i++ {
				p.startRing(i, 7*round)
			}
		}
		if p.get(GetStatus) != 0x8 {
			t.Fatal("status forgotten")
		}
		p.send(SetStatus, 0, u64(0xf))
		p.settle()
		starts := ""
		for i := range 4 {
			if round == 0 && i == 2 {
				starts += "enable2:true enable3:true "
			}
			starts += fmt.Sprintf("( start%d:256@%d ) call%d:true ", i, 7*round, i)
		}
		p.want("start", strings.TrimSpace(starts))
		if i := p.s.Info(); i.Features != acked&^protocolF || i.MTU != 1500 || i.Regions != 1 || i.Status != 0xf || i.QueueSize != 256 {
			t.Errorf("info %+v", i)
		}
		p.send(SetStatus, 0, u64(0)) // 4. stop
		for i := range uint32(4) {
			p.send(GetVringBase, 0, state(i, 0))
			if b := p.reply(GetVringBase, 8); !bytes.Equal(b, state(i, 7*round)) {
				t.Errorf("base of ring %d: %x", i, b)
			}
		}
		p.want("stop", "( stop0 ) ( stop1 ) ( stop2 ) ( stop3 )")
	}
	p.send(ResetDevice, 0, nil)
	p.settle()
	p.want("reset", "( enable0:false enable1:false enable2:false enable3:false )")
	if i := p.s.Info(); i.Features != 0 || i.Regions != 1 {
		t.Errorf("after reset %+v", i)
	}
	if err := p.end(); !errors.Is(err, ErrDisconnected) {
		t.Error(err)
	}
	p.want("end", "(")
}

// DPDK's virtio-user: no STATUS, one memory table, enable last.
func TestDPDKsSequenceRuns(t *testing.T) {
	p := newPeer(t)
	p.send(SetOwner, 0, nil)
	p.get(GetFeatures)
	p.get(GetProtocolFeatures)
	p.send(SetProtocolFeatures, 0, u64(1<<ProtoMQ|1<<ProtoReplyAck))
	p.get(GetQueueNum)
	for i := range uint64(2) {
		p.send(SetVringCall, 0, u64(i), p.event())
	}
	p.send(SetFeatures, 0, u64(protocolF|1<<virtio.FVersion1|1<<virtio.FMrgRxbuf))
	half := region()
	half.Size /= 2
	rest := MemRegion{GPA: half.Size, Size: half.Size, UVA: testUVA + half.Size, Offset: half.Size}
	if r := p.ack(SetMemTable, AppendMemTable(nil, []MemRegion{half, rest}), p.mem, p.mem); r != 0 {
		t.Fatal(r)
	}
	for i := range uint32(2) {
		p.send(SetVringNum, 0, state(i, 256))
		p.send(SetVringBase, 0, state(i, 0))
		p.send(SetVringAddr, 0, addr(i))
		p.send(SetVringKick, 0, u64(uint64(i)), p.event())
	}
	p.settle()
	p.want("start", "( start0:256@0 ) ( start1:256@0 )")
	for i := range uint32(2) {
		p.send(SetVringEnable, 0, state(i, 1))
	}
	p.settle()
	p.want("enable", "( enable0:true ) ( enable1:true )")
	if err := p.end(); !errors.Is(err, ErrDisconnected) {
		t.Error(err)
	}
	p.want("end", "stop0 stop1 (")
}

func TestARequestIsAnsweredAsTheProtocolSays(t *testing.T) {
	p := newPeer(t)
	// Before REPLY_ACK the bit is ignored.
	p.send(SetOwner, FlagNeedReply, nil)
	p.quiet("SET_OWNER without REPLY_ACK")
	p.send(SetProtocolFeatures, 0, u64(uint64(DefaultProtocol)))
	p.quiet("SET_PROTOCOL_FEATURES")
	for _, r := range []Request{SetOwner, ResetOwner, ResetDevice} {
		if v := p.ack(r, nil); v != 0 {
			t.Errorf("%s: %d", r, v)
		}
	}
	for _, tt := range []struct {
		name    string
		r       Request
		payload []byte
		want    uint64
	}{
		{"features", SetFeatures, u64(protocolF | 1<<virtio.FVersion1), 0},
		{"MTU", NetSetMTU, u64(9000), 0},
		{"MTU too large", NetSetMTU, u64(9001), 1},
		{"MTU too small", NetSetMTU, u64(67), 1},
		{"status", SetStatus, u64(3), 0},
		{"log fd", SetLogFD, nil, 0},
		{"RARP", SendRARP, u64(0), 1},
		{"endian", SetVringEndian, state(0, 0), 1},
		{"config", SetConfig, make([]byte, 20), 1},
		{"inflight", GetInflightFD, make([]byte, 24), 1},
		{"unknown", 77, make([]byte, 24), 1},
		{"unknown, known to be free", 47, nil, 1},
		{"size", SetVringNum, state(3, 32768), 0},
		{"enable", SetVringEnable, state(3, 1), 0},
		{"no kick", SetVringKick, u64(1 | 1<<8), 1},
		{"no call", SetVringCall, u64(1 | 1<<8), 0},
		{"no err", SetVringErr, u64(1 | 1<<8), 0},
	} {
		if v := p.ack(tt.r, tt.payload); v != tt.want {
			t.Errorf("%s: answer %d", tt.name, v)
		}
	}
	// A getter with the bit set is answered once.
	p.send(GetStatus, FlagNeedReply, nil)
	if b := p.reply(GetStatus, 8); !bytes.Equal(b, u64(3)) {
		t.Errorf("status %x", b)
	}
	p.quiet("GET_STATUS")
	p.send(GetVringBase, FlagNeedReply, state(2, 0))
	p.reply(GetVringBase, 8)
	p.quiet("GET_VRING_BASE")
	// What cannot be is refused and ends the session.
	if v := p.ack(SetVringNum, state(0, 24)); v == 0 {
		t.Error("ring of 24 accepted")
	}
	if err := p.wait(); !errors.Is(err, ErrRingSize) || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
}

func TestARunningRingCannotBeRebuilt(t *testing.T) {
	for name, tt := range map[string]struct {
		r       Request
		payload []byte
		want    error
	}{
		"same size":     {SetVringNum, state(0, 256), nil},
		"other size":    {SetVringNum, state(0, 128), ErrRingRunning},
		"same address":  {SetVringAddr, addr(0), nil},
		"other address": {SetVringAddr, append(state(0, 0), addr(1)[8:]...), ErrRingRunning},
		"base":          {SetVringBase, state(0, 0), ErrRingRunning},
	} {
		p := newPeer(t)
		p.send(SetMemTable, 0, AppendMemTable(nil, []MemRegion{region()}), p.mem)
		p.startRing(0, 0)
		p.send(tt.r, 0, tt.payload)
		if tt.want == nil {
			p.settle()
			_ = p.end()
			continue
		}
		if err := p.wait(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRingMessagesMayComeInAnyOrder(t *testing.T) {
	p := newPeer(t)
	steps := []func(i uint32){
		func(i uint32) { p.send(SetVringNum, 0, state(i, 256)) },
		func(i uint32) { p.send(SetVringAddr, 0, addr(i)) },
		func(i uint32) { p.send(SetVringKick, 0, u64(uint64(i)), p.event()) },
	}
	orders := [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}}
	for i, order := range orders {
		for _, k := range order {
			steps[k](uint32(i))
		}
	}
	p.settle()
	p.want("without memory", "")
	p.send(SetMemTable, 0, AppendMemTable(nil, []MemRegion{region()}), p.mem)
	p.settle()
	p.want("with memory", "( start0:256@0 ) ( start1:256@0 ) ( start2:256@0 )")
	p.send(SetFeatures, 0, u64(1<<virtio.FVersion1)) // no protocol features: all on
	p.settle()
	p.want("plain front-end", "( stop0 stop1 stop2 start0:256@0 start1:256@0 start2:256@0 ) "+
		"( enable0:true ) ( enable1:true ) ( enable2:true ) enable3:true")
	p.send(SetFeatures, 0, u64(1<<virtio.FVersion1))
	p.settle()
	p.want("the same features again", "")
	_ = p.end()
}

func TestBadRingAddressesAreRefused(t *testing.T) {
	for name, edit := range map[string]func(a *VringAddr){
		"outside":       func(a *VringAddr) { a.Desc = 0x1000 },
		"guest address": func(a *VringAddr) { a.Desc, a.Avail, a.Used = 0, 0x1000, 0x2000 },
		"over the end":  func(a *VringAddr) { a.Used = testUVA + memSize - 8 },
		"misaligned":    func(a *VringAddr) { a.Desc += 8 },
		"odd used":      func(a *VringAddr) { a.Used += 2 },
		"wraps":         func(a *VringAddr) { a.Avail = ^uint64(0) - 3 },
	} {
		p := newPeer(t)
		var a VringAddr
		if err := a.Decode(addr(0)); err != nil {
			t.Fatal(err)
		}
		edit(&a)
		p.send(SetMemTable, 0, AppendMemTable(nil, []MemRegion{region()}), p.mem)
		p.send(SetVringNum, 0, state(0, 256))
		p.send(SetVringAddr, 0, a.Append(nil))
		p.send(SetVringKick, 0, u64(0), p.event())
		if err := p.wait(); !errors.Is(err, ErrRingAddress) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEndlessRefusalsEndTheSession(t *testing.T) {
	p := newPeer(t)
	p.send(SetProtocolFeatures, 0, u64(uint64(DefaultProtocol)))
	for range maxRefusals + 1 {
		if v := p.ack(100, nil); v == 0 {
			t.Fatal("unknown request granted")
		}
	}
	if err := p.wait(); !errors.Is(err, ErrRefusals) {
		t.Error(err)
	}
}

func TestAMessageMayArriveByteByByte(t *testing.T) {
	p := newPeer(t)
	b := make([]byte, HeaderSize)
	(&Header{Request: SetVringKick, Flags: 1, Size: 8}).Encode(b)
	b = append(b, u64(0)...)
	if _, _, err := p.c.WriteMsgUnix(b[:1], unix.UnixRights(p.event()), nil); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(b); i++ {
		if _, err := p.c.Write(b[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	p.settle()
	_ = p.end()
}

func TestInterruptEndsASessionAtOnce(t *testing.T) {
	p := newPeer(t)
	p.settle()
	p.s.Interrupt()
	if err := p.wait(); !errors.Is(err, ErrInterrupted) {
		t.Error(err)
	}
}

func TestAnEventFDNeverBlocksNorAllocates(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // blocking, as a peer may send it
	if err != nil {
		t.Fatal(err)
	}
	e, err := AdoptEventFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if n := e.Drain(); n != 0 {
		t.Errorf("%d from an empty counter", n)
	}
	for range 3 {
		if err := e.Signal(); err != nil {
			t.Fatal(err)
		}
	}
	if n := e.Drain(); n != 3 {
		t.Errorf("%d of 3", n)
	}
	if err := unix.SetNonblock(fd, false); err != nil { // the peer may
		t.Fatal(err)
	}
	if n := e.Drain(); n != 0 {
		t.Errorf("%d from an empty counter", n)
	}
	if n := testing.AllocsPerRun(100, func() { _ = e.Signal(); e.Drain() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if (*EventFD)(nil).FD() != -1 || (*EventFD)(nil).Drain() != 0 {
		t.Error("nil counter")
	}
}

// QEMU says nothing of an MTU that was refused, and its guest's driver never starts: the reason is in Info.
func TestARefusedMTUIsToldToWhoeverLooks(t *testing.T) {
	p := newPeer(t)
	p.send(SetOwner, 0, nil)
	p.send(SetProtocolFeatures, 0, u64(uint64(DefaultProtocol)))
	if r := p.ack(NetSetMTU, u64(9001)); r == 0 {
		t.Fatal("an MTU above the most was taken")
	}
	if w := p.s.Info().Warning; !strings.Contains(w, "9001") || !strings.Contains(w, "68 to 9000 can be had") {
		t.Errorf("warning %q", w)
	}
	if r := p.ack(NetSetMTU, u64(1500)); r != 0 || p.s.Info().Warning != "" {
		t.Errorf("answer %d, warning %q", r, p.s.Info().Warning)
	}
}

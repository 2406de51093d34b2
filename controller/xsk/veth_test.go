package xsk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/bpf/meta"
	"github.com/rscctl/rscctl/controller/netdev"
	"github.com/rscctl/rscctl/test/netnstest"
)

// Tests on a real veth pair: A sends, B has the XDP program and the sockets. They need root and a kernel with AF_XDP.

var (
	vmMAC   = [6]byte{2, 0, 0, 0, 0, 0x77}
	peerMAC = [6]byte{2, 0, 0, 0, 0, 0x0a}
)

const vmPort = 3

type rig struct {
	net    *netnstest.Network
	driver string
	mtu    int
	prog   *bpf.Program
	socks  []*Socket
}

func (r *rig) config(queue int, native bool) Config {
	c := Config{Ifindex: r.net.B.Index, Queue: queue, Chunks: 512, ChunkSize: ChunkFor(r.mtu, Grain(r.driver)), RxSize: 256, TxSize: 128, FillSize: 256, CompSize: 128,
		NeedWakeup: true, Native: native}
	if c.ChunkSize == 0 {
		c.ChunkSize, c.Chunks, c.Frames, c.FrameSize = LargeChunk, 2048, 256, FrameFor(r.mtu)
		c.RxSize, c.TxSize, c.FillSize, c.CompSize = 1024, 512, 1024, 512
	}
	return c
}

func newRig(t *testing.T, queues int, native bool, o netnstest.Options) *rig {
	t.Helper()
	netnstest.Need(t, netnstest.BPF, netnstest.AFXDP)
	o.Queues, o.NoIPv6, o.NoIPv4 = queues, true, true
	r := &rig{net: netnstest.Pair(t, o)}
	r.net.A.Promiscuous(t) // NICs filter, and the VM's address is not their own
	r.net.B.Promiscuous(t)
	r.net.B.Do(t, func() (err error) {
		facts, err := netdev.Inspect(r.net.B.Dev)
		if err != nil {
			return err
		}
		r.driver, r.mtu = facts.Driver, facts.MTU
		r.prog, err = bpf.Load(bpf.LoadOptions{Ifindex: r.net.B.Index, Queues: queues, Native: native, Jumbo: r.mtu > MaxMTU(LargeChunk, 1)})
		if err != nil {
			return err
		}
		t.Cleanup(func() { r.prog.Close() })
		if err := r.prog.Attach(native); err != nil {
			return err
		}
		return r.prog.SetPort(bpf.PortKey{MAC: vmMAC}, bpf.PortValue{Port: vmPort, Flags: bpf.FlagSteer})
	})
	for q := range queues {
		r.socks = append(r.socks, r.open(t, r.config(q, native)))
	}
	return r
}

func (r *rig) open(t *testing.T, c Config) *Socket {
	t.Helper()
	var s *Socket
	r.net.B.Do(t, func() (err error) {
		if s, err = Open(c); err != nil {
			return err
		}
		return r.prog.SetSocket(c.Queue, s.FD())
	})
	t.Cleanup(func() { s.Close() })
	return s
}

// segment is TCP to the VM; i makes it a flow of its own.
func segment(i, payload int) []byte {
	f := make([]byte, 14+20+20+payload)
	copy(f, vmMAC[:])
	copy(f[6:], peerMAC[:])
	binary.BigEndian.PutUint16(f[12:], 0x0800)
	f[14] = 0x45
	binary.BigEndian.PutUint16(f[16:], uint16(40+payload))
	f[22], f[23] = 64, 6
	copy(f[26:], []byte{10, 0, 0, 2, 10, 0, 0, 1})
	binary.BigEndian.PutUint16(f[34:], uint16(1024+i))
	binary.BigEndian.PutUint16(f[36:], 443)
	f[46], f[47] = 0x50, 0x10
	for j := range f[54:] {
		f[54+j] = byte(i + j)
	}
	return append(f, make([]byte, max(0, 60-len(f)))...)
}

// receive takes frames until want came or nothing came for a second.
func (r *rig) receive(t *testing.T, want int, each func(s *Socket, d Desc)) int {
	t.Helper()
	var d [32]Desc
	got := 0
	for idle := 0; got < want && idle < 20; idle++ {
		fds := make([]unix.PollFd, len(r.socks))
		for i, s := range r.socks {
			s.Refill()
			fds[i] = unix.PollFd{Fd: int32(s.FD()), Events: unix.POLLIN}
		}
		if _, err := unix.Poll(fds, 50); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		for _, s := range r.socks {
			for _, d := range d[:s.Recv(d[:])] {
				each(s, d)
				s.Free(d.Addr)
				got++
				idle = 0
			}
		}
	}
	return got
}

func modes(t *testing.T, fn func(t *testing.T, native bool), of ...string) {
	for _, native := range []bool{true, false} {
		name := "generic"
		if native {
			name = "native"
		}
		t.Run(strings.Join(of, "")+name, func(t *testing.T) { fn(t, native) })
	}
}

func TestFramesAndMetadataArrive(t *testing.T) {
	modes(t, func(t *testing.T, native bool) {
		const frames = 300
		r := newRig(t, 2, native, netnstest.Options{})
		for _, s := range r.socks {
			fill(s)
		}
		in := r.net.A.Injector(t)
		sent := map[string]bool{}
		queueOf := map[*Socket]int{}
		n := 0
		for n < frames {
			for range 50 { // fewer than the rings hold
				f := segment(n, 10+n*4)
				sent[string(f)] = true
				if err := in.Send(f); err != nil {
					t.Fatal(err)
				}
				n++
			}
			got := r.receive(t, 50, func(s *Socket, d Desc) {
				f := frameOf(s, d)
				if !sent[string(f)] {
					t.Errorf("a frame of %d bytes that was not sent, or twice", len(f))
				}
				delete(sent, string(f))
				queueOf[s]++
				var m meta.Meta
				if !meta.Parse(metaOf(s, d), len(f), &m) {
					t.Errorf("no metadata: %x", metaOf(s, d))
				} else if m.Port != vmPort || m.L3 != 14 || m.L4 != 34 || m.Payload != 54 || int(m.PayloadLen) != int(binary.BigEndian.Uint16(f[16:]))-40 ||
					m.Flags != meta.Keyed || m.TCPFlags != 0x10 {
					t.Errorf("metadata %+v", m)
				}
			})
			if got != 50 {
				t.Fatalf("%d of 50 frames; %+v %+v", got, stats(t, r.socks[0]), stats(t, r.socks[1]))
			}
		}
		if native && len(queueOf) != 2 { // older kernels have one queue for generic XDP
			t.Errorf("frames by queue: %v", queueOf)
		}
		for _, s := range r.socks {
			mustConserve(t, s, 512)
			if s.ZeroCopy() != (native && netnstest.Wired()) {
				t.Errorf("zero-copy %t: a veth cannot do it, the NIC of %s should", s.ZeroCopy(), netnstest.WireEnv)
			}
		}
		v, err := r.prog.Outcomes()
		if err != nil || v["redirect"] != frames || v["no_metadata"] != 0 {
			t.Errorf("outcomes %v, %v", v, err)
		}
	})
}

func stats(t *testing.T, s *Socket) Stats {
	t.Helper()
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestFramesAreSent(t *testing.T) {
	modes(t, func(t *testing.T, native bool) {
		const frames = 500
		r := newRig(t, 1, native, netnstest.Options{})
		s := r.socks[0]
		capture := r.net.A.Capture(t)
		sent := map[string]bool{}
		for i := 0; i < frames; {
			for i < frames && s.TxRoom() > 0 {
				f := segment(i, 10+i*2)
				copy(f, peerMAC[:])
				buf, d, ok := s.AllocTx()
				if !ok || !s.Send(d, copy(buf, f)) {
					t.Fatal("room, but not for a frame")
				}
				sent[string(f)] = true
				i++
			}
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		for range 1000 { // the socket's send buffer may be smaller than what waits
			if s.Flush(); s.TxPending() == 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		for _, f := range capture.Drain(300 * time.Millisecond) {
			delete(sent, string(f.Data))
		}
		if len(sent) != 0 {
			t.Errorf("%d of %d frames did not arrive; %d pending, %+v", len(sent), frames, s.TxPending(), stats(t, s))
		}
		for range 100 {
			if s.Flush(); s.TxPending() == 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if s.TxPending() != 0 || s.FreeChunks() != 512 {
			t.Errorf("%d pending, %d free", s.TxPending(), s.FreeChunks())
		}
	})
}

func TestLossesAreCounted(t *testing.T) {
	modes(t, func(t *testing.T, native bool) {
		const frames = 64
		r := newRig(t, 1, native, netnstest.Options{})
		r.socks[0].Close()
		for _, c := range []struct {
			name   string
			config func(*Config)
			refill bool
			count  func(Stats) uint64
		}{
			{"rx ring full", func(c *Config) { c.RxSize = 16 }, true, func(s Stats) uint64 { return s.RxRingFull }},
			{"fill ring empty", func(*Config) {}, false, func(s Stats) uint64 { return s.FillEmpty }},
		} {
			t.Run(c.name, func(t *testing.T) {
				cfg := r.config(0, native)
				c.config(&cfg)
				s := r.open(t, cfg)
				r.socks[0] = s
				if c.refill {
					s.Refill()
				}
				in := r.net.A.Injector(t)
				for i := range frames {
					if err := in.Send(segment(i, 100)); err != nil {
						t.Fatal(err)
					}
				}
				deadline := time.Now().Add(2 * time.Second)
				for c.count(stats(t, s)) == 0 && time.Now().Before(deadline) {
					time.Sleep(10 * time.Millisecond)
				}
				time.Sleep(50 * time.Millisecond)
				lost := c.count(stats(t, s))
				var d [frames]Desc
				got := s.Recv(d[:])
				if lost == 0 || got+int(lost) != frames {
					t.Errorf("%d arrived, %d lost of %d: %+v", got, lost, frames, stats(t, s))
				}
				s.Close()
			})
		}
	})
}

func TestOpenSaysWhy(t *testing.T) {
	r := newRig(t, 1, true, netnstest.Options{})
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   error
	}{
		{"a queue in use", func(*Config) {}, ErrBusy},
		{"no such queue", func(c *Config) { c.Queue = 99 }, ErrNoDevice},
		{"no such interface", func(c *Config) { c.Ifindex = 9999 }, ErrNoDevice},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := r.config(0, true)
			c.change(&cfg)
			r.net.B.Do(t, func() error {
				s, err := Open(cfg)
				if err == nil {
					s.Close()
				}
				if !errors.Is(err, c.want) {
					t.Errorf("got %v", err)
				}
				return nil
			})
		})
	}
}

func TestAClosedSocketLeavesTheFramesToTheKernel(t *testing.T) {
	r := newRig(t, 1, true, netnstest.Options{})
	capture := r.net.B.Capture(t)
	f := segment(1, 100)
	r.socks[0].Close()
	r.net.A.Inject(t, f)
	capture.Until(2*time.Second, func(g netnstest.Frame) bool { return bytes.Equal(g.Data, f) })
}

// A tag beside the frame is the frame's: it never enters the untagged VM, and the VLAN's VM gets it with a note of it.
func TestAcceleratedTagReachesTheVLANPortOnly(t *testing.T) {
	netnstest.Need(t, netnstest.TCX)
	const vlan, port = 100, 4
	r := newRig(t, 1, true, netnstest.Options{KeepTxVLAN: true})
	if !r.prog.ReadsVLANTag() {
		netnstest.Skip(t, "a kernel that shows where veth keeps a tag (Linux 6.3)")
	}
	s := r.socks[0]
	s.Refill()
	stop := r.net.A.PushVLAN(t, vlan)
	f := segment(1, 100)
	r.net.A.Inject(t, f)
	if n := r.receive(t, 1, func(*Socket, Desc) {}); n != 0 {
		t.Fatal("it entered the untagged VM")
	}
	if err := r.prog.SetPort(bpf.PortKey{VLAN: vlan, MAC: vmMAC}, bpf.PortValue{Port: port, Flags: bpf.FlagSteer}); err != nil {
		t.Fatal(err)
	}
	r.net.A.Inject(t, f)
	n := r.receive(t, 1, func(s *Socket, d Desc) {
		var m meta.Meta
		if !meta.Parse(metaOf(s, d), int(d.Len), &m) || m.Port != port || m.Flags != meta.Keyed|meta.Accelerated || m.TCI&0xfff != vlan {
			t.Errorf("metadata %+v", m)
		}
		if !bytes.Equal(frameOf(s, d), f) {
			t.Error("another frame")
		}
	})
	if n != 1 {
		t.Error("it did not reach the VLAN's VM")
	}
	// A tag in the frame behind the accelerated one: for no VM.
	r.net.A.Inject(t, netnstest.Tag(f, 7))
	if n := r.receive(t, 1, func(*Socket, Desc) {}); n != 0 {
		t.Error("a tag inside an accelerated one was steered")
	}
	stop()
	r.net.A.Inject(t, f)
	if n := r.receive(t, 1, func(s *Socket, d Desc) {
		var m meta.Meta
		if !meta.Parse(metaOf(s, d), int(d.Len), &m) || m.Port != vmPort {
			t.Errorf("metadata %+v", m)
		}
	}); n != 1 {
		t.Error("without a tag it did not reach the untagged VM")
	}
	v, err := r.prog.Outcomes()
	if err != nil || v["pass_vlan_foreign"] != 1 || v["vlan_unreadable"] != 0 {
		t.Errorf("outcomes %v, %v", v, err)
	}
}

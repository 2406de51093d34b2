package vm

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
)

// DPDK's driver takes our superframes by their headers (LRO) and gives them back by its own (TSO): what was merged on the
// way in and cut on the way out must be on the wire again as it was, but for the addresses of Ethernet.
func TestDPDKFrontEndReturnsSuperframes(t *testing.T) {
	asked(t)
	needLong(t)
	netnstest.Need(t, netnstest.Tool(testpmd))
	for name, c := range map[string]struct {
		v6       bool
		mtu      int
		segments int
	}{"IPv4": {false, 1500, 40}, "IPv6": {true, 1500, 40}, "IPv4 of 9000": {false, 9000, 7}, "IPv6 of 9000": {true, 9000, 7}} {
		t.Run(name, func(t *testing.T) {
			const trains = 40
			v6, segments := c.v6, c.segments
			size := c.mtu - 52 // headers with timestamps
			if v6 {
				size -= 20
			}
			l := newLabOn(t, netnstest.Options{MTU: c.mtu, ChecksumOffB: true}, "--hold", "10ms") // so that frames are cut before the capture sees them, as by a NIC
			mac, err := net.ParseMAC(guestMAC)
			if err != nil {
				t.Fatal(err)
			}
			p := l.testpmd(t, "mrg_rxbuf=1,queue_size=1024", []string{
				"--rxd=1024", "--txd=1024", "--rx-offloads=0x2018", // LRO, TCP checksum, several buffers
				"--tx-offloads=0x8028", // TSO, TCP checksum, several buffers
				fmt.Sprintf("--max-pkt-len=%d", c.mtu+18),
				fmt.Sprintf("--eth-peer=0,%s", l.a.MAC),
			}, "port stop 0", "csum set ip sw 0", "csum set tcp hw 0", fmt.Sprintf("tso set %d 0", size), "port start 0", "set fwd csum", "start")
			in, capture := l.a.Injector(t), l.a.Capture(t)
			probe := packettest.TCP{V6: v6, DstMAC: [6]byte(mac), SrcMAC: [6]byte(l.a.MAC), Len: 100, Opts: packettest.Timestamps(1, 2)}
			l.returnsTCP(t, p, in, capture, probe)

			packet := probe.With(func(p *packettest.TCP) { p.Seq, p.Len, p.ID, p.SrcPort = 7, size, 1, 40000 })
			for range trains {
				train := packet.Train(segments)
				train[segments-1].Flags = packettest.ACK | packettest.PSH
				for _, f := range packettest.Frames(train...) {
					if err := in.Send(f); err != nil {
						t.Fatal(err)
					}
				}
				for i, want := range train {
					want.DstMAC, want.SrcMAC = want.SrcMAC, want.DstMAC
					got := capture.Until(10*time.Second, fromPort(packet))
					if w := want.Frame(); !bytes.Equal(got.Data, w) {
						t.Fatalf("packet %d of a train came back as\n% x\nwant\n% x", i, got.Data[:80], w[:80])
					}
				}
				packet = train[segments-1].Next()
				packet.Flags = 0
			}
			vm, _ := l.stats(t, guestName)
			t.Logf("%d packets in %d frames to DPDK, which gave us %d", vm.RxPackets, vm.GuestFrames, vm.TxFrames)
			if of := uint64(segments); vm.GuestFrames*of > 4*vm.RxPackets || vm.TxFrames*of > 4*vm.RxPackets {
				t.Error("hardly any superframe")
			}
		})
	}
}

// returnsTCP waits until a TCP packet comes back.
func (l *lab) returnsTCP(t *testing.T, p *process, in *netnstest.Injector, c *netnstest.Capture, probe packettest.TCP) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); p.running() && time.Now().Before(deadline); {
		if err := in.Send(probe.Frame()); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
			if f, ok := c.Poll(time.Until(end)); ok && fromPort(probe)(f) {
				c.Drain(500 * time.Millisecond)
				return
			}
		}
	}
	t.Fatal("no packet comes back from " + testpmd)
}

// fromPort knows the packets of a flow that have been through the forwarder.
func fromPort(flow packettest.TCP) func(netnstest.Frame) bool {
	return func(f netnstest.Frame) bool {
		p, err := packettest.Read(f.Data)
		return err == nil && p.SrcPort == cmp.Or(flow.SrcPort, 1500) && p.DstMAC == flow.SrcMAC
	}
}

// commands writes testpmd's orders to a file.
func (l *lab) commands(t *testing.T, lines []string) string {
	t.Helper()
	path := filepath.Join(l.dir, "testpmd")
	var b bytes.Buffer
	for _, line := range lines {
		fmt.Fprintln(&b, line)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

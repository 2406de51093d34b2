package vm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
)

const testpmd = "dpdk-testpmd"

// marker begins the payload of our frames: an EtherType that nobody else uses, and a magic number.
const (
	testEtherType = 0x88b5 // IEEE 802 local experimental
	testMagic     = 0x72736376
)

// DPDK's virtio-user driver is a front-end that shares no code with Linux or us. It swaps the MAC addresses of what it
// receives and sends it back: every frame must return, unchanged beyond its Ethernet header, and in order.
func TestDPDKFrontEndReturnsEveryFrame(t *testing.T) {
	asked(t)
	needLong(t)
	netnstest.Need(t, netnstest.Tool(testpmd))
	for name, c := range map[string]struct {
		device string
		args   []string
		attach []string // our side beside the socket
	}{
		"mergeable":              {device: "mrg_rxbuf=1"},
		"mergeable tiny buffers": {device: "mrg_rxbuf=1", args: []string{"--mbuf-size=512", "--enable-scatter"}},
		"not mergeable":          {device: "mrg_rxbuf=0"},
		"in order":               {device: "mrg_rxbuf=1,in_order=1"},
		"in order not mergeable": {device: "mrg_rxbuf=0,in_order=1"},
		"vectorized":             {device: "mrg_rxbuf=0,in_order=0,vectorized=1"},
		"queue of 1024":          {device: "mrg_rxbuf=1,queue_size=1024", args: []string{"--rxd=1024", "--txd=1024"}},
		"two queue pairs":        {device: "mrg_rxbuf=1,queues=2", args: []string{"--rxq=2", "--txq=2"}},
		"DPDK listens":           {device: "mrg_rxbuf=1,server=1", attach: []string{"--connect"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, c.attach...)
			p := l.testpmd(t, c.device, c.args)
			mac, err := net.ParseMAC(guestMAC)
			if err != nil {
				t.Fatal(err)
			}
			in, capture := l.a.Injector(t), l.a.Capture(t)
			l.returns(t, p, in, capture, mac)
			const count = 2000
			next := uint32(0)
			for sent := uint32(1); sent <= count; sent++ {
				if err := in.Send(probeFrame(mac, l.a.MAC, sent)); err != nil {
					t.Fatal(err)
				}
				if sent%50 != 0 { // a window, so that no ring overflows
					continue
				}
				for next < sent {
					next++
					got := capture.Until(10*time.Second, isProbe)
					want := probeFrame(l.a.MAC, mac, next)
					if !bytes.Equal(got.Data, want) {
						t.Fatalf("frame %d came back as % x, want % x", next, got.Data[:40], want[:40])
					}
				}
			}
		})
	}
}

// testpmd starts DPDK's forwarder on the lab's socket, without huge pages and without a device of the machine. It swaps
// the MAC addresses unless it gets orders.
func (l *lab) testpmd(t *testing.T, device string, args []string, orders ...string) *process {
	t.Helper()
	vdev := fmt.Sprintf("net_virtio_user0,path=%s,mac=%s,packed_vq=0,%s", l.socket(), guestMAC, device)
	all := []string{
		"-l", "0,1", "--no-huge", "-m", "256", "--no-pci", "--no-shconf", "--file-prefix", "rscvm", "--vdev", vdev,
		"--", "--total-num-mbufs=8192",
	}
	if len(orders) > 0 {
		all = append(all, "-i", "--cmdline-file="+l.commands(t, orders))
	} else {
		all = append(all, "--forward-mode=macswap", "--auto-start", "--stats-period=1")
	}
	cmd := exec.Command(testpmd, append(all, args...)...)
	if len(orders) > 0 { // it ends with its input
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = r
		t.Cleanup(func() {
			r.Close()
			w.Close()
		})
	}
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, out
	p, err := startProcess(cmd, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.running() {
			p.stop(syscall.SIGINT, 5*time.Second)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", testpmd, out)
		}
	})
	return p
}

// returns waits until the forwarder works: frames are sent until the first comes back, and those still on the way are
// waited for.
func (l *lab) returns(t *testing.T, p *process, in *netnstest.Injector, c *netnstest.Capture, mac net.HardwareAddr) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); p.running() && time.Now().Before(deadline); {
		if err := in.Send(probeFrame(mac, l.a.MAC, 0)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
			if f, ok := c.Poll(time.Until(end)); ok && isProbe(f) {
				c.Drain(500 * time.Millisecond)
				return
			}
		}
	}
	t.Fatal("no frame comes back from " + testpmd)
}

// probeFrame has a number and a length of its own, from the shortest to the longest Ethernet frame.
func probeFrame(dst, src net.HardwareAddr, number uint32) []byte {
	payload := make([]byte, 46+int(number)%1455)
	binary.BigEndian.PutUint32(payload, testMagic)
	binary.BigEndian.PutUint32(payload[4:], number)
	for i := 8; i < len(payload); i++ {
		payload[i] = byte(i) ^ byte(number)
	}
	return netnstest.Ethernet(dst, src, testEtherType, payload)
}

func isProbe(f netnstest.Frame) bool {
	return len(f.Data) >= 22 && binary.BigEndian.Uint16(f.Data[12:]) == testEtherType &&
		binary.BigEndian.Uint32(f.Data[14:]) == testMagic
}

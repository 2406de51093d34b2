package netnstest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const testType = 0x88b5 // local experimental EtherType (IEEE 802)

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func ofType(t uint16) func(Frame) bool {
	return func(f Frame) bool { return len(f.Data) >= 14 && f.Data[12] == byte(t>>8) && f.Data[13] == byte(t) }
}

func TestInjectedFramesArriveAsTheyAre(t *testing.T) {
	n := Pair(t, Options{})
	c := n.B.Capture(t)
	var want [][]byte
	for i := range 50 {
		want = append(want, Ethernet(n.B.MAC, n.A.MAC, testType, bytes.Repeat([]byte{byte(i)}, 46+i*29)))
	}
	n.A.Inject(t, want...)
	for i, w := range want {
		if f := c.Until(5*time.Second, ofType(testType)); !bytes.Equal(f.Data, w) || f.Tagged || f.Partial || f.Out {
			t.Fatalf("frame %d differs: %+v", i, f)
		}
	}
	if d := c.Dropped(); d != 0 {
		t.Errorf("%d frames lost", d)
	}
}

func TestAWireWithoutIPIsSilent(t *testing.T) {
	n := Pair(t, Options{NoIPv4: true, NoIPv6: true})
	c := n.B.CaptureAll(t)
	if got := c.Drain(300 * time.Millisecond); len(got) != 0 {
		t.Errorf("%d frames nobody sent, the first %x", len(got), got[0].Data)
	}
}

func TestATagIsSeenWhereverItTravels(t *testing.T) {
	for _, beside := range []bool{true, false} {
		name := map[bool]string{true: "beside the frame", false: "in the frame"}[beside]
		t.Run(name, func(t *testing.T) {
			n := Pair(t, Options{KeepTxVLAN: beside, NoIPv4: true, NoIPv6: true})
			c := n.B.Capture(t)
			stop := n.A.PushVLAN(t, 3<<13|100)
			frame := Ethernet(broadcast, n.A.MAC, testType, make([]byte, 100))
			n.A.Inject(t, frame)
			f := c.Next(5 * time.Second)
			if !f.Tagged || f.TCI != 3<<13|100 || f.TPID != 0x8100 || !bytes.Equal(f.Data, frame) {
				t.Errorf("got %+v", f)
			}
			stop()
			n.A.Inject(t, frame, Tag(frame, 7))
			if f := c.Next(5 * time.Second); f.Tagged {
				t.Errorf("tagged after stop: %+v", f)
			}
			if f := c.Next(5 * time.Second); !f.Tagged || f.TCI != 7 {
				t.Errorf("an injected tag was lost: %+v", f)
			}
		})
	}
}

func TestBulkTCPOverBothFamilies(t *testing.T) {
	n := Pair(t, Options{Queues: 2, StaticNeighbors: true})
	for _, v6 := range []bool{false, true} {
		c := n.B.Capture(t)
		r := Bulk(t, n.A, n.B, 4<<20, v6, 20*time.Second)
		if r.Bytes != 4<<20 {
			t.Errorf("v6=%v: %+v", v6, r)
		}
		largest := 0
		for _, f := range c.Drain(50 * time.Millisecond) {
			largest = max(largest, len(f.Data))
			if f.Partial {
				t.Fatalf("v6=%v: a partial checksum on the wire", v6)
			}
		}
		if largest > 1514 || largest < 1000 {
			t.Errorf("v6=%v: the largest frame has %d bytes", v6, largest)
		}
	}
}

func TestCommandsRunInside(t *testing.T) {
	Need(t, Tool("ip"))
	n := Pair(t, Options{MTU: 1400})
	out := n.B.Output(t, "ip", "-o", "address", "show", "dev", n.B.Dev)
	for _, want := range []string{"10.77.0.2/24", "fd77::2/64"} {
		if !bytes.Contains([]byte(out), []byte(want)) {
			t.Errorf("no %s in %s", want, out)
		}
	}
	if bytes.Contains([]byte(out), []byte("tentative")) {
		t.Errorf("an address still waits for duplicate address detection: %s", out)
	}
}

const failEnv = "RSCT_FAIL"

// TestFailsOnPurpose is run by the next test, in a process of its own.
func TestFailsOnPurpose(t *testing.T) {
	if os.Getenv(failEnv) == "" {
		return
	}
	n := Pair(t, Options{})
	n.A.Start(t, exec.Command("sleep", "60"))
	n.B.Do(t, func() error { return errors.New("on purpose") })
	t.Error("went on after Fatal")
}

func TestNothingIsLeftWhenATestFails(t *testing.T) {
	Need(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestFailsOnPurpose$", "-test.v")
	cmd.Env = append(os.Environ(), failEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("on purpose")) || bytes.Contains(out, []byte("went on")) {
		t.Fatalf("it should have failed: %v: %s", err, out)
	}
	left, err := leftovers(prefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range left {
		if strings.HasSuffix(name, fmt.Sprintf("-%d", cmd.Process.Pid)) {
			t.Errorf("namespace %s is left", name)
		}
	}
}

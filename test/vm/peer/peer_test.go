package peer

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/test/vm/stream"
)

func TestBothEndsOfATransferAgree(t *testing.T) {
	const n, seed = 3_000_001, 5
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type received struct {
		t   *control.Transfer
		err error
	}
	done := make(chan received, 1)
	go func() {
		c, err := Accept(l, time.Now().Add(10*time.Second))
		if err != nil {
			done <- received{nil, err}
			return
		}
		defer c.Close()
		r, err := Receive(c, false)
		done <- received{r, err}
	}()
	c, err := Dial(l.Addr().String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent, err := Send(c, seed, n)
	if err != nil {
		t.Fatal(err)
	}
	got := <-done
	if got.err != nil {
		t.Fatal(got.err)
	}
	want := stream.Sum(seed, n)
	if sent.Bytes != n || got.t.Bytes != n || sent.SHA256 != want || got.t.SHA256 != want {
		t.Errorf("sent %+v, received %+v, want %d bytes with %s", sent, got.t, n, want)
	}
}

func TestEveryDatagramComesBack(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- Echo(c) }()
	r, err := UDP(control.Probe{To: c.LocalAddr().String(), Size: 1000, Count: 5, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 5 || r.Answered != 5 || len(r.RTT) != 5 {
		t.Errorf("result %+v", r)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A stream of trains is taken to its end, in trains where the kernel has them together, as it has on the loopback.
func TestTrainsAreTakenWhole(t *testing.T) {
	netnstest.Need(t) // for the receiver's buffer
	trains := control.Trains{Count: 400, Train: 20, Size: 700, Timeout: 10 * time.Second}
	in, out := trainSockets(t)
	sent := make(chan error, 1)
	go func() { sent <- SendTrains(out, trains) }()
	r, err := ReceiveTrains(in, trains)
	if err := errors.Join(err, <-sent); err != nil {
		t.Fatal(err)
	}
	if r.Datagrams != 400 || r.Late != 0 || r.Calls != 20 || r.Most != 20 {
		t.Errorf("reception %+v", r)
	}
}

// What was not sent so, or was sent twice, is no datagram of the stream; one that comes behind a later one is counted as late.
func TestDatagramsThatWereNotSentAreTold(t *testing.T) {
	netnstest.Need(t)
	trains := control.Trains{Count: 4, Train: 4, Size: 200, Timeout: 100 * time.Millisecond}
	datagram := func(number, size int) []byte {
		b := make([]byte, trains.Size)
		fillDatagram(b, number)
		return b[:size]
	}
	changed := datagram(0, 200)
	changed[199]++
	for name, c := range map[string]struct {
		send [][]byte
		want control.Reception
		err  error
	}{
		"missing":    {[][]byte{datagram(0, 200), datagram(2, 200)}, control.Reception{Datagrams: 2}, os.ErrDeadlineExceeded},
		"late":       {[][]byte{datagram(1, 200), datagram(0, 200), datagram(2, 200), datagram(3, 100)}, control.Reception{Datagrams: 4, Late: 1}, nil},
		"twice":      {[][]byte{datagram(0, 200), datagram(0, 200)}, control.Reception{Datagrams: 1}, errNotSent},
		"changed":    {[][]byte{changed}, control.Reception{}, errNotSent},
		"cut":        {[][]byte{datagram(0, 199)}, control.Reception{}, errNotSent},
		"the last":   {[][]byte{datagram(3, 200)}, control.Reception{}, errNotSent},
		"of no one":  {[][]byte{datagram(4, 200)}, control.Reception{}, errNotSent},
		"too short":  {[][]byte{{1, 2}}, control.Reception{}, errNotSent},
		"too long":   {[][]byte{append(datagram(0, 200), 0)}, control.Reception{}, errNotSent},
		"far beyond": {[][]byte{datagram(-1, 200)}, control.Reception{}, errNotSent},
	} {
		t.Run(name, func(t *testing.T) {
			in, out := trainSockets(t)
			for _, b := range c.send {
				if _, err := out.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			r, err := ReceiveTrains(in, trains)
			if !errors.Is(err, c.err) || r.Datagrams != c.want.Datagrams || r.Late != c.want.Late {
				t.Errorf("reception %+v, %v, want %+v, %v", r, err, c.want, c.err)
			}
		})
	}
}

// trainSockets are a receiver of trains and a sender to it, on the loopback.
func trainSockets(t *testing.T) (in, out *net.UDPConn) {
	t.Helper()
	in, err := ListenTrains("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	c, err := net.Dial("udp", in.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return in, c.(*net.UDPConn)
}

func TestAMissingAnswerIsCountedNotAnError(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() // nobody reads
	r, err := UDP(control.Probe{To: c.LocalAddr().String(), Size: 10, Count: 2, Timeout: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 2 || r.Answered != 0 {
		t.Errorf("result %+v", r)
	}
}

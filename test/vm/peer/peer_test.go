package peer

import (
	"net"
	"testing"
	"time"

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

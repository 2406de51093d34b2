package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/netnstest"
	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/test/vm/peer"
	"github.com/rscctl/rscctl/test/vm/stream"
)

// transferWithin bounds any one transfer: a hundred times what it takes, because the machine may be busy.
var transferWithin = patience(4 * time.Minute)

// guestPort is where the guest receives.
const guestPort = 5001

// load is one TCP transfer into the guest.
type load struct {
	from  *netnstest.Side // where the sender is
	to    string          // the guest's address
	bytes int64
	seed  uint64
	count bool // only count: for rates
}

// toGuest sends into the guest while it counts what its NIC receives. It returns the guest's view.
func toGuest(t *testing.T, v *VM, l load) (control.Transfer, frames) {
	t.Helper()
	do(t, v, 10*time.Second, control.OpListen, control.Listen{Port: guestPort}, nil)
	before := nic(t, v)
	got := receiveAsync(t, v, control.Receive{Port: guestPort, Timeout: transferWithin, Count: l.count})
	if _, err := send(l); err != nil {
		t.Errorf("sender: %v", err)
	}
	r := <-got
	return r, framesBetween(before, nic(t, v))
}

// receiveAsync lets the guest receive; an order that failed ends as Transfer.Error.
func receiveAsync(t *testing.T, v *VM, r control.Receive) <-chan control.Transfer {
	t.Helper()
	got := make(chan control.Transfer, 1)
	go func() {
		var tr control.Transfer
		if err := v.Do(t.Context(), control.OpReceive, r, &tr); err != nil {
			tr.Error = err.Error()
		}
		got <- tr
	}()
	return got
}

// send connects from a side and sends.
func send(l load) (*control.Transfer, error) {
	c, err := dialFrom(l.from, l.to)
	if err != nil {
		return nil, err
	}
	return sendOn(c, l.seed, l.bytes)
}

func dialFrom(s *netnstest.Side, to string) (c *net.TCPConn, err error) {
	err = s.NS.Do(func() (err error) {
		c, err = peer.Dial(net.JoinHostPort(to, fmt.Sprint(guestPort)), patience(30*time.Second))
		return err
	})
	return c, err
}

// connect connects the sender to the guest.
func (l *lab) connect() (*net.TCPConn, error) { return dialFrom(l.a, guestIPv4) }

// sendOn sends on a connection and closes it.
func sendOn(c *net.TCPConn, seed uint64, bytes int64) (*control.Transfer, error) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(transferWithin)); err != nil {
		return nil, err
	}
	return peer.Send(c, seed, bytes)
}

// fromGuest lets the guest send to a port on a side. It returns what that side received.
func fromGuest(t *testing.T, v *VM, to *netnstest.Side, addr string, seed uint64, bytes int64) control.Transfer {
	t.Helper()
	var l *net.TCPListener
	to.Do(t, func() (err error) {
		l, err = peer.Listen(net.JoinHostPort(addr, "0"))
		return err
	})
	defer l.Close()
	r, err := receiveFrom(t.Context(), v, l, seed, bytes)
	if err != nil {
		t.Error(err)
	}
	return r
}

// receiveFrom lets the guest send to a listener of ours. It returns what came there.
func receiveFrom(ctx context.Context, v *VM, l *net.TCPListener, seed uint64, bytes int64) (control.Transfer, error) {
	type received struct {
		t   *control.Transfer
		err error
	}
	done := make(chan received, 1)
	go func() {
		c, err := peer.Accept(l, time.Now().Add(transferWithin))
		if err != nil {
			done <- received{&control.Transfer{}, err}
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(transferWithin))
		r, err := peer.Receive(c, false)
		done <- received{r, err}
	}()
	ctx, cancel := context.WithTimeout(ctx, transferWithin)
	defer cancel()
	var sent control.Transfer
	err := v.Do(ctx, control.OpSend, control.Send{To: l.Addr().String(), Bytes: bytes, Seed: seed, Timeout: transferWithin}, &sent)
	if err != nil {
		l.Close() // nothing need come
	} else if sent.Error != "" {
		err = fmt.Errorf("guest: %s", sent.Error)
	}
	r := <-done
	if r.err != nil {
		err = errors.Join(err, fmt.Errorf("receiver: %w", r.err))
	}
	return *r.t, err
}

func nic(t *testing.T, v *VM) control.NIC {
	t.Helper()
	var n control.NIC
	do(t, v, 30*time.Second, control.OpNIC, nil, &n)
	return n
}

// frames is what the guest's NIC counted during a transfer. It counts before the guest's own GRO does anything.
type frames struct {
	rx, rxBytes, rxErrors uint64
	cpu                   time.Duration
}

func framesBetween(a, b control.NIC) frames {
	return frames{
		rx: b.Stats["rx_packets"] - a.Stats["rx_packets"], rxBytes: b.Stats["rx_bytes"] - a.Stats["rx_bytes"],
		rxErrors: b.Stats["rx_errors"] - a.Stats["rx_errors"], cpu: b.CPU.Busy - a.CPU.Busy,
	}
}

// mean is the mean frame in bytes, Ethernet header included.
func (f frames) mean() float64 { return float64(f.rxBytes) / float64(max(f.rx, 1)) }

func (f frames) String() string {
	return fmt.Sprintf("%d frames of %.0f bytes in the mean, guest CPU %.1f s", f.rx, f.mean(), f.cpu.Seconds())
}

// checkTransfer wants all the bytes of a stream, unchanged.
func checkTransfer(t *testing.T, what string, got control.Transfer, seed uint64, bytes int64) {
	t.Helper()
	t.Logf("%s: %d MB in %.1f s, %.0f Mb/s", what, got.Bytes/1e6, got.Duration.Seconds(), got.BitsPerSecond()/1e6)
	if got.Error != "" {
		t.Errorf("%s: %s", what, got.Error)
	}
	if want := stream.Sum(seed, bytes); got.Bytes != bytes || got.SHA256 != want {
		t.Errorf("%s: %d bytes with SHA-256 %s, want %d with %s", what, got.Bytes, got.SHA256, bytes, want)
	}
}

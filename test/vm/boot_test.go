package vm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/test/vm/control"
)

func TestGuestBootsRebootsAndPowersOff(t *testing.T) {
	start := time.Now()
	// A hub port is a network with nobody on it: the NIC exists, its driver binds.
	v, hello := boot(t, Options{Name: "boot", Netdev: "hubport,hubid=0", MAC: "52:54:00:00:00:01"})
	t.Logf("guest with kernel %s ready after %v", hello.Kernel, time.Since(start).Round(10*time.Millisecond))
	if hello.NIC == "" {
		t.Fatal("the guest has no virtio NIC")
	}
	var nic control.NIC
	do(t, v, 10*time.Second, control.OpNIC, nil, &nic)
	if nic.MAC != "52:54:00:00:00:01" {
		t.Errorf("MAC %s", nic.MAC)
	}
	const versionOne = 32
	if !nic.Has(versionOne) {
		t.Errorf("not a virtio 1 device: features %s", nic.Features)
	}
	do(t, v, 10*time.Second, control.OpAddr, control.Addr{Addrs: []string{"10.0.0.2/24", "fd00::2/64"}}, nil)

	// The network works inside the guest: the loopback is enough to show its TCP and its hashes.
	do(t, v, 10*time.Second, control.OpListen, control.Listen{Port: 7}, nil)
	const bytes, seed = 20 << 20, 9
	received := make(chan control.Transfer, 1)
	go func() {
		var r control.Transfer
		if err := v.Do(t.Context(), control.OpReceive, control.Receive{Port: 7, Timeout: time.Minute}, &r); err != nil {
			r.Error = err.Error()
		}
		received <- r
	}()
	var sent control.Transfer
	do(t, v, time.Minute, control.OpSend, control.Send{To: "127.0.0.1:7", Bytes: bytes, Seed: seed, Timeout: time.Minute}, &sent)
	checkTransfer(t, "loopback", <-received, seed, bytes)

	do(t, v, 10*time.Second, control.OpReboot, nil, nil)
	if again := ready(t, v); again != hello {
		t.Errorf("after a reboot the guest says %+v, before it said %+v", again, hello)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := v.PowerOff(ctx); err != nil {
		t.Error(err)
	}
	if err := v.Do(ctx, control.OpNIC, nil, nil); !errors.Is(err, ErrGone) {
		t.Errorf("an order after power off: %v, want ErrGone", err)
	}
}

func TestGuestRefusesAnUnknownOrder(t *testing.T) {
	v, _ := boot(t, Options{Name: "orders"})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := v.Do(ctx, "dance", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "no such order") {
		t.Errorf("error %v", err)
	}
	// With no NIC, an order about it fails and the guest lives on.
	if err := v.Do(ctx, control.OpNIC, nil, nil); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("error %v", err)
	}
}

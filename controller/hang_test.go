package controller

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/xsk"
	"github.com/rscctl/rscctl/flowtable/packet/packettest"
	"github.com/rscctl/rscctl/test/netnstest"
)

// hungQueue is a queue whose worker takes nothing. redirect lets so many frames of a VM on a tap come for it.
func hungQueue(t *testing.T) (q *queue, redirect func(frames int)) {
	t.Helper()
	netnstest.Need(t, netnstest.BPF, netnstest.AFXDP)
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p, err := bpf.Load(bpf.LoadOptions{Ifindex: 1, Queues: 1})
	fatal(err)
	t.Cleanup(func() { _ = p.Close() })
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(p.ID()))
	fatal(err)
	t.Cleanup(func() { _ = prog.Close() })
	sock, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	fatal(err)
	t.Cleanup(func() { _ = unix.Close(sock) })
	q = &queue{}
	q.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	fatal(err)
	t.Cleanup(func() { _ = unix.Close(q.wakeFD) })
	q.shares, err = p.Shares(0, 2048, 64)
	fatal(err)
	t.Cleanup(func() { _ = q.shares.Close() })
	fatal(p.SetSocket(0, sock))
	q.Worker, err = datapath.New(datapath.Config{MTU: 1500, NIC: &xsk.Socket{}, WakeFD: q.wakeFD, Chunks: 64, Slots: 64, Log: slog.New(slog.DiscardHandler)})
	fatal(err)

	mac := [6]byte{2, 0, 0, 0, 0, 1}
	fatal(p.SetPort(bpf.PortKey{MAC: mac}, bpf.PortValue{Flags: bpf.FlagSteer | bpf.FlagTCPOnly | bpf.FlagFailOpen}))
	frame := packettest.TCP{DstMAC: mac, Len: 100}.Frame()
	return q, func(frames int) {
		t.Helper()
		for range frames {
			_, err := prog.Run(&ebpf.RunOptions{Data: frame})
			fatal(err)
		}
	}
}

// woken reports whether the worker has been woken since the last call.
func (q *queue) woken() bool {
	var b [8]byte
	_, err := unix.Read(q.wakeFD, b[:])
	return err == nil
}

// A worker that is taken for hung is woken, in case it only waits for a frame that was lost; one that is not is left to sleep. The log
// speaks at once, and then of all that came within a minute together.
func TestHangsAreSaidAndTheWorkerIsWoken(t *testing.T) {
	q, redirect := hungQueue(t)
	var log bytes.Buffer
	u := &uplink{queues: []*queue{q}, log: slog.New(slog.NewTextHandler(&log, nil))}
	now := time.Now()
	expect := func(when string, woken bool, said string) {
		t.Helper()
		log.Reset()
		u.checkHangs(now)
		if got := q.woken(); got != woken {
			t.Errorf("%s: woken: %t", when, got)
		}
		if text := log.String(); said == "" && text != "" || !strings.Contains(text, said) {
			t.Errorf("%s: said %q, want %q", when, text, said)
		}
	}
	expect("nothing has come", false, "")
	redirect(40)
	expect("it hangs", true, "times=1 frames=")
	expect("it still hangs", true, "")
	q.shares.Publish()
	expect("it is back", false, "")
	for range 2 {
		redirect(40)
		q.shares.Publish()
	}
	now = now.Add(hangNews - time.Nanosecond)
	expect("within the minute", false, "")
	now = now.Add(time.Nanosecond)
	expect("after it", false, "times=2 frames=")
	now = now.Add(time.Hour)
	expect("nothing new", false, "")
}

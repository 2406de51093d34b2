package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/demo"
	"github.com/rscctl/rscctl/flowtable/checksum"
)

// gcEnv makes the controller's process collect its garbage again and again.
const gcEnv = "RSCCTL_BENCH_GC"

// gcEvery is the pause between two collections.
const gcEvery = 10 * time.Millisecond

func collectForEver() {
	for {
		runtime.GC()
		time.Sleep(gcEvery)
	}
}

// besides are what an operator does, while requests are timed, as often as his programs would at most.
var besides = map[string]struct {
	every time.Duration
	do    func(ctx context.Context, c *api.Client) error
}{
	// What a scrape looks at, all of it: the workers are asked as one asks them.
	"scrape": {100 * time.Millisecond, func(ctx context.Context, c *api.Client) error {
		_, err := c.Stats(ctx, "")
		return err
	}},
	// flows --watch --interval 1s: a window's lines of all that the map has.
	"watch": {time.Second, func(ctx context.Context, c *api.Client) error {
		_, err := c.Flows(ctx, api.FlowsQuery{Limit: 40})
		return err
	}},
}

// besideTime is how long requests are timed beside something that happens once a second.
const besideTime = 5 * time.Second

// disturbed are requests beside what must not disturb them: the rows of one way are compared with its first.
func disturbed() (rows []planned) {
	on := demo.Setting{Coalesce: true}
	for _, beside := range []string{"", "scrape", "watch"} {
		rows = append(rows, planned{way: oursMillion, set: on, ping: &pinging{beside: beside}})
	}
	return append(rows, planned{way: oursGC, set: on, ping: &pinging{}}, planned{way: oursBusy, set: on, ping: &pinging{}})
}

// undisturbed is the row that requests beside something are compared with.
func (p planned) undisturbed() (base planned, ok bool) {
	if p.ping == nil || p.ping.beside == "" && !p.way.gc {
		return base, false
	}
	base = planned{way: p.way, set: p.set, ping: &pinging{streams: p.ping.streams}}
	base.way.gc = false
	return base, true
}

// during does something again and again until the function that it returns is called, which tells whether that went well.
func during(ctx context.Context, s *demo.Stage, what string) (stop func() error) {
	b, ok := besides[what]
	if !ok {
		return func() error { return nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		for {
			if err := b.do(ctx, s.Client()); err != nil && ctx.Err() == nil {
				ended <- fmt.Errorf("%s: %w", what, err)
				return
			}
			select {
			case <-ctx.Done():
				ended <- nil
				return
			case <-time.After(b.every):
			}
		}
	}()
	return func() error {
		cancel()
		return <-ended
	}
}

// manyFlows asks the sender's process for one segment of each of so many flows.
type manyFlows struct {
	Wire string
	To   net.HardwareAddr
	N    int
}

var errFew = errors.New("the controller counts too few of the flows that were sent")

// track lets a stage's controller see as many flows as it can count, nearly.
func track(ctx context.Context, s *demo.Stage) error {
	const n = bpf.MaxFlowEntries * 15 / 16
	if err := s.Sender("flows", manyFlows{s.Wire(), s.GuestMAC(), n}, nil); err != nil {
		return err
	}
	f, err := s.Client().Flows(ctx, api.FlowsQuery{Limit: 1})
	if err != nil {
		return err
	}
	if f.Total < n*3/4 { // some are lost on the way, and an LRU map gives up some before it is full
		return fmt.Errorf("%w: %d of %d", errFew, f.Total, n)
	}
	return nil
}

// sendFlows is that operation: acknowledgements without data, which the guest's stack answers with resets.
func sendFlows(q manyFlows) error {
	link, err := net.InterfaceByName(q.Wire)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	const l3, l4 = 14, 34
	f := make([]byte, 60)
	copy(f, q.To)
	copy(f[6:], link.HardwareAddr)
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
	copy(f[l3:], []byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0, 10, 78, 0, 0, 10, 79, 0, 1})
	f[l4+12], f[l4+13] = 5<<4, 0x10
	to := &unix.SockaddrLinklayer{Ifindex: link.Index}
	for i := range q.N {
		binary.BigEndian.PutUint16(f[l3+14:], uint16(i>>16))
		binary.BigEndian.PutUint16(f[l4:], uint16(i))
		f[l3+10], f[l3+11], f[l4+16], f[l4+17] = 0, 0, 0, 0
		binary.BigEndian.PutUint16(f[l3+10:], ^checksum.Sum(f[l3:l4], 0))
		binary.BigEndian.PutUint16(f[l4+16:], ^checksum.Sum(f[l4:l4+20], checksum.Pseudo4(f[l3+12:l3+16], f[l3+16:l3+20], 6, 20)))
		if err := unix.Sendto(fd, f, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("packet socket: %w", err)
		}
	}
	return nil
}

// sendFlowsOp is sendFlows with its argument as it came.
func sendFlowsOp(arg json.RawMessage) (any, error) {
	var q manyFlows
	if err := json.Unmarshal(arg, &q); err != nil {
		return nil, err
	}
	return nil, sendFlows(q)
}

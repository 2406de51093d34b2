package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rscctl/rscctl/controller/demo"
	"github.com/rscctl/rscctl/vhost/stackguest"
)

// DPDK's way to a VM: testpmd between its AF_XDP and its vhost driver. A core of the machine is its own, on which it polls: its processor time
// is that core's, whatever comes. It merges nothing: its GRO goes by packet types (lib/gro/rte_gro.c), which the AF_XDP driver does not tell. So it
// forwards in the way that is the fastest, without a look at the packets.

// testpmdName is the program. Debian has it in dpdk-dev, its drivers in librte-net-af-xdp23 and librte-net-vhost23.
const testpmdName = "dpdk-testpmd"

var errNoTestpmd = errors.New("testpmd or a driver of it is not installed (apt-get install dpdk-dev librte-net-af-xdp23 librte-net-vhost23)")

// peer is the testpmd that runs beside this process, if there is one.
type peer struct {
	pid      atomic.Int64 // 0: none
	commands *os.File     // what keeps it going
}

// testpmdSocket is where the testpmd of the process with the uplink listens.
func testpmdSocket(hostPID int) string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("rscbench-dpdk-%d.sock", hostPID))
}

// start starts it in the namespace of the uplink. It ends with this process, whose pipe it reads its commands from.
func (p *peer) start(uplink string) error {
	program, err := exec.LookPath(testpmdName)
	drivers, _ := filepath.Glob("/usr/lib/*/dpdk/pmds-*/librte_net_*.so")
	if err != nil || len(drivers) == 0 {
		return errNoTestpmd
	}
	folder := filepath.Dir(drivers[0])
	socket := testpmdSocket(os.Getpid())
	args := []string{"--no-pci", "--no-huge", "-m", "512", "--no-shconf", "--no-telemetry", "--file-prefix", filepath.Base(socket), "-l", "0,1"}
	for _, name := range []string{"librte_net_af_xdp.so", "librte_net_vhost.so", "librte_mempool_ring.so"} {
		path := filepath.Join(folder, name)
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w: %s", errNoTestpmd, name)
		}
		args = append(args, "-d", path)
	}
	args = append(args, "--vdev", "net_af_xdp0,iface="+uplink+",start_queue=0,queue_count=1", "--vdev", "net_vhost0,iface="+socket+",queues=1",
		"--", "-i", "--auto-start", "--forward-mode=io", "--nb-cores=1", "--port-topology=paired", "--total-num-mbufs=32768")
	cmd := exec.Command(program, args...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	in, own, err := os.Pipe()
	if err == nil {
		cmd.Stdin = in
		err = cmd.Start()
		in.Close()
	}
	if err != nil {
		return fmt.Errorf("testpmd: %w", err)
	}
	p.commands = own
	p.pid.Store(int64(cmd.Process.Pid))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("testpmd: %w: %s", err, lastLine(said.String()))
		default:
		}
		if time.Now().After(end) {
			return fmt.Errorf("testpmd: no socket: %s", lastLine(said.String()))
		}
	}
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// openHostNIC is the guest's NIC at the end of another way than ours.
func openHostNIC(c demo.NICConfig) (demo.NIC, error) {
	socket := testpmdSocket(c.HostPID)
	if _, err := os.Stat(socket); err != nil {
		return openTapNIC(c)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return stackguest.Open(ctx, stackguest.Config{Socket: socket, Tap: c.Name, MAC: c.MAC, BufferLen: c.BufferLen, NAPI: c.NAPI})
}

//go:build linux

// Command guest is the whole user space of the test VM: the kernel starts it as init from an initramfs that holds little
// else. It loads the drivers, then does what package control's orders say, until it is told to power off.
//
// With the kernel argument "vm.root=DEVICE" it hands the machine over to the system on that disk, and takes orders there as a service:
// see root.go.
//
// It is a static binary (CGO_ENABLED=0). Orders and answers go over the second serial port; the first is the console,
// where a panic of this program, and then of the kernel, is seen.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/vm/control"
)

// controlPort is the serial port of the orders; the console is ttyS0.
const controlPort = "/dev/ttyS1"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	if os.Getpid() != 1 {
		os.Exit(1)
	}
	// Init must not return (the kernel would panic, with a long trace that hides the line above).
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	if len(os.Args) == 2 && os.Args[1] == agentArg {
		return takeOrders()
	}
	if os.Getpid() != 1 {
		return fmt.Errorf("this is the init of a test VM: it must not run anywhere else (pid %d)", os.Getpid())
	}
	if err := mountAll(); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	if disk := rootDisk(); disk != "" {
		return handOver(disk)
	}
	if err := checkKernel(); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	return takeOrders()
}

// takeOrders does what comes over the control port, until it ends.
func takeOrders() error {
	port, err := openControl()
	if err != nil {
		return err
	}
	out := &replies{enc: json.NewEncoder(port)}
	return serve(port, out, newGuest(out))
}

// serve answers orders until the port ends. Every order has a goroutine: some take minutes.
func serve(port io.ReadWriter, out *replies, g *guest) error {
	// A reboot may have cut a line in two: end it.
	if _, err := io.WriteString(port, "\n"); err != nil {
		return err
	}
	hello := control.Hello{Kernel: release(), CPUs: runtime.NumCPU(), NIC: g.nicName()}
	if err := out.send(control.Reply{Event: control.EventReady}, hello, nil); err != nil {
		return err
	}
	lines := bufio.NewScanner(port)
	for lines.Scan() {
		var req control.Request
		if err := json.Unmarshal(lines.Bytes(), &req); err != nil {
			fmt.Fprintf(os.Stderr, "guest: order %q: %v\n", lines.Text(), err)
			continue
		}
		go func() {
			result, err := g.do(req)
			if err := out.send(control.Reply{ID: req.ID}, result, err); err != nil {
				fmt.Fprintln(os.Stderr, "guest: answer:", err)
			}
			if err == nil {
				afterwards(req.Op)
			}
		}()
	}
	return lines.Err()
}

// replies writes one line at a time.
type replies struct {
	mu  sync.Mutex
	enc *json.Encoder
}

func (r *replies) send(reply control.Reply, result any, failure error) error {
	if failure != nil {
		reply.Error = failure.Error()
	}
	if result != nil {
		b, err := json.Marshal(result)
		if err != nil {
			return err
		}
		reply.Result = b
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.enc.Encode(reply)
}

// afterwards does what can only be done once the answer is out.
func afterwards(op string) {
	cmd := 0
	switch op {
	case control.OpReboot:
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	case control.OpPowerOff:
		cmd = unix.LINUX_REBOOT_CMD_POWER_OFF
	default:
		return
	}
	drainControl()
	if err := unix.Reboot(cmd); err != nil {
		fmt.Fprintln(os.Stderr, "guest: reboot:", err)
	}
}

package vm

import (
	"fmt"
	"strings"

	"github.com/rscctl/rscctl/test/netnstest"
)

// Options describe one VM. The zero value of a field is what its comment says.
type Options struct {
	Kernel Kernel
	Initrd string        // as BuildInitrd wrote it
	Dir    string        // where the console log goes
	Name   string        // of that log, and in errors; "vm"
	QEMU   string        // the program; the one in the path
	NS     *netnstest.NS // where QEMU runs; nil: the namespace of the test. A vhost-user NIC does not care

	CPUs   int    // 1
	Count  bool   // the guest's clock goes by the instructions that it executes: see clock. For one CPU
	Memory string // "512M", shared with the back-end
	Append string // more kernel arguments
	Disk   string // a raw image, the guest's /dev/vda; what is written to it is forgotten with the VM

	Wire string // a NIC model, "igb": two of them beside the other devices, with a wire between them

	// Netdev is the back-end of the NIC without its id, for example "tap,ifname=tap0,script=no,downscript=no". VhostUser
	// is its usual value: the socket where the back-end listens. Both empty: no NIC.
	Netdev    string
	VhostUser string
	Serve     bool // QEMU listens on VhostUser and the back-end dials
	Reconnect int  // seconds after which QEMU dials a lost back-end again; 1
	Pairs     int  // queue pairs; 1
	MAC       string

	RxQueue    int      // rx_queue_size; 1024: superframes need many buffers
	TxQueue    int      // tx_queue_size; 256. More than that is for vhost-user only
	NoMrgRxbuf bool     // a buffer must hold a whole frame
	NoIndirect bool     // indirect_desc=off
	NoEventIdx bool     // event_idx=off
	Device     []string // more properties of virtio-net-pci
}

func (o *Options) defaults() {
	def(&o.Name, "vm")
	def(&o.QEMU, QEMU)
	def(&o.CPUs, 1)
	def(&o.Memory, "512M")
	def(&o.Reconnect, 1)
	def(&o.Pairs, 1)
	def(&o.RxQueue, 1024)
	def(&o.TxQueue, 256)
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// args is QEMU's command line. The control port is its standard input and output.
func (o *Options) args(console string) []string {
	a := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", o.machine() + ",memory-backend=ram,usb=off,vmport=off,hpet=off",
		// TCG executes `rep movsb` byte by byte; without erms and fsrm the guest copies by words. With cx16 Linux 6.12 died in two runs of three
		// under QEMU 7.2, behind a cmpxchg16b in its allocator that left wrong flags.
		"-cpu", "max,-erms,-fsrm,-cx16",
		"-smp", fmt.Sprint(o.CPUs), "-m", o.Memory,
		// Shared, or a vhost-user back-end could not map it.
		"-object", "memory-backend-memfd,id=ram,share=on,size=" + o.Memory,
		"-kernel", o.Kernel.Image, "-initrd", o.Initrd,
		"-append", strings.TrimSpace("console=ttyS0 quiet loglevel=5 panic=-1 random.trust_cpu=on " + o.Append),
		"-chardev", "file,id=console,path=" + console, "-serial", "chardev:console",
		"-chardev", "stdio,id=control,signal=off", "-serial", "chardev:control",
	}
	a = append(a, o.clock()...)
	if o.Disk != "" {
		a = append(a, "-drive", "if=none,id=disk,format=raw,snapshot=on,file="+o.Disk, "-device", "virtio-blk-pci,drive=disk")
	}
	if o.Wire != "" {
		for i, end := range []string{"wire0", "wire1"} {
			// A port for each: the virtual functions of two would have the same place on one bus.
			port := fmt.Sprintf("pcie-root-port,id=port%d,chassis=%d", i, i)
			a = append(a, "-device", port, "-netdev", "hubport,hubid=0,id="+end, "-device", fmt.Sprintf("%s,romfile=,bus=port%d,netdev=%s", o.Wire, i, end))
		}
	}
	netdev := o.Netdev
	if o.VhostUser != "" {
		way := fmt.Sprintf("reconnect=%d", o.Reconnect)
		if o.Serve {
			way = "server=on"
		}
		a = append(a, "-chardev", fmt.Sprintf("socket,id=backend,path=%s,%s", o.VhostUser, way))
		netdev = fmt.Sprintf("vhost-user,chardev=backend,queues=%d", o.Pairs)
	}
	if netdev == "" {
		return a
	}
	return append(a, "-netdev", netdev+",id=net0", "-device", o.device())
}

// clock is what runs the guest's processors, and what its clocks go by: this machine's, unless instructions are counted.
//
// Then an instruction takes a nanosecond, and an idle guest's clock goes to its next timer at once. The time stamp counter and the timers
// follow that clock, and so do Linux's clocks and what it says of processor time: a second of that is 10^9 instructions, however
// busy this machine is. Several processors have one count, so each would be charged for what the others execute.
func (o *Options) clock() []string {
	if !o.Count {
		return []string{"-accel", "tcg,thread=multi"}
	}
	return []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"}
}

// machine is a PC, with PCI Express where a model of a real NIC needs it.
func (o *Options) machine() string {
	if o.Wire != "" {
		return "q35"
	}
	return "pc"
}

func (o *Options) device() string {
	d := []string{"virtio-net-pci,netdev=net0", "romfile=", // no option ROM: the BIOS must not touch the NIC
		// QEMU 7.2 without KVM crashes when a vhost-user NIC's interrupts become MSI-X.
		"vectors=0",
		fmt.Sprintf("rx_queue_size=%d", o.RxQueue), fmt.Sprintf("tx_queue_size=%d", o.TxQueue),
		"mrg_rxbuf=" + onOff(!o.NoMrgRxbuf), "indirect_desc=" + onOff(!o.NoIndirect), "event_idx=" + onOff(!o.NoEventIdx),
	}
	if o.MAC != "" {
		d = append(d, "mac="+o.MAC)
	}
	if o.Pairs > 1 {
		d = append(d, "mq=on")
	}
	return strings.Join(append(d, o.Device...), ",")
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

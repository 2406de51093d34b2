package vring_test

import (
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/vhost/guestmem"
	"github.com/rscctl/rscctl/vhost/virtio"
	"github.com/rscctl/rscctl/vhost/vring"
	"github.com/rscctl/rscctl/vhost/vring/vringtest"
)

// A guest whose memory file is cut short costs one recoverable panic in whatever call touches it, the assembly of the
// atomics included.
func TestTruncatedGuestMemoryFaultsRecoverably(t *testing.T) {
	o := vringtest.Options{Num: 8, Features: virtio.Mask(virtio.FEventIdx), Data: 8192}
	size := int64(vringtest.Size(o)+4095) &^ 4095
	for name, call := range map[string]func(d vring.Device){
		"Next":         func(d vring.Device) { _, _ = d.Next(new(vring.Chain)) },
		"Available":    func(d vring.Device) { d.Available(vring.Position{}) },
		"Push":         func(d vring.Device) { d.Push([]vring.Used{{}}) },
		"EnableNotify": func(d vring.Device) { d.EnableNotify() },
	} {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.MemfdCreate("vring", unix.MFD_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.Ftruncate(fd, size); err != nil {
				t.Fatal(err)
			}
			table, err := guestmem.Map([]guestmem.Region{{GPA: vringtest.DefaultGPA, Size: uint64(size), UVA: vringtest.DefaultUVA, FD: fd}})
			if err != nil {
				t.Fatal(err)
			}
			defer table.Close()
			o.Mem, _ = table.Slice(vringtest.DefaultGPA, uint64(size))
			g := vringtest.New(o)
			g.SetAvail(0, 1)
			d, err := g.Device()
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Ftruncate(fd, 0); err != nil {
				t.Fatal(err)
			}
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			fault := func() (r any) {
				defer func() { r = recover() }()
				call(d)
				return nil
			}()
			if _, ok := fault.(error); !ok {
				t.Errorf("recovered %v", fault)
			}
		})
	}
}

package pcapng

import (
	"fmt"
	"io"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/rscctl/rscctl/controller/api"
)

// Writer writes one section with one interface: the uplink, or on the guest's side the VM. One goroutine uses it. After an error
// nothing more can be written.
type Writer struct {
	head   *api.CaptureHead
	w      *pcapgo.NgWriter
	frames uint64
	lost   uint64 // in all
	since  uint64 // since the last frame
	began  time.Time
}

// NewWriter writes the section's and the interface's header. version is the program's.
func NewWriter(out io.Writer, head *api.CaptureHead, version string) (*Writer, error) {
	nic := pcapgo.NgInterface{Name: head.Iface, Description: "frames for and from VM " + head.VM, LinkType: layers.LinkTypeEthernet, SnapLength: uint32(head.SnapLen), Comment: head.Note}
	if head.Side == api.SideGuest {
		nic.Name, nic.Description = head.VM, "frames that VM "+head.VM+" got from "+head.Iface
	}
	w, err := pcapgo.NewNgWriterInterface(out, nic, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "rscctl " + version, OS: "Linux"}})
	if err != nil {
		return nil, err
	}
	return &Writer{head: head, w: w, began: time.Now()}, nil
}

// Frames is how many frames were written, Lost how many are not there because they came too fast.
func (w *Writer) Frames() uint64 { return w.frames }

// Lost: see Frames.
func (w *Writer) Lost() uint64 { return w.lost }

// Block writes a frame, or notes a loss. It may stay in a buffer until Flush.
func (w *Writer) Block(k *api.CaptureBlock) error {
	switch k.Kind {
	case api.BlockLost:
		w.lost += k.Count
		w.since += k.Count
		return nil
	case api.BlockFrame:
	default:
		return nil
	}
	way := pcapgo.NgEpbFlagDirectionInbound
	if k.ToWire {
		way = pcapgo.NgEpbFlagDirectionOutbound
	}
	queue := uint32(k.Queue)
	opt := pcapgo.NgPacketOptions{Comments: []string{Comment(w.head, k)}, Flags: &pcapgo.NgEpbFlags{Direction: way}, Queue: &queue}
	if w.since > 0 {
		lost := w.since
		opt.DropCount = &lost
	}
	err := w.w.WritePacketWithOptions(gopacket.CaptureInfo{Timestamp: time.Unix(0, k.TimeNS), CaptureLength: len(k.Data), Length: int(k.Len)}, k.Data, opt)
	if err == nil {
		w.frames++
		w.since = 0
	}
	return err
}

// Flush writes what is in the buffer. Behind it the output ends with a whole block.
func (w *Writer) Flush() error { return w.w.Flush() }

// Close ends the section with the interface's counts, and flushes. It does not close the output.
func (w *Writer) Close() error {
	err := w.w.WriteInterfaceStats(0, pcapgo.NgInterfaceStatistics{
		LastUpdate: time.Now(), StartTime: w.began, EndTime: time.Now(), PacketsReceived: w.frames + w.lost, PacketsDropped: w.lost,
	})
	if err != nil {
		return fmt.Errorf("counts: %w", err)
	}
	return w.Flush()
}

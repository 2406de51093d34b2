package pcapng

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/rscctl/rscctl/controller/api"
	pt "github.com/rscctl/rscctl/flowtable/packet/packettest"
)

func head(side api.Side) *api.CaptureHead {
	return &api.CaptureHead{VM: "web1", Iface: "eth1", Side: side, SnapLen: api.MaxSnapLen, Note: "a note",
		Deeds: []string{"seal", "pass", "hold", "drop", "deliver", "send"}, Reasons: []string{"psh", "max_bytes", "source_mac"}}
}

func TestCommentsSayWhatIsKnownOfAFrame(t *testing.T) {
	for want, k := range map[string]api.CaptureBlock{
		"eth1 queue 2, to web1: merged, and the last of its superframe (psh)": {Queue: 2},
		"eth1 queue 0, to web1: passed alone (max_bytes)":                     {Deed: 1, Reason: 1},
		"eth1 queue 0, to web1: held to be merged":                            {Deed: 2},
		"eth1 queue 0, from web1: dropped (source_mac)":                       {Deed: 3, Reason: 2, ToWire: true},
		"eth1 queue 0, from web1: sent":                                       {Deed: 5, ToWire: true},
		"eth1 queue 0, to web1: 9 (77)":                                       {Deed: 9, Reason: 77},
		"eth1 queue 0, to web1: superframe of 45 packets (max_bytes); virtio: flags=needs_csum gso_type=tcpv4 gso_size=1448 hdr_len=66 csum_start=34 csum_offset=16 num_buffers=5": {
			Deed: 4, Reason: 1, Packets: 45, Hdr: api.VirtioHeader{Flags: 1, GSOType: 1, HdrLen: 66, GSOSize: 1448, CsumStart: 34, CsumOffset: 16, NumBuffers: 5}},
		"eth1 queue 0, to web1: superframe of 3 packets (psh); virtio: flags=needs_csum+rsc_info gso_type=tcpv6+ecn gso_size=1 hdr_len=2 segments=3 dup_acks=4": {
			Deed: 4, Packets: 3, Hdr: api.VirtioHeader{Flags: 5, GSOType: 0x84, HdrLen: 2, GSOSize: 1, CsumStart: 3, CsumOffset: 4}},
		"eth1 queue 0, to web1: passed alone (psh); virtio: flags=data_valid gso_type=none": {Deed: 4, Packets: 1, Hdr: api.VirtioHeader{Flags: 2}},
		"eth1 queue 0, to web1: passed alone (psh); virtio: flags=none gso_type=99":         {Deed: 4, Hdr: api.VirtioHeader{GSOType: 99}},
	} {
		if got, _, _ := strings.Cut(Comment(head(api.SideWire), &k), " gso_size=0"); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// The file is read by Wireshark's own programs where they are, and always by gopacket's reader.
func TestTheFileIsRead(t *testing.T) {
	var out bytes.Buffer
	w, err := NewWriter(&out, head(api.SideGuest), "v1")
	if err != nil {
		t.Fatal(err)
	}
	frames := pt.Frames(pt.TCP{Len: 1001}.Train(3)...)
	for i, f := range frames {
		if err := w.Block(&api.CaptureBlock{Kind: api.BlockFrame, Deed: 4, Reason: 1, Packets: uint32(i + 1), Len: uint32(len(f)), TimeNS: 1767225600123456789, Data: f[:len(f)-i], ToWire: i == 1}); err != nil {
			t.Fatal(err)
		}
		if err := w.Block(&api.CaptureBlock{Kind: api.BlockLost, Count: 2}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil || w.Frames() != 3 || w.Lost() != 6 {
		t.Fatalf("%v, %d frames, %d lost", err, w.Frames(), w.Lost())
	}
	r, err := pcapgo.NewNgReader(bytes.NewReader(out.Bytes()), pcapgo.NgReaderOptions{StatisticsCallback: func(int, pcapgo.NgInterfaceStatistics) {}})
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range frames {
		data, ci, opt, err := r.ReadPacketDataWithOptions()
		if err != nil || !bytes.Equal(data, f[:len(f)-i]) || ci.Length != len(f) || ci.Timestamp.UnixNano() != 1767225600123456789 {
			t.Fatalf("packet %d: %+v, %v", i, ci, err)
		}
		way := pcapgo.NgEpbFlagDirectionInbound
		if i == 1 {
			way = pcapgo.NgEpbFlagDirectionOutbound
		}
		if opt.Flags.Direction != way || (i > 0) != (opt.DropCount != nil) || !strings.Contains(opt.Comments[0], "max_bytes") {
			t.Errorf("packet %d: %+v", i, opt)
		}
	}
	if nic, err := r.Interface(0); err != nil || nic.Name != "web1" || nic.Comment != "a note" {
		t.Errorf("interface %+v, %v", nic, err)
	}

	path := filepath.Join(t.TempDir(), "f.pcapng")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Log("read by gopacket alone: there is no tshark")
		return
	}
	text, err := exec.Command("tshark", "-r", path, "-T", "fields", "-e", "frame.comment", "-e", "frame.interface_name", "-e", "tcp.len").CombinedOutput()
	if err != nil || strings.Count(string(text), "(max_bytes); virtio: ") != 3 || strings.Count(string(text), "\tweb1\t1001\n") != 3 {
		t.Errorf("tshark: %v\n%s", err, text)
	}
}

// A writer that fails says so, at once or when it is flushed.
func TestAFullDiskIsAnError(t *testing.T) {
	for room := range 3000 {
		disk := &disk{room: room}
		w, err := NewWriter(disk, head(api.SideWire), "v1")
		for range 10 {
			if err == nil {
				err = w.Block(&api.CaptureBlock{Kind: api.BlockFrame, Len: 200, Data: make([]byte, 200)})
			}
		}
		if err == nil {
			err = w.Close()
		}
		if !errors.Is(err, errDisk) {
			t.Fatalf("%d bytes: %v", room, err)
		}
	}
}

var errDisk = errors.New("no space left on device")

type disk struct{ room int }

func (d *disk) Write(b []byte) (int, error) {
	n := min(len(b), d.room)
	if d.room -= n; n < len(b) {
		return n, errDisk
	}
	return n, nil
}

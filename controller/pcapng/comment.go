package pcapng

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/rscctl/rscctl/controller/api"
)

// Comment is what is known of a frame beside its bytes: where it was, what was done with it and why, and on the guest's side what
// the guest was told of it.
func Comment(head *api.CaptureHead, k *api.CaptureBlock) string {
	way := "to"
	if k.ToWire {
		way = "from"
	}
	text := fmt.Sprintf("%s queue %d, %s %s: %s", head.Iface, k.Queue, way, head.VM, fate(head, k))
	if name(head.Deeds, k.Deed) == "deliver" {
		text += "; virtio: " + header(&k.Hdr)
	}
	return text
}

func fate(head *api.CaptureHead, k *api.CaptureBlock) string {
	reason := name(head.Reasons, k.Reason)
	switch deed := name(head.Deeds, k.Deed); deed {
	case "send":
		return "sent"
	case "hold":
		return "held to be merged"
	case "seal":
		return "merged, and the last of its superframe (" + reason + ")"
	case "pass":
		return "passed alone (" + reason + ")"
	case "drop":
		return "dropped (" + reason + ")"
	case "deliver":
		if k.Packets > 1 {
			return fmt.Sprintf("superframe of %d packets (%s)", k.Packets, reason)
		}
		return "passed alone (" + reason + ")"
	default:
		return deed + " (" + reason + ")"
	}
}

// name is a number's name, or the number where a newer controller has more of them.
func name(names []string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return strconv.Itoa(int(i))
}

// Of struct virtio_net_hdr_v1 (virtio 1.2, section 5.1.6).
const (
	rscInfo = 4
	gsoECN  = 0x80
)

var (
	hdrFlags = []string{"needs_csum", "data_valid", "rsc_info"}
	gsoTypes = map[uint8]string{0: "none", 1: "tcpv4", 3: "udp", 4: "tcpv6", 5: "udp_l4"}
)

// header writes the fields that mean something.
func header(h *api.VirtioHeader) string {
	var flags []string
	for i, n := range hdrFlags {
		if h.Flags&(1<<i) != 0 {
			flags = append(flags, n)
		}
	}
	if len(flags) == 0 {
		flags = []string{"none"}
	}
	gso, ok := gsoTypes[h.GSOType&^gsoECN]
	if !ok {
		gso = strconv.Itoa(int(h.GSOType))
	}
	if h.GSOType&gsoECN != 0 {
		gso += "+ecn"
	}
	out := fmt.Sprintf("flags=%s gso_type=%s", strings.Join(flags, "+"), gso)
	if h.GSOType != 0 {
		out += fmt.Sprintf(" gso_size=%d hdr_len=%d", h.GSOSize, h.HdrLen)
	}
	switch {
	case h.Flags&rscInfo != 0:
		out += fmt.Sprintf(" segments=%d dup_acks=%d", h.CsumStart, h.CsumOffset)
	case h.Flags&1 != 0:
		out += fmt.Sprintf(" csum_start=%d csum_offset=%d", h.CsumStart, h.CsumOffset)
	}
	if h.NumBuffers > 0 {
		out += fmt.Sprintf(" num_buffers=%d", h.NumBuffers)
	}
	return out
}

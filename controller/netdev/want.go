package netdev

import "fmt"

// Want is what must stay true of an uplink while a program and sockets are on it.
type Want struct {
	RxQueues int
	MaxMTU   int    // the largest that the sockets' chunks hold
	Program  uint32 // kernel id of the XDP program that must be attached; 0: none is to be now
}

// Broken says why program and sockets have to be opened anew, "" when they still fit. A program of somebody else on an
// interface that is to have none is the next attach's matter.
func (w Want) Broken(now *Facts) string {
	switch {
	case now.RxQueues != w.RxQueues:
		return fmt.Sprintf("the number of RX queues changed from %d to %d", w.RxQueues, now.RxQueues)
	case now.MTU > w.MaxMTU:
		return fmt.Sprintf("the MTU is %d now, and what is open holds at most %d", now.MTU, w.MaxMTU)
	case w.Program == 0 || now.XDP.Mode == "multi" && now.XDP.ProgID == 0: // with an offloaded one beside it the kernel tells no id
		return ""
	case !now.XDP.Attached:
		return "somebody took the XDP program off"
	case now.XDP.ProgID != w.Program:
		return fmt.Sprintf("somebody put XDP program %d in the place of ours", now.XDP.ProgID)
	}
	return ""
}

// SwitchedOn lists the offloads of frames that come in which are on now and were off: each hides something from XDP.
func SwitchedOn(was, now *Facts) (out []string) {
	for _, o := range []struct {
		was, now bool
		feature  string
	}{{was.RxVLAN, now.RxVLAN, RxVLAN}, {was.LRO, now.LRO, LRO}, {was.GROHW, now.GROHW, GROHW}} {
		if o.now && !o.was {
			out = append(out, o.feature)
		}
	}
	return out
}

package netdev

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// tcHook is a place where TC looks at frames: filters under clsact (or the older ingress), and TCX programs.
type tcHook struct {
	parent uint32
	attach ebpf.AttachType
}

var (
	tcIngress = tcHook{netlink.HANDLE_MIN_INGRESS, ebpf.AttachTCXIngress}
	tcEgress  = tcHook{netlink.HANDLE_MIN_EGRESS, ebpf.AttachTCXEgress}
)

// ObserverName is the name of our program that only counts ('rscctl observe'), as TCX shows it; a filter under clsact may be called
// so with something behind a plus sign. It lets every frame pass as it is, so no frame misses it on another path.
const ObserverName = "rsc_observe"

// HostOutName and HostInName are those of our programs by which VMs on vhost-user and the host are neighbours. Frames of VMs on taps are
// nothing to them.
const (
	HostOutName = "rsc_host_out"
	HostInName  = "rsc_host_in"
)

// isObserver reports whether a program is one of ours that no frame of a VM on a tap misses.
func isObserver(name string) bool {
	name, _, _ = strings.Cut(name, "+")
	return name == ObserverName || name == HostOutName || name == HostInName
}

// tcUsers names the filters and programs that hang on an interface there, but for our own, which are known by their names or, where the kernel
// tells none, by their numbers.
func (h *Handle) tcUsers(index int, at tcHook, ours []uint32) (out []string, err error) {
	filters, err := h.tcFilters(index, at.parent)
	if err != nil {
		return nil, err
	}
	programs, err := tcxPrograms(index, at.attach, ours)
	return append(filters, programs...), err
}

// tcFilters lists the filters by preference and kind, with the names of BPF programs. What a filter matches is not read.
func (h *Handle) tcFilters(index int, parent uint32) (out []string, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETTFILTER, unix.NLM_F_DUMP)
	req.Sockets = h.raw
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Parent: parent})
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTFILTER)
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return nil, err
	}
	type preference struct {
		text            string
		observer, other bool // what hangs there
	}
	var all []*preference
	at := map[string]*preference{}
	for _, m := range msgs {
		if len(m) < nl.SizeofTcMsg {
			continue
		}
		head, a := nl.DeserializeTcMsg(m), parseAttrs(m[nl.SizeofTcMsg:])
		text := fmt.Sprintf("filter %s of preference %d", a.text(nl.TCA_KIND), head.Info>>16)
		p := at[text]
		if p == nil {
			p = &preference{text: text}
			at[text], all = p, append(all, p)
		}
		name := ""
		if a.text(nl.TCA_KIND) == "bpf" {
			name = a.nested(nl.TCA_OPTIONS).text(nl.TCA_BPF_NAME)
		}
		switch {
		case head.Handle == 0: // the preference; one message for each of its filters follows
		case isObserver(name):
			p.observer = true
		default:
			p.other = true
			if name != "" {
				p.text += fmt.Sprintf(" (%s)", name)
			}
		}
	}
	for _, p := range all {
		if p.other || !p.observer {
			out = append(out, p.text)
		}
	}
	return out, nil
}

// tcxPrograms lists the TCX programs; none on a kernel before 6.6.
func tcxPrograms(index int, at ebpf.AttachType, ours []uint32) (out []string, err error) {
	r, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at})
	switch {
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("tcx: %w", err)
	}
	for _, p := range r.Programs {
		if slices.Contains(ours, uint32(p.ID)) {
			continue
		}
		if name := programName(p.ID); !isObserver(name) {
			out = append(out, "program "+name)
		}
	}
	return out, nil
}

func programName(id ebpf.ProgramID) string {
	if p, err := ebpf.NewProgramFromID(id); err == nil {
		defer p.Close()
		if info, err := p.Info(); err == nil && info.Name != "" {
			return info.Name
		}
	}
	return fmt.Sprintf("%d", id)
}

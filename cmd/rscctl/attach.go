package main

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
)

func attachCommand(s streams) *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "vm", Usage: "`NAME` of the VM, for example libvirt's (required)"},
		&cli.StringSliceFlag{Name: "mac", Usage: "the VM's `MAC` address (required); further ones, of VRRP, macvlan or a bridge in the guest, by the flag again"},
		&cli.StringFlag{Name: "vhost-user", Usage: "Unix `SOCKET` shared with the VM's vhost-user netdev (this, or --tap or --domain)"},
		&cli.StringFlag{Name: "tap", Usage: "the tap `DEV` that the VM has already; its netdev stays as it is"},
		&cli.StringFlag{Name: "domain", Usage: "the VM's libvirt domain `NAME`: virsh is asked for the tap that has the MAC (with --tap, or alone)"},
		boolFlag("trust-tap", "with --tap: your word that DEV is the VM's, where nothing on the host shows it"),
		boolFlag("bypass-filters", "with --tap: go on although bridge, netfilter or TC rules will not see the VM's TCP frames"),
		boolFlag("connect", "dial the socket (QEMU serves it) instead of listening on it"),
		&cli.IntFlag{Name: "vlan", Usage: "access port of VLAN `ID` 1 to 4094; without it the VM gets untagged frames",
			DefaultText: "untagged"},
		&cli.IntFlag{Name: "mtu", Usage: "`BYTES` of an IP packet, 68 to 65535, that the VM sends and gets at most; what is longer is dropped and counted (bad_length)",
			DefaultText: "the interface's"},
		&cli.StringFlag{Name: "socket-mode", Usage: "file `MODE` of the vhost-user socket, octal", DefaultText: "0660"},
		&cli.StringFlag{Name: "socket-owner", Usage: "owner of the vhost-user socket, `USER:GROUP`: whom QEMU runs as",
			DefaultText: "libvirt's libvirt-qemu:kvm or qemu:qemu where the host has it, otherwise root"},
		boolFlag("allow-spoof", "let the VM send frames with a foreign source MAC"),
		boolFlag("no-host", "as --host off: keep the VM and this host apart on IFACE"),
		boolFlag("any-memory", "take guest memory from any file system but FUSE, not only memfd, /dev/shm and huge pages: a file that does not answer makes all VMs wait"),
		&cli.StringFlag{Name: "xsk-map", Usage: "IFACE's XDP program is somebody else's and stays: `PATH` of its pinned map of AF_XDP sockets, which gets ours"},
		&cli.StringSliceFlag{Name: "queue", Usage: "with --xsk-map: receive queue `N`[,N] whose frames that program sends to its socket"},
		boolFlag("fix-offloads", "switch off what hides checksums from us on a reachable veth peer"),
		boolFlag("dry-run", "say what would be changed, change nothing"),
		outputFlag(), socketFlag(),
	}
	return &cli.Command{
		Name:      "attach",
		Usage:     "put a VM on an interface",
		ArgsUsage: "IFACE",
		UsageText: "rscctl attach IFACE --vm NAME --mac MAC (--vhost-user SOCKET | --tap DEV | --domain NAME) [flags]",
		Description: `Frames for the VM's MAC address (and VLAN) that arrive on IFACE go to the VM, merged by its policy; everything else
stays with the host. Several VMs may share an interface. They, this host and what is in IFACE's bridge reach one another; --isolate
and --no-host keep a VM apart from the others, and from the host. By default rscctl listens on the socket and QEMU connects:
   -chardev socket,id=c0,path=SOCKET,reconnect=1 -netdev vhost-user,id=n0,chardev=c0

With --tap the VM keeps its ordinary tap netdev (vhost=on or off) and is not restarted: its TCP frames take the way through
rscctl to the tap, everything else stays on the kernel's path, and so does all of it while coalescing is off. A tap is
attached only when it is proved to be the VM's, by its MAC address: libvirt's address of the tap, the command line of the
process that has it open, the bridge's forwarding entry, or libvirt itself with --domain. When the VM comes back behind
another tap, it is found again.

With --xsk-map no XDP program of rscctl's is loaded: the one that is on IFACE sends frames of the queues that --queue names to
the sockets that rscctl puts into its map. Those for VMs are merged as ever; those for nobody are dropped, as the kernel cannot
have them back. Flows are not counted then, and VMs are attached by --vhost-user alone. All VMs of IFACE name the same.

What attach changes on the host is printed, shown beforehand by --dry-run, and undone by detach. Attached again in the same way, a VM is
left alone; in another way (with the same IFACE and MAC), what differs is changed: the policy while the VM runs, anything else by
attaching it anew, which takes a vhost-user VM's link down for a moment. What is not said of the policy stays as it is.`,
		Flags:  append(append(flags, tenantFlags()...), policyFlags()...),
		Action: func(c *cli.Context) error { return attach(c, s) },
	}
}

func attach(c *cli.Context, s streams) error {
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	req, err := attachRequest(c)
	if err != nil {
		return err
	}
	resp, err := client(c).Attach(c.Context, req)
	if err != nil {
		return on("attach", err)
	}
	if asJSON {
		return printJSON(s.out, resp)
	}
	p := newPrinter(s.out)
	title, verb := "attached %s to %s", "changed"
	switch {
	case resp.Deed == api.DeedNone:
		title = "%s is attached to %s in this way already"
	case resp.Deed == api.DeedChanged && resp.DryRun:
		title, verb = "would change %s on %s", "would change"
	case resp.Deed == api.DeedChanged:
		title = "changed %s on %s"
	case resp.DryRun:
		title, verb = "would attach %s to %s", "would change"
	}
	p.line(title, resp.VM, resp.Iface)
	for _, change := range resp.Changes {
		p.line("  %s: %s", verb, change)
	}
	if len(resp.Changes) == 0 && resp.Deed != api.DeedNone {
		p.line("  %s: nothing", verb)
	}
	for _, n := range resp.Notes {
		p.line("  note: %s", n)
	}
	for _, w := range resp.Warnings {
		p.line("  warning: %s", w)
	}
	return p.flush()
}

// attachRequest refuses what no controller could accept; whether names and places are free is the controller's to say.
func attachRequest(c *cli.Context) (api.AttachRequest, error) {
	req := api.AttachRequest{
		VM: c.String("vm"), MAC: firstOf(c.StringSlice("mac")), VLAN: c.Int("vlan"),
		VhostUser: c.String("vhost-user"), Connect: c.Bool("connect"), Tap: c.String("tap"), Bypass: c.Bool("bypass-filters"),
		Domain: c.String("domain"), TrustTap: c.Bool("trust-tap"),
		AllowSpoof: c.Bool("allow-spoof"), AnyMemory: c.Bool("any-memory"), FixOffloads: c.Bool("fix-offloads"),
		SocketMode: c.String("socket-mode"), SocketOwner: c.String("socket-owner"), MTU: c.Int("mtu"),
		XSKMap: c.String("xsk-map"), DryRun: c.Bool("dry-run"),
	}
	args, err := positionals(c, 1, 1, "IFACE")
	if err != nil {
		return req, err
	}
	req.Iface = args[0]
	for _, f := range [][2]string{{"vm", req.VM}, {"mac", req.MAC}} {
		if f[1] == "" {
			return req, usagef("attach: --%s missing: usage: %s", f[0], c.Command.UsageText)
		}
	}
	switch tap := req.Tap != "" || req.Domain != ""; {
	case req.VhostUser == "" && !tap:
		return req, usagef("attach: no way to the VM: give --vhost-user, --tap or --domain: usage: %s", c.Command.UsageText)
	case req.VhostUser != "" && tap:
		return req, usagef("attach: --vhost-user and --tap (or --domain) are two ways to the VM: give one of them")
	}
	if req.TrustTap && req.Tap == "" {
		return req, usagef("attach: --trust-tap: it is your word for the tap that --tap names: name it")
	}
	hw, err := net.ParseMAC(req.MAC)
	if err != nil || len(hw) != 6 {
		return req, usagef("attach: --mac %s: not a MAC address: say six bytes like 52:54:00:12:34:56", req.MAC)
	}
	req.MAC = hw.String()
	if c.IsSet("vlan") && (req.VLAN < 1 || req.VLAN > 4094) {
		return req, usagef("attach: --vlan %d: no such VLAN: say 1 to 4094, or leave it out for untagged frames", req.VLAN)
	}
	if c.IsSet("mtu") && (req.MTU < 68 || req.MTU > 65535) {
		return req, usagef("attach: --mtu %d: no packet is so large: say 68 to 65535, or leave it out for the interface's", req.MTU)
	}
	for _, name := range feedFlags(req) {
		if c.IsSet(name) {
			return req, usagef("attach: --%s: has no meaning for this way to the VM: leave it out", name)
		}
	}
	if req.VhostUser, err = socketPath(req.VhostUser); err != nil {
		return req, err
	}
	if err := foreignFlags(c, &req); err != nil {
		return req, err
	}
	if req.SocketMode != "" {
		if _, err := strconv.ParseUint(req.SocketMode, 8, 9); err != nil {
			return req, usagef("attach: --socket-mode %s: not a file mode: say an octal number like 0660", req.SocketMode)
		}
	}
	if req.Connect && (req.SocketMode != "" || req.SocketOwner != "") {
		return req, usagef("attach: --connect: the socket is QEMU's: leave out --socket-mode and --socket-owner")
	}
	if all := c.StringSlice("mac"); len(all) > 1 {
		if req.MACs, err = macList(all[1:]); err != nil {
			return req, fmt.Errorf("attach: %w", err)
		}
	}
	if req.IPs, err = ipList(c); err != nil {
		return req, fmt.Errorf("attach: %w", err)
	}
	req.Policy, err = policyPatch(c)
	if err != nil {
		return req, fmt.Errorf("attach: %w", err)
	}
	return req, nil
}

// feedFlags are the flags that mean something only for the other way to a VM.
func feedFlags(req api.AttachRequest) []string {
	if req.VhostUser == "" {
		return []string{"connect", "mtu", "socket-mode", "socket-owner", "allow-spoof", "any-memory"}
	}
	return []string{"bypass-filters", "trust-tap"}
}

// foreignFlags reads the flags for an interface whose XDP program is somebody else's.
func foreignFlags(c *cli.Context, req *api.AttachRequest) (err error) {
	switch given := c.IsSet("queue"); {
	case req.XSKMap == "" && given:
		return usagef("attach: --queue: it names queues of --xsk-map: give the path of the map as well, or leave --queue out")
	case req.XSKMap == "":
		return nil
	case req.VhostUser == "":
		return usagef("attach: --xsk-map: a VM on its tap needs rscctl's own XDP program: give --vhost-user, or leave --xsk-map out")
	case !given:
		return usagef("attach: --xsk-map: name the receive queues whose sockets go into it, such as --queue 0")
	}
	for _, word := range c.StringSlice("queue") {
		n, err := strconv.ParseUint(word, 10, 16)
		if err != nil {
			return usagef("attach: --queue %s: not the number of a queue: say numbers from 0 on, such as 0 or 0,1", word)
		}
		if slices.Contains(req.Queues, uint16(n)) {
			return usagef("attach: --queue %d: named twice: name each queue once", n)
		}
		req.Queues = append(req.Queues, uint16(n))
	}
	slices.Sort(req.Queues)
	if req.XSKMap, err = filepath.Abs(req.XSKMap); err != nil {
		return fmt.Errorf("attach: --xsk-map %s: %w", req.XSKMap, err)
	}
	return nil
}

// socketPath makes a path absolute: the controller's working folder is another one than ours.
func socketPath(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("attach: --vhost-user %s: %w", path, err)
	}
	return abs, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/hook"
	"github.com/rscctl/rscctl/controller/near"
	"github.com/rscctl/rscctl/controller/netdev"
)

// qmConfigs is where Proxmox VE has the configurations of its VMs.
const qmConfigs = "/etc/pve/qemu-server"

func hookCommand(s streams) *cli.Command {
	syslogFlag := boolFlag("syslog", "write what fails to the system log, too")
	return &cli.Command{
		Name:  "hook",
		Usage: "attach and detach a VM as it starts and stops: for hooks of libvirt and Proxmox VE",
		UsageText: `rscctl hook libvirt DOMAIN OPERATION SUBOPERATION [EXTRA] < XML
rscctl hook proxmox VMID PHASE [flags]`,
		Action: func(c *cli.Context) error {
			if w := c.Args().First(); w != "" {
				return usagef("hook: %s: no such sub-verb: %ssay libvirt or proxmox", w, near.Hint(w, names(c.Command.Subcommands)))
			}
			return usagef("hook: sub-verb missing: say libvirt or proxmox")
		},
		Subcommands: []*cli.Command{
			{
				Name: "libvirt", Usage: "do what libvirt's qemu hook stands for", ArgsUsage: "DOMAIN OPERATION SUBOPERATION [EXTRA]",
				UsageText: "rscctl hook libvirt DOMAIN OPERATION SUBOPERATION [EXTRA] [flags] < XML",
				Description: `What is attached stands in the domain's metadata, a port for each interface:
   virsh metadata web1 --uri ` + hook.Namespace + ` --key rscctl --set '<port iface="eth1"/>' --config
A port's attributes are named as in the file of apply: iface (for a tap the bridge is followed where it is left out), mac (where the
domain has several interfaces), name (where it has several ports), vlan, socket-owner, hold, coalesce and so on. Several ports stand in one <ports>.

Sockets of vhost-user are attached at 'prepare begin', taps at 'started begin', both at 'reconnect begin' and 'attach begin'; the VMs are detached
at 'release end'. An interface that is plugged into a running domain is attached by
   virsh dumpxml web1 | rscctl hook libvirt web1 reconnect begin
Every failure is a line. The exit code is 0 all the same, unless the domain cannot start: its socket could not be had. Prints nothing else.`,
				Flags:  []cli.Flag{syslogFlag, socketFlag()},
				Action: func(c *cli.Context) error { return hookLibvirt(c, s) },
			},
			{
				Name: "proxmox", Usage: "do what a Proxmox VE hookscript stands for", ArgsUsage: "VMID PHASE",
				UsageText: "rscctl hook proxmox VMID PHASE [flags]",
				Description: `Attaches the VM's interfaces (net0 is called VMID, net1 is called VMIDi1) by their taps at post-start, and detaches them at post-stop. The
interface is the port of the VM's bridge by which the wire comes in, unless --iface names one. Every failure is a line, and the exit code is 0 all the
same: a VM on its tap works without rscctl.`,
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "iface", Usage: "attach to `IFACE`", DefaultText: "the bridge's port to the wire"},
					boolFlag("bypass-filters", "go on although bridge, netfilter or TC rules will not see the VM's TCP frames"),
					&cli.StringFlag{Name: "configs", Usage: "`DIR` with the VMs' configurations", Value: qmConfigs},
					syslogFlag, socketFlag(),
				}, policyFlags()...),
				Action: func(c *cli.Context) error { return hookProxmox(c, s) },
			},
		},
	}
}

func hookLibvirt(c *cli.Context, s streams) error {
	args, err := positionals(c, 3, 4, "DOMAIN, OPERATION or SUBOPERATION")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, hook.Deadline)
	defer cancel()
	h := hookHost(c, s)
	if err := h.Libvirt(ctx, args[0], args[1], args[2], s.in); err != nil {
		toSyslog(c, on("hook", err))
		return on("hook", err)
	}
	return nil
}

func hookProxmox(c *cli.Context, s streams) error {
	args, err := positionals(c, 2, 2, "VMID or PHASE")
	if err != nil {
		return err
	}
	if err := hook.CheckProxmox(args[0], args[1]); err != nil {
		return usagef("hook proxmox: %v", err)
	}
	form := api.AttachRequest{Iface: c.String("iface"), Bypass: c.Bool("bypass-filters")}
	if form.Policy, err = policyPatch(c); err != nil {
		return on("hook proxmox", err)
	}
	ctx, cancel := context.WithTimeout(c.Context, hook.Deadline)
	defer cancel()
	h := hookHost(c, s)
	p := newPrinter(s.out)
	h.Done = func(what string, warnings []string) { // into the log of the task
		p.line("%s", what)
		for _, w := range warnings {
			p.line("  warning: %s", w)
		}
	}
	h.Proxmox(ctx, args[0], args[1], form, func() (io.ReadCloser, error) {
		return os.Open(filepath.Join(c.String("configs"), args[0]+".conf"))
	})
	return p.flush()
}

// hookHost is this host, with failures that are told and do not end the command.
func hookHost(c *cli.Context, s streams) *hook.Host {
	return &hook.Host{
		Controller: client(c),
		WaysIn: func(dev string, vlan uint16) (ways []netdev.WayIn, err error) {
			err = netdev.With(func(h *netdev.Handle) error {
				ways, err = h.WaysIn(dev, vlan)
				return err
			})
			return ways, err
		},
		Failed: func(err error) {
			err = on("hook", err)
			fmt.Fprintf(s.err, "rscctl: %s\n", oneLine(err.Error()))
			toSyslog(c, err)
		},
	}
}

// toSyslog writes a failure to the system log when that is asked for: libvirt drops what a hook says that ends well.
func toSyslog(c *cli.Context, err error) {
	if !c.Bool("syslog") {
		return
	}
	w, cannot := syslog.New(syslog.LOG_DAEMON|syslog.LOG_ERR, "rscctl")
	if cannot != nil {
		return // there is none; the line is on standard error
	}
	_ = errors.Join(w.Err(oneLine(err.Error())), w.Close())
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/controller/demo"
	"github.com/rscctl/rscctl/controller/survey"
)

const (
	reportFile = "rscctl-report.md"
	reportMode = 0o600
	// A demo in short: three rounds of three settings, half a second each.
	reportRounds = 3
	reportRound  = 500 * time.Millisecond
	reportAsks   = 2 * time.Second // for the names of VMs
)

func reportCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "report",
		Usage:     "describe this machine in a file that you read and send: kernel, NICs, doctor's findings, a short benchmark",
		ArgsUsage: "[IFACE...]",
		UsageText: "rscctl report [IFACE...] [-w FILE] [--overwrite] [--no-demo]",
		Description: `Writes one Markdown file: versions, processor, memory, hypervisor, devices, the named interfaces (without one: all hardware) with their
drivers, queues, XDP modes and offloads, what doctor finds, and for root what a short demo measures (15 s; the demo needs a free processor or two
and network namespaces of its own). It sends nothing, changes nothing that stays, and needs no controller.

No MAC or IP address, no UUID, no name of a host, user, VM or interface, and no path of a user is written: read the file all the same before you
send it. Only its owner may read it, and a file that is there is not overwritten unless that is said. - as FILE is standard output.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "write", Aliases: []string{"w"}, Usage: "write to `FILE`; - is standard output", Value: reportFile},
			boolFlag("overwrite", "write over a file that is there"),
			boolFlag("no-demo", "leave the demo out"),
			socketFlag(), bpffsFlag(),
		},
		Action: func(c *cli.Context) error { return runReport(c, s) },
	}
}

func runReport(c *cli.Context, s streams) error {
	names, err := positionals(c, 0, 1<<16, "[IFACE...]")
	if err != nil {
		return err
	}
	out, path := s.out, c.String("write")
	var file *os.File
	if path != "-" {
		if file, err = createReport(path, c.Bool("overwrite")); err != nil {
			return err
		}
		out = file
	}
	err = writeReport(c, s, names, out)
	if file == nil {
		return err
	}
	made, bad := file.Stat()
	err = errors.Join(err, bad, file.Close())
	if ours := bad == nil && made.Mode().IsRegular(); ours {
		if err == nil && file.Name() != path {
			err = os.Rename(file.Name(), path)
		}
		if err != nil {
			_ = os.Remove(file.Name()) // nobody is to send half a report
		}
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%s is written: read it before you send it. It says how fast this machine is and what is in it, and should not say whose it is.\n", path)
	return nil
}

// createReport makes the file before anything is measured: who may not write it hears so at once. What is to be written over stays until
// there is another. A device and a FIFO are written into; no other thing that is no file is touched.
func createReport(path string, overwrite bool) (f *os.File, err error) {
	at, err := os.Lstat(path)
	switch {
	case err != nil: // there is nothing, or making the file says what is wrong
	case at.Mode()&(fs.ModeCharDevice|fs.ModeNamedPipe) != 0:
		return openReport(path, unix.O_NOFOLLOW)
	case at.Mode()&fs.ModeSymlink != 0:
		return nil, fmt.Errorf("%s: it is a link: name what it leads to with -w, or - for standard output", path)
	case !at.Mode().IsRegular():
		return nil, fmt.Errorf("%s: it is no file: name one with -w", path)
	case !overwrite:
		return nil, fmt.Errorf("%s: it is there already: name another file with -w, or say --overwrite", path)
	}
	if !overwrite {
		return openReport(path, os.O_CREATE|os.O_EXCL)
	}
	if f, err = os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*"); err != nil { // of mode 0600
		return nil, fmt.Errorf("%w: name a file this user may write", err)
	}
	return f, nil
}

func openReport(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, reportMode)
	if err != nil {
		return nil, fmt.Errorf("%w: name a file this user may write", err)
	}
	return f, nil
}

func writeReport(c *cli.Context, s streams, names []string, out io.Writer) error {
	r, err := survey.Gather(c.Context, survey.Options{Interfaces: names, BPFFS: c.String("bpffs"), Version: version()})
	if err != nil {
		return err
	}
	switch {
	case c.Bool("no-demo"):
		r.NoDemo = "it was left out by --no-demo"
	case !r.Host.Root:
		r.NoDemo = "it needs root"
	default:
		var result bytes.Buffer
		err := demo.Run(c.Context, demo.Options{JSON: true, Stdout: &result, Stderr: s.err, Version: version(), Round: reportRound, Rounds: reportRounds})
		switch {
		case errors.Is(err, demo.ErrInterrupted):
			return err
		case err != nil: // which is worth to be told
			r.NoDemo = err.Error()
		default:
			r.Demo = result.Bytes()
		}
	}
	more := theirNames(c)
	if dir := c.String("bpffs"); c.IsSet("bpffs") {
		more[dir] = "BPFFS"
	}
	return r.Write(out, survey.Names(r.NICs, more))
}

// theirNames are those that a controller has of its VMs and their sockets, where one can be asked.
func theirNames(c *cli.Context) map[string]string {
	ctx, cancel := context.WithTimeout(c.Context, reportAsks)
	defer cancel()
	out := map[string]string{}
	config, err := client(c).Config(ctx)
	if err != nil {
		return out
	}
	for _, vm := range config.VMs {
		out[vm.VM], out[vm.Domain], out[vm.VhostUser], out[vm.SocketOwner] = "VM", "VM", "PATH", "USER"
	}
	delete(out, "")
	return out
}

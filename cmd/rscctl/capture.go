package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/pcapng"
)

const (
	maxCaptureSeconds = 24 * 3600
	flushEvery        = 256   // frames, when more and more come
	captureMode       = 0o600 // of a new file: it has a VM's data in it
)

func captureCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "capture",
		Usage:     "write a VM's frames to a file that Wireshark opens, with what was done with each and why",
		ArgsUsage: "VM",
		UsageText: "rscctl capture VM -w FILE.pcapng [--side wire|guest] [--flow F] [--limit N] [--seconds N] [--snaplen N]",
		Description: `Side wire: the frames as they came for the VM, and as it sent them. Side guest: what the guest got, superframes as they are,
with their virtio header. What rscctl knows of a frame is in its comment ('frame.comment' in Wireshark). - as FILE is standard output:
   rscctl capture web1 -w - | wireshark -k -i -
Ends when interrupted, by --limit, or by --seconds. Frames that come faster than they are written are lost
and counted: the VM does not wait for them. A superframe's TCP checksum is partial, as its virtio header says: leave Wireshark's validation of it off.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "write", Aliases: []string{"w"}, Usage: "write to `FILE`, in pcapng; - is standard output"},
			&cli.StringFlag{Name: "side", Usage: "`SIDE` wire or guest", Value: string(api.Sides[0])},
			flowFlag(),
			&cli.StringFlag{Name: "limit", Usage: "end after `N` frames", DefaultText: "none"},
			&cli.StringFlag{Name: "seconds", Usage: "end after `N` seconds", DefaultText: "none"},
			&cli.StringFlag{Name: "snaplen", Usage: "keep at most `N` bytes of each frame", DefaultText: "all"},
			socketFlag(),
		},
		Action: func(c *cli.Context) error { return runCapture(c, s) },
	}
}

func runCapture(c *cli.Context, s streams) error {
	args, err := positionals(c, 1, 1, "VM")
	if err != nil {
		return err
	}
	path := c.String("write")
	if path == "" {
		return usagef("-w: missing: name the file to write, or - for standard output")
	}
	q := api.CaptureQuery{VM: args[0], Side: api.Side(c.String("side")), Flow: c.String("flow")}
	if !slices.Contains(api.Sides, q.Side) {
		return usagef("--side %s: no such side: say wire or guest", q.Side)
	}
	if err := checkFlow(c); err != nil {
		return err
	}
	limit, err := within(c, "limit", 1, 0)
	if err != nil {
		return err
	}
	seconds, err := within(c, "seconds", 1, maxCaptureSeconds)
	if err != nil {
		return err
	}
	if q.SnapLen, err = within(c, "snaplen", api.MinSnapLen, api.MaxSnapLen); err != nil {
		return err
	}
	ctx, stop := listenContext(c.Context)
	defer stop()
	stream, err := client(c).Capture(ctx, q)
	if err != nil {
		return ended(err)
	}
	defer stream.Close()
	out, err := createCapture(s, path, &stream.Head)
	if err != nil {
		return err
	}
	say := s.out
	if path == "-" {
		say = s.err
	}
	fmt.Fprintf(say, "capturing frames of %s on %s, side %s, to %s: interrupt it to end\n", q.VM, stream.Head.Iface, q.Side, out.name)
	if stream.Head.Note != "" {
		fmt.Fprintf(say, "note: %s\n", stream.Head.Note)
	}
	if seconds > 0 {
		defer time.AfterFunc(time.Duration(seconds)*time.Second, stop).Stop()
	}
	err = out.copy(stream, limit)
	fmt.Fprintf(say, "%s frames captured%s\n", grouped(out.w.Frames()), lostFrames(out.w.Lost()))
	return err
}

func lostFrames(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %s lost: they came faster than they were written", grouped(n))
}

// ended is nil for a stream that was interrupted.
func ended(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// captureFile is the output of a capture. A file that cannot be written to the end ends with a whole block.
type captureFile struct {
	name string
	out  io.Writer
	file *os.File // nil: standard output
	w    *pcapng.Writer
	good int64 // bytes of whole blocks in file
}

func createCapture(s streams, path string, head *api.CaptureHead) (*captureFile, error) {
	f := &captureFile{name: path, out: s.out}
	if path == "-" {
		f.name = "standard output"
	} else {
		var err error
		if f.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, captureMode); err != nil {
			return nil, fmt.Errorf("%w: name a file this user may write", err)
		}
		f.out = f.file
	}
	var err error
	if f.w, err = pcapng.NewWriter(f.out, head, version()); err == nil {
		err = f.flush()
	}
	if err != nil {
		return nil, f.broken(err)
	}
	return f, nil
}

// copy writes what comes until there is enough of it, and leaves a whole file behind.
func (f *captureFile) copy(in *api.CaptureStream, limit int) (err error) {
	var k api.CaptureBlock
	for limit == 0 || f.w.Frames() < uint64(limit) {
		if err = in.Next(&k); err != nil {
			break
		}
		if err := f.w.Block(&k); err != nil {
			return f.broken(err)
		}
		if !in.Pending() || f.w.Frames()%flushEvery == 0 {
			if err := f.flush(); err != nil {
				return f.broken(err)
			}
		}
	}
	bad := f.w.Close()
	if bad == nil && f.file != nil {
		bad = f.file.Close()
	}
	if bad != nil {
		return f.broken(bad)
	}
	return ended(err)
}

func (f *captureFile) flush() error {
	err := f.w.Flush()
	if err == nil && f.file != nil {
		if at, e := f.file.Seek(0, io.SeekCurrent); e == nil { // a pipe has no place
			f.good = at
		}
	}
	return err
}

// broken ends a file that cannot be written any more.
func (f *captureFile) broken(err error) error {
	if f.file != nil {
		_ = f.file.Truncate(f.good) // what is no regular file cannot be
		_ = f.file.Close()
	}
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return fmt.Errorf("%s: %w: what was written before can be read: make room, or name another file", f.name, err)
}

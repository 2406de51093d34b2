package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/replay"
	"github.com/rscctl/rscctl/flowtable"
)

func replayCommand(s streams) *cli.Command {
	return &cli.Command{
		Name:      "replay",
		Usage:     "run a capture through the flow table, offline and without privileges",
		ArgsUsage: "IN.pcap",
		UsageText: "rscctl replay IN.pcap [-w OUT.pcap] [--profile P] [--hold D] [--vlan ID] [--features LIST] [-o table|json]",
		Description: `Reads pcap and pcapng, gzipped or not; - is standard input. The clock is the capture's. With --hold 0 packets of equal
timestamp form a burst. --json prints one object per frame and line, as a guest would have received it, then a summary.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "write", Aliases: []string{"w"}, Usage: "write what a guest would receive to `OUT.pcap`",
				DefaultText: "nothing"},
			&cli.StringFlag{Name: "profile", Usage: "rules of `PROFILE`: gro or rsc", Value: "gro"},
			&cli.StringFlag{Name: "hold", Usage: "longest `TIME` a segment waits for its successors; adaptive or adaptive:TIME: found out for each flow, as VMs have it", Value: "50us"},
			&cli.IntFlag{Name: "vlan", Usage: "replay what an access port of VLAN `ID` 1 to 4094 gets: frames with that tag, without it",
				DefaultText: "all frames, tags and all"},
			&cli.StringFlag{Name: "features", Usage: "guest features assumed: a `LIST` of " + replay.FeatureNames +
				", or changes like +ecn,-tso6", DefaultText: "csum,tso4,tso6; rsc too with --profile rsc"},
			outputFlag(),
		},
		Action: func(c *cli.Context) error { return replayCapture(c, s) },
	}
}

func replayCapture(c *cli.Context, s streams) error {
	args, err := positionals(c, 1, 1, "IN.pcap")
	if err != nil {
		return err
	}
	asJSON, err := format(c)
	if err != nil {
		return err
	}
	opt, err := replayOptions(c)
	if err != nil {
		return err
	}
	return on("replay", replayFile(c, s, args[0], c.String("write"), asJSON, opt))
}

func replayOptions(c *cli.Context) (replay.Options, error) {
	var opt replay.Options
	profile := c.String("profile")
	if err := checkProfile(profile); err != nil {
		return opt, on("replay", err)
	}
	if profile == "rsc" {
		opt.Profile = flowtable.RSC
	}
	var err error
	if opt.Hold, opt.Adaptive, err = parseHold(c.String("hold")); err != nil {
		return opt, on("replay", err)
	}
	if opt.Hold > replay.MaxHold {
		return opt, usagef("replay: --hold %v: too long: say at most %v", opt.Hold, replay.MaxHold)
	}
	if c.IsSet("vlan") {
		id := c.Int("vlan")
		if id < 1 || id > 4094 {
			return opt, usagef("replay: --vlan %d: no such VLAN: say 1 to 4094, or leave it out for all frames as they are", id)
		}
		opt.VLAN = uint16(id)
	}
	opt.Features = replay.DefaultFeatures(profile == "rsc")
	if c.IsSet("features") {
		opt.Features, err = replay.ParseFeatures(c.String("features"), opt.Features)
		if err != nil {
			return opt, usagef("replay: --features %v: say a list of %s, or changes like +ecn,-tso6", err, replay.FeatureNames)
		}
	}
	if c.IsSet("write") && c.String("write") == "" {
		return opt, usagef("replay: -w: empty name: name a file, or leave -w out")
	}
	return opt, nil
}

// replayFile replays the capture at path. With --json a summary is printed whatever happens.
func replayFile(c *cli.Context, s streams, path, outPath string, asJSON bool, opt replay.Options) (err error) {
	out := bufio.NewWriterSize(s.out, 256<<10)
	defer func() { err = errors.Join(err, out.Flush()) }()
	var sinks []replay.Sink
	if asJSON {
		sinks = append(sinks, replay.NewJSONSink(out))
	}
	in, size, err := openCapture(s, path, outPath)
	if err != nil {
		return failed(out, asJSON, err)
	}
	defer in.Close()
	var file *pcapFile
	if outPath != "" {
		if file, err = createPcap(outPath); err != nil {
			return failed(out, asJSON, err)
		}
		sinks = append(sinks, file.sink)
	}
	var src io.Reader = in
	if size < 0 { // a pipe may be silent for ever
		src = replay.Interruptible(c.Context, in)
	}
	prog := newProgress(src, s.err, size, asJSON && isTerminal(s.out))
	sum, err := replay.Run(c.Context, prog, opt, sinks...)
	prog.done()
	if err != nil {
		err = fmt.Errorf("%s: %w%s", path, err, delivered(sum))
	}
	if file != nil {
		err = errors.Join(err, file.close())
	}
	if err != nil {
		text := oneLine(err.Error())
		sum.Error = &text
	}
	if asJSON {
		return errors.Join(err, sum.WriteJSON(out))
	}
	return errors.Join(err, printSummary(out, sum))
}

func delivered(sum *replay.Summary) string {
	if sum.Frames == 0 {
		return ""
	}
	return fmt.Sprintf(": the %d frames before it are delivered", sum.Frames)
}

// failed reports a replay that never began, in JSON too.
func failed(out io.Writer, asJSON bool, err error) error {
	if !asJSON {
		return err
	}
	text := oneLine(err.Error())
	sum := replay.Summary{Schema: replay.Schema, Reasons: map[string]uint64{}, Error: &text}
	return errors.Join(err, sum.WriteJSON(out))
}

// openCapture opens the input and refuses to write over it. size is -1 where it is not known.
func openCapture(s streams, path, outPath string) (in io.ReadCloser, size int64, err error) {
	if path == "-" {
		return io.NopCloser(s.in), -1, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: name a capture this user may read", err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s: is a folder: name a capture file", path)
	}
	if err == nil && outPath != "" {
		if other, e := os.Stat(outPath); e == nil && os.SameFile(info, other) {
			err = fmt.Errorf("%s: is both input and output: write to another file", path)
		}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return f, -1, nil
	}
	return f, info.Size(), nil
}

// pcapFile is the buffered output file of -w.
type pcapFile struct {
	file *os.File
	buf  *bufio.Writer
	sink *replay.PcapSink
}

func createPcap(path string) (*pcapFile, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("%w: name a file this user may write", err)
	}
	p := &pcapFile{file: f, buf: bufio.NewWriterSize(f, 256<<10)}
	if p.sink, err = replay.NewPcapSink(p.buf); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

func (p *pcapFile) close() error { return errors.Join(p.buf.Flush(), p.file.Close()) }

func printSummary(w io.Writer, sum *replay.Summary) error {
	p := newPrinter(w)
	mean := uint64(0)
	if sum.Frames > 0 {
		mean = sum.Bytes / sum.Frames
	}
	p.row("packets in", grouped(sum.Packets))
	p.row("frames out", grouped(sum.Frames), size(sum.Bytes), grouped(mean)+" bytes on average")
	p.row("superframes", grouped(sum.Superframes), fmt.Sprintf("%s packets, %s of all, %s a frame", grouped(sum.Merged),
		percent(sum.Merged, sum.Packets), ratio(sum.Merged, sum.Superframes)))
	alone := total(sum.Reasons) - sum.Dropped
	p.row("passed alone", grouped(alone), percent(alone, sum.Packets))
	if sum.Dropped > 0 {
		p.row("not for this port", grouped(sum.Dropped), percent(sum.Dropped, sum.Packets))
	}
	printReasons(p, "SUPERFRAMES LEFT BECAUSE OF", "FRAMES", sum.Sealed)
	title := "PACKETS PASSED ALONE BECAUSE OF"
	if sum.Dropped > 0 {
		title = "PACKETS PASSED ALONE OR DROPPED BECAUSE OF"
	}
	printReasons(p, title, "PACKETS", sum.Reasons)
	return p.flush()
}

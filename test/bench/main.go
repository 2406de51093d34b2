package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/rscctl/rscctl/controller/demo"
	"github.com/rscctl/rscctl/test/netnstest"
)

// options are what the command line asks for.
type options struct {
	all      bool
	smallest bool
	rows     *regexp.Regexp // nil: all
	repeats  int
	round    time.Duration
	out      string
	quote    bool
	wire     string // two NICs with a comma between, "": a veth pair
	root     string // of the repository
	user     int    // who runs it
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == demo.ChildVerb {
		exit(child(os.Args[2]))
	}
	o := options{user: os.Geteuid()}
	flag.BoolVar(&o.all, "all", false, "more rows: every flow count over IPv6, transmit at each, latency beside bulk, all micro benchmarks")
	flag.BoolVar(&o.smallest, "smallest", false, "one row of a second: whether it works")
	rows := flag.String("rows", "", "measure and print the rows of the whole path whose names match this regular expression, such as 'receive/ipv4/gro=off/flows=8/' or 'idle', and write nothing")
	flag.IntVar(&o.repeats, "repeats", 3, "how often each row is measured")
	flag.DurationVar(&o.round, "round", 1500*time.Millisecond, "the measured time of a row")
	flag.StringVar(&o.out, "out", "bench", "folder of the result")
	flag.BoolVar(&o.quote, "quote", false, "measure nothing: write the figures of the result that is there into the documents")
	flag.StringVar(&o.wire, "wire", os.Getenv(netnstest.WireEnv), "with -rows: two network devices with a wire between them, as 'eth0,eth1', to be the sender's and the uplink instead of a veth pair. They are given back as they were")
	flag.StringVar(&o.root, "root", ".", "the repository")
	flag.Parse()
	if flag.NArg() > 0 || o.repeats < 1 || o.round <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	if *rows != "" {
		var err error
		if o.rows, err = regexp.Compile(*rows); err != nil {
			exit(fmt.Errorf("-rows: %w", err))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, o)
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted: nothing was written, and nothing is left behind")
	}
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// some says whether only a part is measured.
func (o *options) some() bool { return o.smallest || o.rows != nil }

// wants says whether the row of that name is to be measured.
func (o *options) wants(id string) bool { return o.rows == nil || o.rows.MatchString(id) }

// errWire is a mistake in the flags.
var errWire = errors.New("what is quoted is of a veth pair")

// ends are the two devices of -wire, or none.
func (o *options) ends() (w [2]string, err error) {
	if o.wire == "" {
		return w, nil
	}
	var ok bool
	if w[0], w[1], ok = strings.Cut(o.wire, ","); !ok {
		return w, fmt.Errorf("-wire %s: two devices with a comma between", o.wire)
	}
	if !o.some() {
		return w, fmt.Errorf("-wire %s goes with -rows: %w", o.wire, errWire)
	}
	return w, nil
}

// errRoot is the end of a run without root.
var errRoot = errors.New("the whole path, and with it the result, needs root (namespaces, XDP, taps): sudo make bench. The benchmarks of the packages need none")

// run measures, writes and quotes.
func run(ctx context.Context, o options) error {
	if o.quote {
		r, err := readResult(o.path("bench.json"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.path("bench.md"), []byte(page(r)), 0o644); err != nil {
			return err
		}
		return quoteAll(o.root, r)
	}
	if o.rows != nil && len(plan(o)) == 0 && !o.wants(idleRow) {
		return fmt.Errorf("-rows %v: no row has such a name: bench/bench.md lists those of 'make bench', -all has more", o.rows)
	}
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	if o.user != 0 {
		if !o.some() {
			if err := b.micro(); err != nil {
				return err
			}
			fmt.Print(microTable(b.result, ""))
		}
		return errRoot
	}
	if err := b.everything(); err != nil {
		return err
	}
	if o.rows != nil {
		fmt.Print(pathTable(b.result), "\n", otherTable(b.result), "\n", ratioTable(b.result))
		return nil
	}
	if err := b.write(); err != nil {
		return err
	}
	if o.all || o.smallest {
		return nil // what is quoted is of the run that everybody makes
	}
	return quoteAll(o.root, b.result)
}

package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/why"
	"github.com/rscctl/rscctl/flowtable"
)

// What why tells an operator to type is there: each of our flags and verbs that it names.
func TestWhatWhyTellsToTypeExists(t *testing.T) {
	s := &api.VMStats{VM: "web", RxPackets: 1, Superframes: 1, Unexplained: 1, Recut: 1, TapDropped: 1, Dropped: map[string]uint64{}}
	for r := range flowtable.Reason(flowtable.NumReasons) {
		s.Dropped[r.String()] = 1
	}
	flags, verbs := map[string]bool{}, map[string]bool{}
	var walk func(commands []*cli.Command)
	walk = func(commands []*cli.Command) {
		for _, c := range commands {
			verbs[c.Name] = true
			for _, f := range c.Flags {
				for _, name := range f.Names() {
					flags[name] = true
				}
			}
			walk(c.Subcommands)
		}
	}
	walk(newApp(streams{}).Commands)
	named := regexp.MustCompile(`--([a-z-]+)|rscctl ([a-z]+)`)
	n := 0
	for _, e := range why.Explain(why.VM{Stats: s, Queues: []api.Queue{{RxTooLong: 1, RxRingFull: 1}}}).Sentences {
		for _, m := range named.FindAllStringSubmatch(e.Text+" "+e.Do, -1) {
			if strings.HasPrefix(m[0], "--") && !flags[m[1]] || m[2] != "" && !verbs[m[2]] {
				t.Errorf("%s: %s %s", m[0], e.Text, e.Do)
			}
			n++
		}
	}
	if n < 10 {
		t.Errorf("%d flags and verbs named: this looked at nothing", n)
	}
}

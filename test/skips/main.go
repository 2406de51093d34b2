// Command skips reads what test stages did and says which tests were left out, and why: a skip that nobody reads is a test that
// does not exist.
//
//	go run ./test/skips [-failed STAGES] STAGE.json...
//
// The files are the events of `go test -json`, one file a stage, named after it. The last line is the sum of all stages. The
// exit code is 1 when a test or a stage failed, or when RSCCTL_NO_SKIP=1 and a test was left out that may not be.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rscctl/rscctl/test/netnstest"
)

func main() {
	failed := flag.String("failed", "", "`STAGES` that ended with an error, with spaces between")
	flag.Parse()
	t := newTotals()
	for _, path := range flag.Args() {
		if err := t.readFile(path); err != nil {
			fmt.Fprintln(os.Stderr, "skips:", err)
			t.failed++
		}
	}
	for stage := range strings.FieldsSeq(*failed) {
		t.stageFailed(stage)
	}
	forbidden := os.Getenv(netnstest.NoSkipEnv) == "1"
	if t.report(os.Stdout, forbidden) {
		os.Exit(1)
	}
}

func (t *totals) readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return t.read(strings.TrimSuffix(filepath.Base(path), ".json"), f)
}

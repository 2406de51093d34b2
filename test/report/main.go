// Command report runs the test stages one after the other and says at the end what failed and what was skipped, and why:
// a skip that nobody reads is a test that does not exist.
//
//	go run ./test/report STAGE...
//
// It exits with 1 when a test failed, or when one was skipped although RSCCTL_NO_SKIP=1 forbids it.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/rscctl/rscctl/test/netns"
)

// stage is one run of `go test`.
type stage struct {
	args []string
	env  []string
}

// stages by name. Packages run one at a time: many tests make network namespaces and traffic, on machines with few cores.
var stages = map[string]stage{
	"unit":   {args: []string{"-p", "1", "-timeout", "10m", "./..."}},
	"race":   {args: []string{"-race", "-short", "-p", "1", "-timeout", "10m", "./flowtable/...", "./vhost/...", "./controller/...", "./bpf/...", "./cmd/..."}},
	"fuzz":   {args: nil},                   // expanded by fuzzTargets
	"hostvm": {},                            // go run ./test/hostvm
	"nested": {args: []string{"./test/vm"}}, // the same with a guest in the VM
	"vm":     {args: []string{"-timeout", "18m", "-count", "1", "./test/vm/..."}, env: []string{"RSCCTL_VM=1"}},
	"long":   {args: []string{"-p", "1", "-timeout", "75m", "-count", "1", "./test/vm/...", "./vhost/...", "./controller/...", "./test/e2e"}, env: []string{"RSCCTL_VM=1", "RSCCTL_LONG=1"}},
}

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

type totals struct {
	passed, failed int
	skips          []skip
	ran            map[string]bool // tests that passed in some stage, by package and name
	inVM           map[string]bool // tests that passed in the VM of test/hostvm, by package and name
	bad            []string
}

// skip is a test, or a whole package, that one stage left out.
type skip struct {
	stage, test, why string
}

func (s skip) String() string { return s.stage + ": " + s.test + ": " + s.why }

// hole is true for a test that no stage of this run has run and that does not say itself why it may be left out.
func (t *totals) hole(s skip) bool {
	if strings.HasPrefix(allowance(s.why), netnstest.ToVM) {
		return !t.inVM[s.test]
	}
	return !t.ran[s.test] && !strings.HasPrefix(allowance(s.why), "allowed:")
}

// allowance is the skip's text behind the file and line that the testing package puts in front.
func allowance(why string) string {
	if _, text, ok := strings.Cut(why, ".go:"); ok {
		_, text, _ = strings.Cut(text, ": ")
		return text
	}
	return why
}

func main() {
	t := totals{ran: map[string]bool{}, inVM: map[string]bool{}}
	for _, name := range os.Args[1:] {
		s, ok := stages[name]
		if !ok {
			fmt.Fprintf(os.Stderr, "report: stage %q: no such stage\n", name)
			os.Exit(2)
		}
		if name == "hostvm" || name == "nested" {
			t.hostvm(name, s.args)
			continue
		}
		runs := [][]string{s.args}
		if name == "fuzz" {
			var err error
			if runs, err = fuzzTargets(); err != nil {
				fmt.Fprintln(os.Stderr, "report: fuzz targets:", err)
				os.Exit(1)
			}
		}
		for _, args := range runs {
			if err := t.run(name, args, s.env); err != nil {
				t.bad = append(t.bad, fmt.Sprintf("%s: %v", name, err))
			}
		}
	}
	os.Exit(t.close())
}

// hostvm runs the privileged tests in a VM.
func (t *totals) hostvm(stage string, args []string) {
	cmd := exec.Command("go", append([]string{"run", "./test/hostvm", "-json"}, args...)...)
	fmt.Printf("== %s: %s\n", stage, cmd)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	in := totals{ran: t.inVM}
	in.read(stage, bytes.NewReader(out))
	t.passed, t.failed, t.bad = t.passed+in.passed, t.failed+in.failed, append(t.bad, in.bad...)
	for _, s := range in.skips {
		t.skips = append(t.skips, skip{stage, s.test, "allowed: a second kernel: " + s.why})
	}
	if err != nil {
		t.bad = append(t.bad, fmt.Sprintf("%s: %v", stage, err))
	}
}

// fuzzTargets finds every fuzz target and gives each a short run.
func fuzzTargets() ([][]string, error) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{.Dir}}", "./...").Output()
	if err != nil {
		return nil, err
	}
	var runs [][]string
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		pkg, _, _ := strings.Cut(line, " ")
		list, err := exec.Command("go", "test", "-list", "^Fuzz", pkg).Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pkg, err)
		}
		for _, f := range strings.Fields(string(list)) {
			if strings.HasPrefix(f, "Fuzz") {
				runs = append(runs, []string{"-run", "^$", "-fuzz", "^" + f + "$", "-fuzztime", "5s", "-fuzzminimizetime", "20x", "-timeout", "3m", pkg})
			}
		}
	}
	return runs, nil
}

func (t *totals) run(name string, args, env []string) error {
	start := time.Now()
	fmt.Printf("== %s: go test %s\n", name, strings.Join(args, " "))
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	before := len(t.bad)
	t.read(name, pipe)
	err = cmd.Wait()
	fmt.Printf("== %s: %s\n", name, time.Since(start).Round(time.Second))
	if err != nil && len(t.bad) == before { // a build failure has no test that failed
		return err
	}
	return nil
}

func (t *totals) read(stage string, r io.Reader) {
	output := map[string][]string{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 4<<20)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil {
			fmt.Println(s.Text())
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			output[key] = append(output[key], e.Output)
			if e.Action == "build-output" {
				fmt.Print(e.Output)
			}
		case "pass":
			if e.Test != "" {
				t.passed++
				t.ran[key] = true
			} else {
				fmt.Printf("ok   %s %.1fs\n", e.Package, e.Elapsed)
			}
			delete(output, key)
		case "skip":
			if e.Test != "" {
				t.skips = append(t.skips, skip{stage, key, reason(output[key])})
			}
			delete(output, key)
		case "fail":
			if e.Test != "" {
				t.failed++
			}
			t.bad = append(t.bad, fmt.Sprintf("%s: %s", stage, key))
			fmt.Printf("FAIL %s\n%s", key, strings.Join(output[key], ""))
		}
	}
}

// reason is what the test said when it skipped.
func reason(lines []string) string {
	for _, l := range slices.Backward(lines) {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "===") {
			return l
		}
	}
	return "no reason given"
}

// close prints the result and returns the exit code.
func (t *totals) close() int {
	fmt.Printf("\nskipped: %d\n", len(t.skips))
	for _, s := range t.skips {
		fmt.Println("  " + s.String())
	}
	for _, b := range t.bad {
		fmt.Println("failed: " + b)
	}
	code := 0
	if len(t.bad) > 0 {
		code = 1
	}
	if os.Getenv("RSCCTL_NO_SKIP") == "1" {
		for _, s := range t.skips {
			if t.hole(s) {
				fmt.Println("skipping is forbidden here: " + s.String())
				code = 1
			}
		}
	}
	if code != 0 && t.failed == 0 {
		t.failed = len(t.bad) + 1
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, len(t.skips))
	return code
}

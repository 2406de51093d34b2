package main

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// Each script in testdata/script types command lines and compares what an administrator reads with what the script says, the exit
// code included: 'code N rscctl ...' runs one and writes it to the file transcript. 'go test ./cmd/rscctl -run Scripts -update' writes the
// scripts anew; read the difference.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *update, RequireUniqueNames: true, Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": codeCommand},
	})
}

// codeCommand runs a command line, which has to end with an exit code, and appends it and what it printed to the transcript.
func codeCommand(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND...")
	}
	code := 0
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	out, errs := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	if args[0] != strconv.Itoa(code) {
		ts.Fatalf("exit code %d, want %s\n%s%s", code, args[0], out, errs)
	}
	if code != exitDone && (!strings.HasPrefix(errs, "rscctl: ") || strings.Count(errs, "\n") != 1) {
		ts.Fatalf("what failed is not said in one line of ours: %q", errs)
	}
	f, err := os.OpenFile(ts.MkAbs("transcript"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	ts.Check(err)
	_, err = f.WriteString("$ " + strings.Join(quotedArgs(args[1:]), " ") + "\n" + out + errs)
	ts.Check(errors.Join(err, f.Close()))
}

func quotedArgs(args []string) []string {
	args = slices.Clone(args)
	for i, a := range args {
		if a == "" || strings.ContainsAny(a, " '") {
			args[i] = strconv.Quote(a)
		}
	}
	return args
}

package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

func logContext(t *testing.T, args ...string) *cli.Context {
	t.Helper()
	set := flag.NewFlagSet("run", flag.ContinueOnError)
	for _, f := range logFlags() {
		if err := f.Apply(set); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return cli.NewContext(nil, set, nil)
}

// The log has what its level asks for, as text or JSON, one line each.
func TestTheLogHasItsLevelAndItsFormat(t *testing.T) {
	for _, c := range []struct {
		args  []string
		lines int
		begin string
	}{
		{nil, 3, "time="}, {[]string{"--log-level", "debug"}, 4, "time="}, {[]string{"--log-level", "warn"}, 2, "time="},
		{[]string{"--log-level", "error", "--log-format", "json"}, 1, `{"time":`},
	} {
		var out bytes.Buffer
		l, err := newLogger(logContext(t, c.args...), &out)
		if err != nil {
			t.Fatal(err)
		}
		l.Debug("d")
		l.Info("i")
		l.Warn("w", "text", "two\nlines")
		l.Error("e")
		if got := strings.Count(out.String(), "\n"); got != c.lines || !strings.HasPrefix(out.String(), c.begin) {
			t.Errorf("%v: %d lines: %s", c.args, got, &out)
		}
	}
}

// Under journald a line has one time, the journal's; who only inherited the variable keeps his own.
func TestUnderAJournalALineHasOneTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	for stream, want := range map[string]bool{fmt.Sprintf("%d:%d", st.Dev, st.Ino): false, fmt.Sprintf("%d:%d", st.Dev, st.Ino+1): true, "": true} {
		t.Setenv("JOURNAL_STREAM", stream)
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		l, err := newLogger(logContext(t), f)
		if err != nil {
			t.Fatal(err)
		}
		l.Info("x")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "time=") != want || !strings.Contains(string(b), "msg=x") {
			t.Errorf("%q: %q", stream, b)
		}
	}
}

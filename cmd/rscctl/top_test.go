package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/rscctl/rscctl/test/terminal"
)

// atTop runs top at a terminal and waits until it has drawn.
func atTop(t *testing.T, bin, socket string, width, height int, env ...string) *terminal.Terminal {
	t.Helper()
	cmd := exec.Command(bin, "top", "--interval", "20ms", "--socket", socket)
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "LC_ALL=C.UTF-8", "NO_COLOR=", "TZ=UTC")
	cmd.Env = append(cmd.Env, env...)
	term := terminal.Start(t, cmd, width, height)
	term.Await("the second look", func(text string) bool { return drawn(text, height) && rated.MatchString(text) })
	return term
}

// drawn tells whether the last line of the screen is there.
func drawn(text string, height int) bool {
	return strings.Count(text, "\n") == height && strings.HasPrefix(lastLine(text), "q quit")
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	return lines[len(lines)-1]
}

// inside checks that the screen has no more lines than the terminal, and none that is wider.
func inside(t *testing.T, term *terminal.Terminal, width, height int) {
	t.Helper()
	lines := term.Lines()
	if len(lines) != height {
		t.Errorf("%d lines on a terminal of %d", len(lines), height)
	}
	for _, l := range lines {
		if n := len([]rune(l)); n > width {
			t.Errorf("%d columns on a terminal of %d: %q", n, width, l)
		}
	}
}

var (
	rated   = regexp.MustCompile(`(?m)^...web .*\b0 `) // web's rate is known
	clock   = regexp.MustCompile(`\d\d:\d\d:\d\d`)
	history = regexp.MustCompile(`(?m) *▁+$`)
	since   = regexp.MustCompile(`  up [0-9hms]+`)
)

// The screens are those of a real program at a real terminal of each size. What it draws stays inside.
func TestTopDrawsOnTerminalsOfEverySize(t *testing.T) {
	bin, fake := built(t), newFake(t)
	for _, size := range [][2]int{{80, 24}, {20, 10}, {200, 60}} {
		width, height := size[0], size[1]
		t.Run(fmt.Sprintf("%dx%d", width, height), func(t *testing.T) {
			term := atTop(t, bin, fake.socket, width, height)
			// What depends on when the test looks: the time, and how many rates there are so far.
			text := since.ReplaceAllString(clock.ReplaceAllString(term.Text(), "12:00:00"), "  up 1h")
			golden(t, fmt.Sprintf("top-%dx%d.golden", width, height), history.ReplaceAllString(text, ""))
			inside(t, term, width, height)
			term.Type("q")
			if code := term.End(); code != exitDone {
				t.Errorf("exit %d", code)
			}
			if left := term.Left(); left != "" {
				t.Errorf("left changed: %s", left)
			}
		})
	}
}

func TestTopFollowsItsWindow(t *testing.T) {
	fake := newFake(t)
	term := atTop(t, built(t), fake.socket, 80, 24)
	for _, size := range [][2]int{{20, 10}, {132, 43}, {3, 2}, {80, 24}, {40, 5}} {
		width, height := size[0], size[1]
		term.Resize(width, height)
		term.Await(fmt.Sprintf("a screen of %dx%d", width, height), func(text string) bool {
			lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
			for _, l := range lines {
				if len([]rune(l)) > width {
					return false
				}
			}
			return len(lines) <= height && (height < 5 || drawn(text, height))
		})
	}
	term.Type("q")
	if code := term.End(); code != exitDone {
		t.Errorf("exit %d", code)
	}
}

func TestTopObeysItsKeys(t *testing.T) {
	fake := newFake(t)
	term := atTop(t, built(t), fake.socket, 80, 24)
	has := func(words ...string) func(string) bool {
		return func(text string) bool {
			for _, w := range words {
				without, found := strings.CutPrefix(w, "!")
				if strings.Contains(text, without) == found {
					return false
				}
			}
			return true
		}
	}
	for _, step := range []struct {
		keys string
		want func(string) bool
	}{
		{"s", has("by name")}, {"r", has("by name reversed")},
		{"/wEb", has("filter: wEb_", "web ", "!git ", "q") /* q is a letter here */}, {"q", has("filter: wEbq_", "no VM matches")}, {"\x7f\r", has("filter: wEb\n", "web ")}, {"\x1b", has("!filter:", "git ")},
		{"p", has("PAUSED")}, {"p", has("!PAUSED")}, {" ", has("PAUSED")}, {" ", has("!PAUSED")},
		{"\t", has("tab VMs", ">x eth0/1")}, {"\x1b[B", has(">  eth0/0")}, {"\t", has("tab queues")},
		{"\x1b[H\r", has("web on eth0", "enter back")}, {"\r", has("!web on eth0")},
	} {
		term.Type(step.keys)
		term.Await(fmt.Sprintf("what %q does", step.keys), step.want)
	}
	inside(t, term, 80, 24)
	term.Type("\x03")
	if code := term.End(); code != exitDone {
		t.Errorf("Ctrl-C: exit %d", code)
	}
}

var coloured = regexp.MustCompile(`\x1b\[(?:\d+;)*(?:3[0-9]|4[0-9]|9[0-7])(?:;\d+)*m`)

func TestTopHasNoColourWhereNobodyWantsIt(t *testing.T) {
	bin, fake := built(t), newFake(t)
	for env, want := range map[string]bool{"NO_COLOR=": true, "NO_COLOR=1": false, "NO_COLOR=yes": false} {
		term := atTop(t, bin, fake.socket, 80, 24, env)
		if got := coloured.MatchString(term.Raw()); got != want {
			t.Errorf("%s: coloured %t", env, got)
		}
		if !strings.Contains(term.Text(), " x ") {
			t.Errorf("%s: what is down is said by nothing but its colour:\n%s", env, term.Text())
		}
		term.Type("q")
		term.End()
	}
	term := atTop(t, bin, fake.socket, 80, 24, "LC_ALL=C")
	if strings.ContainsFunc(term.Text(), func(r rune) bool { return r > '~' }) {
		t.Errorf("more than ASCII in the C locale:\n%s", term.Text())
	}
}

// The controller goes away, and another comes: the screen says so, and goes on by itself.
func TestTopOutlivesItsController(t *testing.T) {
	fake := &fakeController{socket: t.TempDir() + "/s"}
	stop := fake.serve(t)
	term := atTop(t, built(t), fake.socket, 80, 24)
	stop()
	term.Await("that the controller is away", func(text string) bool {
		return strings.Contains(text, "NO CONTROLLER") && strings.Contains(text, "web")
	})
	inside(t, term, 80, 24)
	fake.serve(t)
	term.Await("that it is back", func(text string) bool { return !strings.Contains(text, "NO CONTROLLER") })
	term.Signal(syscall.SIGTERM)
	if code := term.End(); code != exitDone {
		t.Errorf("SIGTERM: exit %d", code)
	}
	if left := term.Left(); left != "" {
		t.Errorf("SIGTERM: left changed: %s", left)
	}
}

// Without a terminal to draw on it says what to use instead; without a controller it ends as every verb does.
func TestTopRefusesWhatIsNoTerminal(t *testing.T) {
	fake := newFake(t)
	code, out, errs := rscctl(t, "top", "--socket", fake.socket)
	if code != exitUsage || out != "" || !strings.Contains(errs, "status --watch") || !strings.Contains(errs, "stats --watch") {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	oneErrorLine(t, errs)
	bin := built(t)
	for _, c := range []struct {
		env, socket string
		code        int
		want        string
	}{{"TERM=dumb", fake.socket, exitUsage, "stats --watch"}, {"TERM=xterm", t.TempDir() + "/missing", exitNoController, "no controller"}} {
		cmd := exec.Command(bin, "top", "--socket", c.socket)
		cmd.Env = append(os.Environ(), c.env)
		term := terminal.Start(t, cmd, 200, 24)
		code := term.End()
		term.Await("why not", func(text string) bool { return strings.Contains(text, c.want) })
		if code != c.code {
			t.Errorf("%s: exit %d", c.env, code)
		}
	}
}

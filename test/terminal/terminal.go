// Package terminal runs a program at a terminal for tests: a pseudo-terminal of a size, and an emulator that reads what the program
// writes to it. The emulator's screen is larger than the size that the program is told, so that what it draws beyond is seen.
package terminal

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// beyond is how many cells the emulator has on the right of the program's screen, and how many lines below.
const beyond = 30

// Terminal is one with a program at it. Its methods may be called from one goroutine.
type Terminal struct {
	tb     testing.TB
	cmd    *exec.Cmd
	master *os.File
	slave  *os.File
	before unix.Termios
	done   chan struct{} // the program has ended
	failed error         // how; read after done

	mu     sync.Mutex
	screen *vt.Emulator
	alt    bool
	hidden bool // the cursor
	raw    strings.Builder
}

// Start runs cmd at a terminal of width columns and height lines. The test's end kills it.
func Start(tb testing.TB, cmd *exec.Cmd, width, height int) *Terminal {
	tb.Helper()
	t := &Terminal{tb: tb, cmd: cmd, done: make(chan struct{}), screen: vt.NewEmulator(width+beyond, height+beyond)}
	t.screen.SetCallbacks(vt.Callbacks{AltScreen: func(on bool) { t.alt = on }, CursorVisibility: func(on bool) { t.hidden = !on }})
	var err error
	if t.master, t.slave, err = pty.Open(); err != nil {
		tb.Fatal(err)
	}
	t.Resize(width, height)
	t.before = t.termios()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = t.slave, t.slave, t.slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	go func() {
		t.failed = cmd.Wait()
		close(t.done)
	}()
	go t.read()
	go func() { _, _ = io.Copy(t.master, t.screen) }() // what the emulator answers to questions
	tb.Cleanup(t.close)
	return t
}

func (t *Terminal) close() {
	_ = t.cmd.Process.Kill()
	<-t.done
	if t.tb.Failed() {
		t.tb.Logf("the screen:\n%s", t.Text())
	}
	_ = t.slave.Close()
	_ = t.master.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.screen.InputPipe().(io.Closer).Close() // Close itself would race with Read
}

// read gives the emulator what the program writes.
func (t *Terminal) read() {
	b := make([]byte, 4096)
	for {
		n, err := t.master.Read(b)
		t.mu.Lock()
		t.raw.Write(b[:n])
		_, _ = t.screen.Write(b[:n])
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Type types keys.
func (t *Terminal) Type(keys string) {
	t.tb.Helper()
	if _, err := t.master.WriteString(keys); err != nil {
		t.tb.Fatal(err)
	}
}

// Resize changes the size, of which the program is told.
func (t *Terminal) Resize(width, height int) {
	t.tb.Helper()
	t.mu.Lock()
	t.screen.Resize(width+beyond, height+beyond)
	t.mu.Unlock()
	if err := pty.Setsize(t.master, &pty.Winsize{Cols: uint16(width), Rows: uint16(height)}); err != nil {
		t.tb.Fatal(err)
	}
}

// Lines are the lines of the screen without blanks at their ends, and without empty ones at its end.
func (t *Terminal) Lines() []string {
	t.mu.Lock()
	text := t.screen.String()
	t.mu.Unlock()
	lines := strings.Split(strings.TrimRight(text, "\n "), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return lines
}

// Text is the screen as one text.
func (t *Terminal) Text() string { return strings.Join(t.Lines(), "\n") + "\n" }

// Raw is all that the program has written.
func (t *Terminal) Raw() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.raw.String()
}

// Await waits until the screen is as it should be.
func (t *Terminal) Await(what string, is func(text string) bool) {
	t.tb.Helper()
	ended := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if is(t.Text()) {
			return
		}
		select {
		case <-t.done:
			if ended == "" { // the last that it wrote may still be on its way
				ended, end = fmt.Sprintf("; the program has ended: %v", t.failed), time.Now().Add(time.Second)
			}
		default:
		}
	}
	t.tb.Fatalf("%s: not seen%s", what, ended)
}

// Signal sends the program a signal.
func (t *Terminal) Signal(s os.Signal) {
	t.tb.Helper()
	if err := t.cmd.Process.Signal(s); err != nil {
		t.tb.Fatal(err)
	}
}

// End waits until the program has ended, and returns its exit code.
func (t *Terminal) End() int {
	t.tb.Helper()
	select {
	case <-t.done:
	case <-time.After(20 * time.Second):
		t.tb.Fatal("the program does not end")
	}
	return t.cmd.ProcessState.ExitCode()
}

// Left tells what a program that has ended left changed at the terminal, "" for nothing.
func (t *Terminal) Left() string {
	var left []string
	if t.termios() != t.before {
		left = append(left, "its modes")
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) { // the last of it may still be on its way
		t.mu.Lock()
		alt, hidden := t.alt, t.hidden
		t.mu.Unlock()
		if !alt && !hidden {
			break
		}
		if time.Now().After(end) {
			left = append(left, "its screen or its cursor")
			break
		}
	}
	return strings.Join(left, ", ")
}

func (t *Terminal) termios() unix.Termios {
	t.tb.Helper()
	m, err := unix.IoctlGetTermios(int(t.slave.Fd()), unix.TCGETS)
	if err != nil {
		t.tb.Fatal(err)
	}
	return *m
}

package fdstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a keeper.
const (
	heirWithin = 2 * time.Second  // from a crash until what is kept is in use again; then it is let go
	loopCount  = 5                // crashes in loopWithin: a crash loop
	loopWithin = 10 * time.Second //
	maxKept    = 1 << 16
	maxMessage = 4096
)

// ErrCrashLoop: the process died again and again; everything was let go.
var ErrCrashLoop = errors.New("it crashed again and again")

// Child is the process that a keeper keeps descriptors for.
type Child struct {
	Path string
	Args []string // without the program's name
	Heir bool     // its first life takes over from a process that lives, which goes on unless this one becomes ready
	Log  *slog.Logger
}

// keeper is what Keep knows.
type keeper struct {
	child   Child
	kept    []keptFD
	lives   int  // of the child so far, this one included
	ready   bool // the child that runs has said so
	served  bool // one has: before, what is kept may still be another keeper's, whose child goes on with it
	late    bool // it was killed because it did not in time
	ending  bool // it was told to end
	crashes []time.Time
}

type keptFD struct {
	name string
	fd   int
}

// Keep starts the child, and starts it again with what it had kept when it dies of a signal or, once it was ready, with an exit code.
// The later lives have the same arguments, and Again tells them. An heir that dies before it was ready is not started again.
// It forwards SIGTERM, SIGINT and SIGHUP, and returns the child's exit code when that ends by itself. The child dies with this process.
// Error: ErrCrashLoop, and that the child cannot be started.
func Keep(ctx context.Context, c Child) (code int, err error) {
	runtime.LockOSThread() // Pdeathsig is about the thread that started the child
	k := &keeper{child: c}
	defer k.letGo()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)
	for {
		died, err := k.run(signals)
		if err != nil {
			return 1, err
		}
		if !k.crashed(died) {
			if died.ExitCode() < 0 && !k.ending { // it could not say it itself
				c.Log.Error("the data plane died before it was ready", "how", died.String())
			}
			return died.ExitCode(), nil
		}
		c.Log.Error("the data plane died", "how", died.String(), "kept", len(k.kept))
		if k.loops(time.Now()) {
			return 1, fmt.Errorf("keeper: %w: %d times in %v, the last: %s", ErrCrashLoop, loopCount, loopWithin, died)
		}
	}
}

// channel makes the socket by which a child speaks to its keeper. It has no name: nobody else can.
func channel() (ours *net.UnixConn, childs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("keeper: %w", err)
	}
	mine := os.NewFile(uintptr(fds[0]), "keeper")
	defer mine.Close() // FileConn works on a copy
	childs = os.NewFile(uintptr(fds[1]), "child")
	c, err := net.FileConn(mine)
	if err != nil {
		childs.Close()
		return nil, nil, fmt.Errorf("keeper: %w", err)
	}
	return c.(*net.UnixConn), childs, nil
}

// run starts the child once and serves it until it ends.
func (k *keeper) run(signals <-chan os.Signal) (*os.ProcessState, error) {
	conn, childs, err := channel()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer childs.Close()
	cmd := exec.Command(k.child.Path, k.child.Args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A group of its own: ctrl-C is for the keeper, which passes it on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	k.lives++
	inherits := len(k.kept) > 0
	if err := k.start(cmd, childs); err != nil {
		return nil, err
	}
	k.ready, k.late = false, false
	messages := make(chan message)
	go receive(conn, messages)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var late <-chan time.Time
	if inherits {
		late = time.After(heirWithin)
	}
	for {
		select {
		case <-ended:
			for messages != nil { // what it had said before it died; its end of the channel is closed
				m, more := <-messages
				if !more {
					break
				}
				k.take(m)
			}
			return cmd.ProcessState, nil
		case s := <-signals:
			k.ending = k.ending || s != syscall.SIGHUP
			_ = cmd.Process.Signal(s)
		case m, more := <-messages:
			if !more { // it has closed the channel, and goes on
				messages = nil
				continue
			}
			k.take(m)
			if len(k.kept) == 0 { // it has let go of everything by itself, and begins anew
				late = nil
			}
		case <-late:
			if !k.ready {
				k.child.Log.Error("no data plane in time: what was kept is let go", "kept", len(k.kept))
				k.letGo()
				k.late = true
				_ = cmd.Process.Kill() // it has all of it, too
			}
		}
	}
}

// start starts the child with duplicates of what is kept, and its end of the channel. None of them stays here: what is dropped later must
// be closed, and so must the channel when the child dies.
func (k *keeper) start(cmd *exec.Cmd, childs *os.File) error {
	var names []string
	defer func() {
		for _, f := range cmd.ExtraFiles {
			f.Close()
		}
	}()
	for _, f := range k.kept {
		dup, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, firstFD)
		if err != nil {
			return fmt.Errorf("keeper: %s: %w", f.name, err)
		}
		cmd.ExtraFiles, names = append(cmd.ExtraFiles, os.NewFile(uintptr(dup), f.name)), append(names, f.name)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, childs)
	cmd.Env = append(os.Environ(), keeperEnv+"="+strconv.Itoa(firstFD+len(names)), lifeEnv+"="+strconv.Itoa(k.lives),
		countEnv+"="+strconv.Itoa(len(names)), namesEnv+"="+strings.Join(names, ":"))
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	return nil
}

// crashed tells a death from an end: whoever was never ready has said why it could not be.
func (k *keeper) crashed(s *os.ProcessState) bool {
	if k.ending || !k.ready && k.lives == 1 && k.child.Heir { // what it had begun to keep is another's
		return false
	}
	status, ok := s.Sys().(syscall.WaitStatus)
	return k.served && (ok && status.Signaled() || s.ExitCode() != 0 && k.ready)
}

// loops notes a crash and says whether there were too many.
func (k *keeper) loops(now time.Time) bool {
	k.crashes = append(slices.DeleteFunc(k.crashes, func(t time.Time) bool { return now.Sub(t) > loopWithin }), now)
	return len(k.crashes) >= loopCount
}

// letGo closes all that is kept: AF_XDP sockets end, and the kernel has its frames back.
func (k *keeper) letGo() {
	for _, f := range k.kept {
		_ = unix.Close(f.fd)
	}
	k.kept = nil
}

// take does what a message of the child says.
func (k *keeper) take(m message) {
	fields := m.fields()
	name := fields["FDNAME"]
	switch {
	case fields["STOPPING"] == "1":
		k.ending = true
	case fields["READY"] == "1":
		k.ready, k.served = true, true
	case fields["FDSTORE"] == "1" && len(m.fds) == 1 && checkName(name) == nil && len(k.kept) < maxKept:
		k.drop(name)
		k.kept = append(k.kept, keptFD{name, m.fds[0]})
		m.fds = nil
	case fields["FDSTOREREMOVE"] == "1":
		k.drop(name)
	}
	m.close()
}

func (k *keeper) drop(name string) {
	k.kept = slices.DeleteFunc(k.kept, func(f keptFD) bool {
		if f.name == name {
			_ = unix.Close(f.fd)
		}
		return f.name == name
	})
}

// message is one datagram.
type message struct {
	text string
	fds  []int
}

func (m *message) close() {
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
	m.fds = nil
}

func (m *message) fields() map[string]string {
	out := map[string]string{}
	for line := range strings.SplitSeq(m.text, "\n") {
		if key, value, ok := strings.Cut(line, "="); ok {
			out[key] = value
		}
	}
	return out
}

// receive reads datagrams until the child's end of the channel is closed, or ours.
func receive(conn *net.UnixConn, to chan<- message) {
	defer close(to)
	buf := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(253*4))
	for {
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			return
		}
		m := message{text: string(buf[:n])}
		blocks, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for i := range blocks {
			if fds, err := unix.ParseUnixRights(&blocks[i]); err == nil {
				m.fds = append(m.fds, fds...)
			}
		}
		to <- m
	}
}

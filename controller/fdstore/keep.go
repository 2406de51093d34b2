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
	heirWithin = 2 * time.Second      // from a crash until what is kept is in use again; then it is let go
	loopCount  = 5                    // crashes in loopWithin: a crash loop
	loopWithin = 10 * time.Second     //
	drainPause = 3 * time.Millisecond // without a message, after which a dead child's have all come
	maxKept    = 1 << 16
	maxMessage = 4096
)

// ErrCrashLoop: the process died again and again; everything was let go.
var ErrCrashLoop = errors.New("it crashed again and again")

// Child is the process that a keeper keeps descriptors for.
type Child struct {
	Path string
	Args []string // without the program's name
	Log  *slog.Logger
}

// keeper is what Keep knows.
type keeper struct {
	child   Child
	conn    *net.UnixConn
	kept    []keptFD
	ready   bool // the child that runs has said so
	ending  bool // it was told to end
	crashes []time.Time
}

type keptFD struct {
	name string
	fd   int
}

// Keep starts the child, and starts it again with what it had kept when it dies of a signal or, once it was ready, with an exit code.
// It forwards SIGTERM, SIGINT and SIGHUP, and returns the child's exit code when that ends by itself. The child dies with this process.
// Error: ErrCrashLoop, and that the child cannot be started.
func Keep(ctx context.Context, c Child) (code int, err error) {
	runtime.LockOSThread() // Pdeathsig is about the thread that started the child
	k := &keeper{child: c}
	if k.conn, err = listen(); err != nil {
		return 1, err
	}
	defer k.conn.Close()
	defer k.letGo()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)
	messages := make(chan message)
	go receive(k.conn, messages)
	for {
		died, err := k.run(signals, messages)
		if err != nil {
			return 1, err
		}
		if !k.crashed(died) {
			return died.ExitCode(), nil
		}
		c.Log.Error("the data plane died", "how", died.String(), "kept", len(k.kept))
		if k.loops(time.Now()) {
			return 1, fmt.Errorf("keeper: %w: %d times in %v, the last: %s", ErrCrashLoop, loopCount, loopWithin, died)
		}
	}
}

// listen makes the socket that the child finds in its environment: an abstract one, which only this network namespace sees.
func listen() (*net.UnixConn, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@rscctl-keeper-" + strconv.Itoa(os.Getpid()), Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("keeper: %w", err)
	}
	return conn, nil
}

// run starts the child once and serves it until it ends.
func (k *keeper) run(signals <-chan os.Signal, messages <-chan message) (*os.ProcessState, error) {
	cmd := exec.Command(k.child.Path, k.child.Args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A group of its own: ctrl-C is for the keeper, which passes it on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var names []string
	for _, f := range k.kept {
		dup, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, firstFD)
		if err != nil {
			return nil, fmt.Errorf("keeper: %s: %w", f.name, err)
		}
		file := os.NewFile(uintptr(dup), f.name)
		defer file.Close()
		cmd.ExtraFiles, names = append(cmd.ExtraFiles, file), append(names, f.name)
	}
	cmd.Env = append(os.Environ(), notifyEnv+"="+k.conn.LocalAddr().String(), keeperEnv+"=1",
		countEnv+"="+strconv.Itoa(len(names)), namesEnv+"="+strings.Join(names, ":"))
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	k.ready = false
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	late := time.NewTimer(heirWithin)
	defer late.Stop()
	for {
		select {
		case <-ended:
			k.drain(messages, cmd.Process.Pid)
			return cmd.ProcessState, nil
		case s := <-signals:
			k.ending = k.ending || s != syscall.SIGHUP
			_ = cmd.Process.Signal(s)
		case m := <-messages:
			k.take(m, cmd.Process.Pid)
		case <-late.C:
			if !k.ready && len(k.kept) > 0 {
				k.child.Log.Error("no data plane in time: what was kept is let go", "kept", len(k.kept))
				k.letGo()
			}
		}
	}
}

// crashed tells a death from an end: whoever was never ready has said why it could not be.
func (k *keeper) crashed(s *os.ProcessState) bool {
	if k.ending {
		return false
	}
	status, ok := s.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return k.ready || len(k.kept) > 0
	}
	return k.ready && s.ExitCode() != 0
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

// take does what a message of the child says. Others' are passed over.
func (k *keeper) take(m message, child int) {
	if m.pid != child {
		m.close()
		return
	}
	fields := m.fields()
	name := fields["FDNAME"]
	switch {
	case fields["READY"] == "1":
		k.ready = true
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

// drain takes what the child had said before it died.
func (k *keeper) drain(messages <-chan message, child int) {
	for {
		select {
		case m := <-messages:
			k.take(m, child)
		case <-time.After(drainPause):
			return
		}
	}
}

// message is one datagram.
type message struct {
	text string
	fds  []int
	pid  int // of the sender, by the kernel's word
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

// receive reads datagrams until the socket is closed.
func receive(conn *net.UnixConn, to chan<- message) {
	buf := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(253*4)+unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // EMFILE and the like: they pass
			continue
		}
		m := message{text: string(buf[:n])}
		blocks, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for i := range blocks {
			if cred, err := unix.ParseUnixCredentials(&blocks[i]); err == nil {
				m.pid = int(cred.Pid)
			} else if fds, err := unix.ParseUnixRights(&blocks[i]); err == nil {
				m.fds = append(m.fds, fds...)
			}
		}
		to <- m
	}
}

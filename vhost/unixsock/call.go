package unixsock

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// in calls fn with a name for the socket called name in f. bind(2) and connect(2) know no descriptor of a folder, so the
// call is made on a thread of its own, whose working folder is f: unshare(CLONE_FS) takes it out of what the process' threads share,
// and it ends with the goroutine because it is never unlocked. The address that others see is then the bare name. Where a
// sandbox forbids unshare the way leads through /proc.
func (f folder) in(name string, fn func(name string) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the process' first thread: it cannot end, and its working folder is the process'
			err := f.in(name, fn) // on another thread, because this one is taken
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Fchdir(f.fd) // takes O_PATH descriptors since Linux 3.5
		}
		switch {
		case err != nil:
			name = fmt.Sprintf("/proc/self/fd/%d/%s", f.fd, name)
		case name[0] == '@': // not the abstract one
			name = "./" + name
		}
		done <- fn(name)
	}()
	return <-done
}

// alive tells whether somebody may be listening on the socket file called name. Only a refused connection says that nobody is.
func (f folder) alive(name string) (bool, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return true, err
	}
	defer unix.Close(fd)
	connect := func(name string) error { return unix.Connect(fd, &unix.SockaddrUnix{Name: name}) }
	err = f.in(name, connect)
	if err == unix.EACCES {
		err = f.owning(name, connect)
	}
	switch err {
	case unix.ECONNREFUSED:
		return false, nil
	case nil, unix.EAGAIN, unix.EPROTOTYPE: // EAGAIN: its queue is full; EPROTOTYPE: a datagram socket
		return true, nil
	}
	return true, err
}

// owning calls fn with a name for a socket whose owner we are meanwhile. A socket that was given to somebody (Config.UID) can be his alone
// by its mode, and a root without CAP_DAC_OVERRIDE, as in a service, could not even tell whether it is stale. All is done with one
// descriptor of the file, whatever its name becomes meanwhile; who connects in this moment may be refused, and tries again.
func (f folder) owning(name string, fn func(name string) error) error {
	file, err := unix.Openat(f.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	var st unix.Stat_t
	if err := unix.Fstat(file, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return ErrNotSocket
	}
	if int(st.Uid) == os.Geteuid() || unix.Fchownat(file, "", os.Geteuid(), -1, unix.AT_EMPTY_PATH) != nil {
		return unix.EACCES
	}
	err = fn(fmt.Sprintf("/proc/self/fd/%d", file))
	if back := unix.Fchownat(file, "", int(st.Uid), -1, unix.AT_EMPTY_PATH); back != nil {
		return fmt.Errorf("owner: %w", back)
	}
	return err
}

func random() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return hex.EncodeToString(b[:])
}

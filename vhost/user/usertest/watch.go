// Package usertest is what a hostile front-end does, for tests.
package usertest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Watch makes n watchers of an eventfd, which is told to each of them.
func Watch(t testing.TB, fd, n int) {
	t.Helper()
	const each = 200
	dups := []int{fd} // an epoll instance takes one file several times, under several numbers
	for len(dups) < each {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(d) })
		dups = append(dups, d)
	}
	for ; n > 0; n -= each {
		ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(ep) })
		for _, d := range dups {
			err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, d, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET, Fd: int32(d)})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

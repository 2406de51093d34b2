package unixsock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the symbolic links on the way to a folder, as the kernel does (path_resolution(7)).
const maxLinks = 40

// folder is an open folder. The descriptor is O_PATH: it names the folder and opens nothing of it.
type folder struct {
	fd   int
	path string // for people
}

func (f folder) close() { _ = unix.Close(f.fd) }

// stat looks at a name in the folder without following a link.
func (f folder) stat(name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(f.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// openFolder opens the folder at path, checking each folder on the way, those behind links too: who may write one of them
// decides what the path leads to. Errors: ErrNoFolder, ErrFolder.
func openFolder(path string, t trusted) (folder, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return folder{}, err
	}
	at, err := openRoot(t)
	if err != nil {
		return folder{}, err
	}
	left := strings.Split(abs, "/")
	for links := 0; len(left) > 0; {
		name := left[0]
		left = left[1:]
		if name == "" || name == "." {
			continue
		}
		if target, err := readlink(at, name); err == nil {
			if links++; links > maxLinks {
				at.close()
				return folder{}, fmt.Errorf("%w: too many links", ErrNoFolder)
			}
			left = append(strings.Split(target, "/"), left...)
			if strings.HasPrefix(target, "/") {
				at.close()
				if at, err = openRoot(t); err != nil {
					return folder{}, err
				}
			}
			continue
		}
		next, err := at.open(name, t)
		at.close()
		if err != nil {
			return folder{}, err
		}
		at = next
	}
	return at, nil
}

func openRoot(t trusted) (folder, error) { return folder{fd: unix.AT_FDCWD}.open("/", t) }

// open opens a folder in f and checks who may write it.
func (f folder) open(name string, t trusted) (folder, error) {
	next := folder{path: filepath.Join(f.path, name)}
	fd, err := unix.Openat(f.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return folder{}, fmt.Errorf("%w: %s", ErrNoFolder, next.path)
	case err != nil:
		return folder{}, fmt.Errorf("folder %s: %w", next.path, err)
	}
	next.fd = fd
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		next.close()
		return folder{}, fmt.Errorf("folder %s: %w", next.path, err)
	}
	if err := t.check(next.path, &st); err != nil {
		next.close()
		return folder{}, err
	}
	return next, nil
}

func readlink(f folder, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(f.fd, name, b)
	if err != nil {
		return "", err // EINVAL: no link
	}
	return string(b[:n]), nil
}

// trusted are those who may write a folder on the way, beside root and ourselves: the socket's owner and group, -1 for none.
type trusted struct{ uid, gid int }

// check refuses a folder that others may write. The sticky bit keeps them from the entries of others (unlink(2)), but not the
// folder's owner.
func (t trusted) check(path string, st *unix.Stat_t) error {
	const remedy = "put the socket into a folder of root's, or make it that user's"
	if uid := int(st.Uid); uid != 0 && uid != os.Geteuid() && uid != t.uid {
		return fmt.Errorf("%w: %s belongs to user %d: %s", ErrFolder, path, uid, remedy)
	}
	if st.Mode&unix.S_ISVTX != 0 {
		return nil
	}
	if gid := int(st.Gid); st.Mode&unix.S_IWGRP != 0 && gid != 0 && gid != os.Getegid() && gid != t.gid {
		return fmt.Errorf("%w: %s is open to group %d: %s", ErrFolder, path, gid, remedy)
	}
	if st.Mode&unix.S_IWOTH != 0 {
		return fmt.Errorf("%w: %s is open to everybody: %s", ErrFolder, path, remedy)
	}
	return nil
}

// lock keeps other starters out of the folder between their look at a name and their change of it. Names have no
// compare-and-swap: of several that find the same stale file, two could each believe to have replaced it. Anybody who may read the
// folder may hold this lock, so after a second the work goes on without it.
func (f folder) lock() (unlock func()) {
	fd, err := unix.Openat(f.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	for range 200 {
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return func() { _ = unix.Close(fd) }
}

// private makes a new folder in f that only we can enter, and opens it.
func (f folder) private() (dir folder, name string, err error) {
	for range 100 {
		name = ".rscctl-" + random()
		err = unix.Mkdirat(f.fd, name, 0o700)
		if !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil {
		return folder{}, "", err
	}
	fd, err := unix.Openat(f.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = unix.Unlinkat(f.fd, name, unix.AT_REMOVEDIR) // which takes an empty folder only
		return folder{}, "", err
	}
	dir = folder{fd: fd, path: filepath.Join(f.path, name)}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0) {
		err = fmt.Errorf("%w: somebody put another one in the place of %s", ErrFolder, name)
	}
	if err != nil {
		dir.close()
		return folder{}, "", err
	}
	return dir, name, nil
}

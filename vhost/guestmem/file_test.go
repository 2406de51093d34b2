package guestmem

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// shm is a new folder on tmpfs.
func shm(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "guestmem")
	if err != nil {
		t.Skip("needs a tmpfs at /dev/shm:", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// file makes a file of two pages and opens it.
func file(t *testing.T, dir string) int {
	t.Helper()
	path := filepath.Join(dir, "memory")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func mapFile(fd int, o Options) error {
	none := NewTable(o)
	defer none.Close()
	table, err := none.Replace([]Region{{Size: 8192, FD: fd}})
	return errors.Join(err, table.Close())
}

// Memory is taken from where nobody but this kernel answers a page fault, and from elsewhere only where the operator said
// so.
func TestMemoryLiesOnlyWhereNobodyCanMakeAFaultWait(t *testing.T) {
	here := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(here, &fs); err != nil {
		t.Fatal(err)
	}
	if memoryFS(int64(fs.Type)) {
		t.Skip("the folder for temporary files is memory itself")
	}
	disk := file(t, here)
	if err := mapFile(disk, Options{}); !errors.Is(err, ErrFileSystem) {
		t.Errorf("a file on a disk: %v", err)
	}
	if err := mapFile(disk, Options{AnyFile: true}); err != nil {
		t.Errorf("a file on a disk, allowed: %v", err)
	}
	if err := mapFile(file(t, shm(t)), Options{}); err != nil {
		t.Errorf("a file on tmpfs: %v", err)
	}
	if err := mapFile(memfd(t, 8192), Options{}); err != nil {
		t.Errorf("memfd: %v", err)
	}
	huge, err := unix.MemfdCreate(t.Name(), unix.MFD_CLOEXEC|unix.MFD_HUGETLB)
	if err != nil {
		t.Logf("no huge pages here: %v", err)
		return
	}
	defer unix.Close(huge)
	if err := unix.Ftruncate(huge, 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := mapFile(huge, Options{}); err != nil {
		t.Errorf("huge pages: %v", err)
	}
}

// An overlay hides what lies beneath: not even one over tmpfs is memory, because nobody can tell it from one over FUSE.
func TestAnOverlayIsNoMemory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a mount of its own")
	}
	dir := shm(t)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its mount namespace
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			options := "lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
			if err := unix.Mount("overlay", dir+"/merged", "overlay", 0, options); err != nil {
				return err
			}
			path := filepath.Join(dir, "merged", "memory")
			if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
				return err
			}
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := mapFile(fd, Options{}); !errors.Is(err, ErrFileSystem) {
				t.Errorf("an overlay over tmpfs: %v", err)
			}
			return nil
		}()
	}()
	if err := <-done; errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) {
		t.Skip("no overlay here:", err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// What the kernel says of a file system is believed, and these are the ones that a fault can wait in.
func TestFileSystemsThatMayWaitAreNotMemory(t *testing.T) {
	for name, magic := range map[string]int64{
		"FUSE": unix.FUSE_SUPER_MAGIC, "overlay": unix.OVERLAYFS_SUPER_MAGIC, "NFS": unix.NFS_SUPER_MAGIC, "ext4": unix.EXT4_SUPER_MAGIC,
		"XFS": unix.XFS_SUPER_MAGIC, "Btrfs": unix.BTRFS_SUPER_MAGIC, "CIFS": unix.CIFS_SUPER_MAGIC, "9p": unix.V9FS_MAGIC,
		"Ceph": unix.CEPH_SUPER_MAGIC, "dma-buf": unix.DMA_BUF_MAGIC, "secret memory": unix.SECRETMEM_MAGIC, "F2FS": unix.F2FS_SUPER_MAGIC,
	} {
		if memoryFS(magic) {
			t.Errorf("%s is memory", name)
		}
	}
}

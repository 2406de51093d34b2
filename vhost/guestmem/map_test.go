package guestmem

import (
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// memfd is a memory file of that many bytes, named after the test so that its mappings can be counted.
func memfd(t *testing.T, size int64) int {
	t.Helper()
	fd, err := unix.MemfdCreate(t.Name(), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	return fd
}

// mappings counts this process's mappings of the test's memory files.
func mappings(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "/memfd:"+t.Name()+" ")
}

func TestMapRefusesWhatIsNoRegion(t *testing.T) {
	fd := memfd(t, 1<<20)
	ok := Region{GPA: 0x10000, Size: 0x1000, UVA: 0x7f0000000000, FD: fd}
	second := ok
	second.GPA = 0x20000
	edit := func(f func(*Region)) []Region { r := second; f(&r); return []Region{ok, r} }
	many := make([]Region, MaxRegions+1)
	for i := range many {
		many[i] = Region{GPA: uint64(i) * 0x1000, Size: 0x1000, UVA: uint64(i) * 0x1000, FD: fd}
	}
	tests := []struct {
		name    string
		regions []Region
		want    error
	}{
		{"guard", []Region{ok, second}, nil},
		{"none", nil, ErrNoRegions},
		{"size 0", edit(func(r *Region) { r.Size = 0 }), ErrEmpty},
		{"GPA wraps", edit(func(r *Region) { r.GPA = ^uint64(0) - 0xffe }), ErrOverflow},
		{"UVA wraps", edit(func(r *Region) { r.UVA = ^uint64(0) - 0xffe }), ErrOverflow},
		{"offset and size wrap", edit(func(r *Region) { r.Offset = ^uint64(0) - 0xffe }), ErrOverflow},
		{"offset beyond what files have", edit(func(r *Region) { r.Offset = 1 << 63 }), ErrOverflow},
		{"size beyond what slices have", edit(func(r *Region) { r.Size = 1 << 63 }), ErrOverflow},
		{"same place", []Region{ok, ok}, ErrOverlap},
		{"one byte of overlap at the start", edit(func(r *Region) { r.GPA = ok.GPA + 0xfff }), ErrOverlap},
		{"one byte of overlap at the end", edit(func(r *Region) { r.GPA = ok.GPA - 0xfff }), ErrOverlap},
		{"around the other", edit(func(r *Region) { r.GPA, r.Size = ok.GPA-0x1000, 0x3000 }), ErrOverlap},
		{"adjacent", edit(func(r *Region) { r.GPA = ok.GPA + 0x1000 }), nil},
		{"same UVA", edit(func(r *Region) { r.UVA = ok.UVA }), nil},
		{"one byte beyond the file", edit(func(r *Region) { r.Size = 1<<20 + 1 }), ErrFileTooShort},
		{"offset beyond the file", edit(func(r *Region) { r.Offset = 1 << 20 }), ErrFileTooShort},
		{"up to the end of the file", edit(func(r *Region) { r.Offset = 1<<20 - 0x1000 }), nil},
		{"as many as allowed", many[:MaxRegions], nil},
		{"one more", many, ErrTooMany},
		{"no descriptor", edit(func(r *Region) { r.FD = -1 }), unix.EBADF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tab, err := Map(tt.regions)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil && tab.Len() != len(tt.regions) {
				t.Errorf("%d regions", tab.Len())
			}
			if err := tab.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if b, _ := os.ReadFile("/proc/self/maps"); strings.Contains(string(b), "/memfd:"+t.Name()) {
		t.Error("something stayed mapped")
	}
}

func TestMapRefusesFilesThatAreNotMemory(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	fds := map[string]int{"pipe": p[0], "socket": sock, "eventfd": efd}
	for name, path := range map[string]string{"folder": t.TempDir(), "device": "/dev/zero"} {
		if fds[name], err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	for name, fd := range fds {
		if _, err := Map([]Region{{Size: 4096, FD: fd}}); !errors.Is(err, ErrNotMemory) {
			t.Errorf("%s: %v", name, err)
		}
		unix.Close(fd)
	}
	unix.Close(p[1])

	path := filepath.Join(shm(t), "read-only")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := Map([]Region{{Size: 4096, FD: fd}}); !errors.Is(err, unix.EACCES) {
		t.Errorf("read-only file: %v", err)
	}
}

func TestOffsetsNeedNoAlignment(t *testing.T) {
	fd := memfd(t, 3*4096)
	if _, err := unix.Pwrite(fd, []byte("guest"), 4096+100); err != nil {
		t.Fatal(err)
	}
	tab, err := Map([]Region{{GPA: 0x1000, Size: 5000, Offset: 4096 + 100, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	defer tab.Close()
	b, err := tab.Slice(0x1000, 5)
	if err != nil || string(b) != "guest" {
		t.Fatalf("%q, %v", b, err)
	}
	copy(b, "world")
	var back [5]byte
	if _, err := unix.Pread(fd, back[:], 4096+100); err != nil || string(back[:]) != "world" {
		t.Errorf("the file holds %q, %v: the mapping is not shared", back, err)
	}
	if all, err := tab.Slice(0x1000, 5000); err != nil || cap(all) != 5000 {
		t.Errorf("capacity %d, %v: the rest of the page can be reached", cap(all), err)
	}
}

func TestTablesShareMappingsUntilTheLastIsClosed(t *testing.T) {
	fd := memfd(t, 1<<20)
	r := func(i uint64) Region {
		return Region{GPA: i << 16, Size: 1 << 16, UVA: i << 16, Offset: i << 16, FD: fd}
	}
	one, err := Map([]Region{r(0), r(2)})
	if err != nil {
		t.Fatal(err)
	}
	two, err := one.Add(r(5))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := two.Add(r(5)); !errors.Is(err, ErrOverlap) {
		t.Errorf("added twice: %v", err)
	}
	gone := r(2)
	gone.FD, gone.Offset = -1, 77 // neither is looked at
	three, err := two.Remove(gone)
	if err != nil {
		t.Fatal(err)
	}
	gone.Size--
	if _, err := three.Remove(gone); !errors.Is(err, ErrNoSuchRegion) {
		t.Errorf("removed another size: %v", err)
	}
	if one.Len() != 2 || two.Len() != 3 || three.Len() != 2 {
		t.Errorf("%d, %d, %d regions: a table changed", one.Len(), two.Len(), three.Len())
	}
	if _, err := three.Slice(2<<16, 1); !errors.Is(err, ErrRange) {
		t.Errorf("the region removed is still there: %v", err)
	}
	if n := mappings(t); n != 3 {
		t.Errorf("%d mappings of 3 regions", n)
	}
	a, _ := one.Slice(0, 1)
	c, _ := three.Slice(0, 1)
	if &a[0] != &c[0] {
		t.Error("the same region is mapped twice")
	}
	one.Close()
	one.Close()
	two.Close()
	if n := mappings(t); n != 2 {
		t.Errorf("%d mappings after the first two tables are closed", n)
	}
	c[0] = 1 // still mapped
	three.Close()
	if n := mappings(t); n != 0 {
		t.Errorf("%d mappings after all are closed", n)
	}
}

func TestReplaceKeepsMappingsOfTheSameBytes(t *testing.T) {
	fd, other := memfd(t, 1<<20), memfd(t, 1<<20)
	again, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(again)
	one, err := Map([]Region{{GPA: 0, Size: 4096, FD: fd}, {GPA: 1 << 20, Size: 4096, Offset: 4096, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	two, err := one.Replace([]Region{{GPA: 7 << 20, Size: 4096, FD: again}, {GPA: 1 << 20, Size: 4096, Offset: 4096, FD: other}})
	if err != nil {
		t.Fatal(err)
	}
	a, _ := one.Slice(0, 1)
	b, _ := two.Slice(7<<20, 1)
	if &a[0] != &b[0] {
		t.Error("the same bytes of the same file were mapped anew")
	}
	c, _ := one.Slice(1<<20, 1)
	d, _ := two.Slice(1<<20, 1)
	if &c[0] == &d[0] {
		t.Error("another file was taken for the same")
	}
	one.Close()
	b[0], d[0] = 1, 1
	if _, err := two.Replace([]Region{{GPA: 0, Size: 4096, FD: fd}, {GPA: 0, Size: 4096, FD: fd}}); !errors.Is(err, ErrOverlap) {
		t.Error(err)
	}
	b[0] = 2 // a failed Replace takes nothing away
	two.Close()
	if n := mappings(t); n != 0 {
		t.Errorf("%d mappings left", n)
	}
}

func TestSealedTellsWhetherFilesCanShrink(t *testing.T) {
	fd := memfd(t, 8192)
	tab, err := Map([]Region{{Size: 4096, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	defer tab.Close()
	if tab.Sealed() {
		t.Error("a file without seals counts as sealed")
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		t.Fatal(err)
	}
	tab2, err := Map([]Region{{Size: 4096, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	defer tab2.Close()
	if !tab2.Sealed() || !FromBytes(0, 0, make([]byte, 1)).Sealed() {
		t.Error("a sealed file does not count as sealed")
	}
}

// This is what callers rely on: a front-end that cuts its file costs one recovered panic, not the process.
func TestATruncatedFileFaultsRecoverably(t *testing.T) {
	fd := memfd(t, 8192)
	tab, err := Map([]Region{{Size: 8192, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	defer tab.Close()
	b, _ := tab.Slice(4096, 100)
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	fault := func() (err any) {
		defer func() { err = recover() }()
		copy(b, "x")
		return nil
	}()
	if fault == nil {
		t.Error("writing to a page that is gone raised nothing")
	}
}

func TestHasKnowsARegionByItsBytesAndItsPlace(t *testing.T) {
	fd, other := memfd(t, 1<<20), memfd(t, 1<<20)
	r := Region{GPA: 1 << 32, Size: 4096, UVA: 1 << 40, Offset: 8192, FD: fd}
	table, err := Map([]Region{r})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if !table.Has(r) {
		t.Error("a region is not known")
	}
	for name, edit := range map[string]func(*Region){
		"another file":            func(r *Region) { r.FD = other },
		"another offset":          func(r *Region) { r.Offset = 4096 },
		"another guest address":   func(r *Region) { r.GPA += 4096 },
		"another virtual address": func(r *Region) { r.UVA += 4096 },
		"another size":            func(r *Region) { r.Size = 8192 },
		"no file":                 func(r *Region) { r.FD = -1 },
	} {
		o := r
		if edit(&o); table.Has(o) || NewTable(Options{}).Has(o) {
			t.Errorf("%s: taken for the same", name)
		}
	}
}

// A file of holes costs its owner nothing, and us address space.
func TestRegionsBeyondTheMachineAreRefused(t *testing.T) {
	limit, err := memoryLimit()
	if err != nil {
		t.Fatal(err)
	}
	fd := memfd(t, int64(limit)*2)
	if _, err := Map([]Region{{Size: limit + 4096, FD: fd}}); !errors.Is(err, ErrTooMuch) {
		t.Errorf("one region too large: %v", err)
	}
	half := limit / 2 &^ 4095
	table, err := Map([]Region{{Size: half, FD: fd}, {GPA: half, Size: half, Offset: half, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if _, err := table.Add(Region{GPA: limit, Size: 2 << 20, FD: fd}); !errors.Is(err, ErrTooMuch) {
		t.Errorf("one region too many: %v", err)
	}
	smaller, err := table.Remove(Region{GPA: half, Size: half})
	if err != nil {
		t.Fatal(err)
	}
	defer smaller.Close()
	again, err := smaller.Add(Region{GPA: limit, Size: 2 << 20, FD: fd})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

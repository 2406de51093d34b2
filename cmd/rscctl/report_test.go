package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/test/netnstest"
)

// A machine on which all has a name that tells: what rscctl report writes of it has none of them, though doctor speaks of some.
func TestTheReportDoesNotSayWhoseMachineItIs(t *testing.T) {
	bin := built(t)
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x5e, 0xc2, 0xe7}
	n := netnstest.Pair(t, netnstest.Options{MACB: mac, KeepTxChecksum: true})
	rename := func(s *netnstest.Side, name string) {
		s.Do(t, func() error {
			l, err := netlink.LinkByName(s.Dev)
			if err != nil {
				return err
			}
			for _, err := range []error{netlink.LinkSetDown(l), netlink.LinkSetName(l, name), netlink.LinkSetUp(l)} {
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	rename(n.A, "acmepeer0")
	rename(n.B, "acmenic0")
	n.B.Do(t, func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "acmebr0"}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		l, err := netlink.LinkByName("acmenic0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, bridge)
	})

	vm := exec.Command("/bin/sh", "-c", "read line", "-name", "guest=acmevm0,debug-threads=on", "-uuid", "6f1c7a52-8b1e-4c55-9d3a-0b6f5ec2e777")
	vm.Args[0] = "/usr/bin/qemu-system-x86_64"
	stdin, err := vm.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(); err != nil {
		t.Fatal(err)
	}
	defer vm.Wait()
	defer stdin.Close()

	home := filepath.Join(t.TempDir(), "acmehome")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		t.Helper()
		cmd := exec.Command("sh", append([]string{"-c", `hostname acmehost0.acme.example && exec "$@"`, "-", bin}, args...)...)
		cmd.Dir = home
		cmd.Env = append(os.Environ(), "HOME="+home, "USER=acmeuser", "SUDO_USER=acmeadmin")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUTS}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		err := n.B.NS.Run(cmd)
		return out.String(), err
	}
	// --bpffs of a user's: doctor says where it is.
	more := []string{"acmenic0", "--bpffs", filepath.Join(home, "acmepins")}
	heard, _ := run(append([]string{"doctor", "--verbose"}, more...)...) // its exit code says what it found
	for _, told := range []string{"acmenic0", "acmepeer0", "acmebr0", "acmepins", n.A.NS.Name()} {
		if !strings.Contains(heard, told) {
			t.Fatalf("doctor does not speak of %s: this shows nothing\n%s", told, heard)
		}
	}

	report := append([]string{"report", "--no-demo", "--socket", filepath.Join(home, "none")}, more...)
	said, err := run(report...)
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if !strings.Contains(said, "rscctl-report.md") || !strings.Contains(said, "read it before you send it") {
		t.Errorf("said: %s", said)
	}
	path := filepath.Join(home, "rscctl-report.md")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, secret := range []string{"acme", "52:54:00", "5e:c2:e7", "5ec2e7", "10.77.0", "fd77:", "fe80:", "6f1c7a52", n.A.NS.Name(), n.B.NS.Name(), home} {
		if strings.Contains(strings.ToLower(text), strings.ToLower(secret)) {
			t.Errorf("%s stands in the report", secret)
		}
	}
	for _, fact := range []string{"| nic0 | veth veth |", `"subject":"nic0"`, `"id":"peer.tx_checksum"`, "its peer nic0-peer leaves TCP checksums", "| kernel | ", "| processor | ", "| VMs that run | ", "--no-demo"} {
		if !strings.Contains(text, fact) {
			t.Errorf("%s does not stand in the report", fact)
		}
	}
	if t.Failed() {
		t.Log(text)
	}

	// A file that is there is somebody's.
	if said, err := run(report...); err == nil || !strings.Contains(said, "say --overwrite") {
		t.Errorf("written over: %v %s", err, said)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if said, err := run(append(report, "--overwrite")...); err != nil {
		t.Errorf("%v %s", err, said)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("written over with mode %v", info.Mode())
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if said, err := run("report", "acmenone0", "--overwrite", "--no-demo"); err == nil {
		t.Errorf("of nothing: %s", said)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a report that failed took the one before with it: %v", err)
	}
	if said, err := run("report", "acmenone0", "-w", "other.md", "--no-demo"); err == nil || !strings.Contains(said, "acmenone0") {
		t.Errorf("an interface that is not there: %v %s", err, said)
	}
	if files, err := os.ReadDir(home); err != nil || len(files) != 1 {
		t.Errorf("half a report is left: %v %v", files, err)
	}
}

// --overwrite takes the place of a file and of nothing else: a device and a FIFO are written into, and stay, whatever becomes of the report.
func TestAReportTakesThePlaceOfFilesOnly(t *testing.T) {
	bin := built(t)
	n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mkfifo(in("fifo"), 0o600), os.WriteFile(in("file"), []byte("kept"), 0o600),
		os.Symlink("file", in("link")), os.Symlink("none", in("dangling")), os.Mkdir(in("folder"), 0o700)); err != nil {
		t.Fatal(err)
	}
	fifo, err := unix.Open(in("fifo"), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // a reader, who waits for no writer
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fifo)
	if _, err := unix.FcntlInt(uintptr(fifo), unix.F_SETPIPE_SZ, 1<<20); err != nil { // room for all of it
		t.Fatal(err)
	}
	types := func() string {
		var b strings.Builder
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			fmt.Fprintf(&b, "%s %v\n", f.Name(), f.Type())
		}
		return b.String()
	}
	before := types()
	report := func(iface, to string, more ...string) (string, error) {
		var out bytes.Buffer
		cmd := exec.Command(bin, append([]string{"report", iface, "--no-demo", "-w", to}, more...)...)
		cmd.Stdout, cmd.Stderr = &out, &out
		err := n.B.NS.Run(cmd)
		return out.String(), err
	}
	for _, more := range [][]string{nil, {"--overwrite"}} {
		for _, to := range []string{"null", "fifo"} {
			if said, err := report(n.B.Dev, in(to), more...); err != nil {
				t.Errorf("to %s %q: %v %s", to, more, err, said)
			}
			if said, err := report("none0", in(to), more...); err == nil {
				t.Errorf("of nothing to %s: %s", to, said)
			}
		}
		for to, want := range map[string]string{"link": "it is a link", "dangling": "it is a link", "folder": "it is no file"} {
			// Of an interface that is not there: the first fault is the one that is said.
			if said, err := report("none0", in(to), more...); err == nil || !strings.Contains(said, want) {
				t.Errorf("to %s %q: %v %s", to, more, err, said)
			}
		}
	}
	if after := types(); after != before {
		t.Errorf("there was\n%sand there is\n%s", before, after)
	}
	if b, err := os.ReadFile(in("file")); err != nil || string(b) != "kept" {
		t.Errorf("the file behind the link: %q %v", b, err)
	}
	got := make([]byte, 1<<20)
	read, err := unix.Read(fifo, got)
	if err != nil || strings.Count(string(got[:max(0, read)]), "# rscctl report") != 2 {
		t.Errorf("out of the FIFO, which got two reports: %v\n%s", err, got[:max(0, read)])
	}
}

// What a controller calls its VMs, their domains, sockets and owners is taken out as well.
func TestTheReportKnowsTheNamesOfAController(t *testing.T) {
	fake := newFake(t)
	var got map[string]string
	app := &cli.App{Flags: []cli.Flag{socketFlag()}, Action: func(c *cli.Context) error {
		got = theirNames(c)
		return nil
	}}
	for socket, want := range map[string]map[string]string{fake.socket: {"web": "VM", "db": "VM", "/run/rscctl/web.sock": "PATH"}, fake.socket + "x": {}} {
		if err := app.Run([]string{"rscctl", "--socket", socket}); err != nil {
			t.Fatal(err)
		}
		for name, word := range want {
			if got[name] != word {
				t.Errorf("%s stands for %q in %v", name, got[name], got)
			}
		}
		if _, empty := got[""]; empty || len(want) == 0 && len(got) > 0 {
			t.Errorf("%v", got)
		}
	}
}

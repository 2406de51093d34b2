package docs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rscctl/rscctl/test/netnstest"
)

var (
	fence   = regexp.MustCompile("(?ms)^```([^\n]*)\n(.*?)^```")
	endless = regexp.MustCompile(`^(bin/)?rscctl ((trace|top) |.* --watch)`) // until it is interrupted, or something happens
	command = regexp.MustCompile(`(?m)^(bin/)?rscctl `)
)

// documents are README.md and all of docs/, as paths from here.
func documents(t *testing.T) []string {
	t.Helper()
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(docs) == 0 {
		t.Fatalf("docs: %v", err)
	}
	return append([]string{"../../README.md"}, docs...)
}

// blocks are the fenced blocks of a document that are to be run, in its order.
func blocks(t *testing.T, doc string) (out []string) {
	t.Helper()
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range fence.FindAllStringSubmatch(string(text), -1) {
		switch mark := m[1]; {
		case mark == "sh run":
			out = append(out, m[2])
		case mark != "sh by-hand" && mark != "text" && command.MatchString(m[2]):
			t.Errorf("%s: a block with commands has no mark (run, by-hand or text):\n%s", doc, m[2])
		}
	}
	return out
}

// stage is a machine as the documents suppose it: an uplink eth1 in a bridge, the tap of a VM beside it, libvirt's user, nobody's state. Of the
// file system what would be written is the stage's own.
const stage = `set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t bpf bpf /sys/fs/bpf
mount --bind passwd /etc/passwd
mount --bind group /etc/group
ip link add br0 type bridge
ip link set eth1 master br0
ip link set br0 up
ip tuntap add db1n0 mode tap vnet_hdr
ip link set db1n0 address fe:54:00:12:34:57 master br0
ip link set db1n0 up
export PATH=$PWD/bin:$PATH HOME=$PWD
start() { "$@" & controller=$!; for i in $(seq 200); do rscctl status >/dev/null 2>&1 && return; sleep 0.1; done; echo "no controller"; exit 1; }
watched() { timeout 2 "$@" || [ $? = 124 ]; }
`

// script is what a document's blocks become: a controller in the foreground runs on, and a watch ends after a moment.
func script(blocks []string) string {
	var b strings.Builder
	b.WriteString(stage)
	text := strings.Join(blocks, "\n")
	started := false
	for line := range strings.Lines(text) {
		words, _, _ := strings.Cut(strings.TrimSpace(line), " #")
		switch {
		case strings.TrimPrefix(words, "bin/") == "rscctl run" || strings.HasPrefix(strings.TrimPrefix(words, "bin/"), "rscctl run "):
			words, started = "start "+words, true
		case endless.MatchString(words):
			words = "watched " + words
		}
		if words != "" {
			fmt.Fprintf(&b, "echo '$ '%s\n%s\n", quote(words), words)
		}
	}
	out := b.String()
	if !started {
		out = strings.Replace(out, "watched()", "start rscctl run\nwatched()", 1)
	}
	return out + "kill $controller\nwait $controller\n"
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Where the README tells how to start, it says how to build the program before it runs it: nobody has to have read what stands above.
func TestTheREADMEBuildsBeforeItRuns(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, start, ok := strings.Cut(string(text), "\n## Start it\n")
	build, run := strings.Index(start, "\ngo build -o bin/rscctl ./cmd/rscctl\n"), strings.Index(start, "\nbin/rscctl ")
	if !ok || run < 0 || build < 0 || build > run {
		t.Errorf("\"Start it\" is there: %t; it builds at byte %d and runs at %d", ok, build, run)
	}
}

// What the documents tell to type, typed in their order on a machine as they suppose it, does what they say: every command ends with 0.
func TestDocumentedCommandsRun(t *testing.T) {
	netnstest.Need(t, netnstest.AFXDP, netnstest.BPF, netnstest.TAP)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	product := filepath.Join(dir, "bin", "rscctl")
	if ready := os.Getenv("RSCCTL_BINARY"); ready != "" {
		if err := os.Symlink(ready, product); err != nil {
			t.Fatal(err)
		}
	} else if out, err := exec.Command("go", "build", "-o", product, "../../cmd/rscctl").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, more := range map[string]string{"passwd": "libvirt-qemu:x:64055:64056::/:/bin/false\n", "group": "kvm:x:64056:\n"} {
		b, err := os.ReadFile("/etc/" + name)
		if err != nil {
			t.Fatal(err)
		}
		own := regexp.MustCompile(`(?m)^(libvirt-qemu|kvm):.*\n`).ReplaceAllString(string(b), "")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(own+more), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ran := 0
	for _, doc := range documents(t) {
		list := blocks(t, doc)
		if len(list) == 0 {
			continue
		}
		t.Run(filepath.Base(doc), func(t *testing.T) {
			ran += len(list)
			n := netnstest.Pair(t, netnstest.Options{NoIPv6: true})
			n.B.Do(t, func() error {
				l, err := netlink.LinkByName(n.B.Dev)
				if err != nil {
					return err
				}
				for _, err := range []error{netlink.LinkSetDown(l), netlink.LinkSetName(l, "eth1"), netlink.LinkSetUp(l)} {
					if err != nil {
						return err
					}
				}
				return nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), netnstest.Patience(2*time.Minute))
			defer cancel()
			cmd := exec.CommandContext(ctx, "bash", "-c", script(list)) // with it end all of its PID namespace
			cmd.Dir = dir
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Setpgid: true, Pdeathsig: syscall.SIGKILL}
			cmd.WaitDelay = 10 * time.Second
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := n.B.NS.Run(cmd); err != nil {
				t.Errorf("%v\n%s", err, out.String())
			} else {
				t.Log(out.String())
			}
		})
	}
	if ran < 7 {
		t.Errorf("%d blocks were run: are they still marked?", ran)
	}
}

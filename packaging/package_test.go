package packaging

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
)

// files are all that the package has beside documents, with their modes.
var files = map[string]string{
	"./usr/bin/rscctl":                                  "-rwxr-xr-x",
	"./usr/lib/systemd/system/rscctl.service":           "-rw-r--r--",
	"./etc/rscctl/rscctl.yaml":                          "-rw-r--r--",
	"./usr/share/man/man1/rscctl.1.gz":                  "-rw-r--r--",
	"./usr/share/bash-completion/completions/rscctl":    "-rw-r--r--",
	"./usr/share/zsh/vendor-completions/_rscctl":        "-rw-r--r--",
	"./usr/share/fish/vendor_completions.d/rscctl.fish": "-rw-r--r--",
	"./usr/share/rscctl/prometheus/rscctl.rules.yml":    "-rw-r--r--",
	"./usr/share/rscctl/grafana/rscctl.json":            "-rw-r--r--",
	"./usr/share/rscctl/libvirt/qemu":                   "-rwxr-xr-x",
	"./usr/share/rscctl/proxmox/rscctl":                 "-rwxr-xr-x",
	"./usr/share/doc/rscctl/copyright":                  "-rw-r--r--",
	"./usr/share/doc/rscctl/changelog.gz":               "-rw-r--r--",
	"./usr/share/doc/rscctl/README.md":                  "-rw-r--r--",
	"./usr/share/doc/rscctl/docs/operations.md":         "-rw-r--r--",
	"./usr/share/doc/rscctl/examples/cpus.conf":         "-rw-r--r--",
	"./usr/share/doc/rscctl/examples/metrics.conf":      "-rw-r--r--",
	"./usr/share/doc/rscctl/examples/sockets.conf":      "-rw-r--r--",
}

// The packages of both machines hold everything at its place, owned by root, and a binary for that machine which says its version.
func TestThePackagesHoldWhatTheyPromise(t *testing.T) {
	need(t, "dpkg-deb")
	dist := t.TempDir()
	cmd := exec.Command("./build.sh")
	cmd.Env = append(os.Environ(), "RSCCTL_VERSION=1.2.3", "RSCCTL_DIST="+dist)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("build.sh: %v\n%s", err, &said)
	}
	debs := strings.Fields(string(out))
	if len(debs) != 2 {
		t.Fatalf("built %q", debs)
	}
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		deb := filepath.Join(dist, "rscctl_1.2.3_"+arch+".deb")
		checkFields(t, deb, arch)
		checkFiles(t, deb)
		root := t.TempDir()
		run(t, "dpkg-deb", "-R", deb, root)
		if b, err := os.ReadFile(filepath.Join(root, "DEBIAN/conffiles")); err != nil || strings.TrimSpace(string(b)) != "/etc/rscctl/rscctl.yaml" {
			t.Errorf("%s: conffiles %q: %v", arch, b, err)
		}
		for _, script := range []string{"postinst", "prerm", "postrm"} {
			run(t, "sh", "-n", filepath.Join(root, "DEBIAN", script))
		}
		f, err := elf.Open(filepath.Join(root, "usr/bin/rscctl"))
		if err != nil {
			t.Fatal(err)
		}
		if f.Machine != machine {
			t.Errorf("%s: a binary for %v", arch, f.Machine)
		}
		if libraries, err := f.ImportedLibraries(); err != nil || len(libraries) > 0 {
			t.Errorf("%s: needs libraries %v: %v", arch, libraries, err)
		}
		f.Close()
		if arch == strings.TrimSpace(run(t, "go", "env", "GOHOSTARCH")) {
			if got := run(t, filepath.Join(root, "usr/bin/rscctl"), "version"); got != "rscctl 1.2.3\n" {
				t.Errorf("version %q", got)
			}
		}
	}
}

func checkFields(t *testing.T, deb, arch string) {
	t.Helper()
	for field, want := range map[string]string{"Package": "rscctl", "Version": "1.2.3", "Architecture": arch, "Section": "net", "Depends": ""} {
		if got := strings.TrimSpace(run(t, "dpkg-deb", "-f", deb, field)); got != want {
			t.Errorf("%s: %s %q, want %q", deb, field, got, want)
		}
	}
}

func checkFiles(t *testing.T, deb string) {
	t.Helper()
	line := regexp.MustCompile(`^(\S+) (\S+) +\d+ \S+ \S+ (\S+)$`)
	seen := map[string]bool{}
	for l := range strings.Lines(run(t, "dpkg-deb", "-c", deb)) {
		m := line.FindStringSubmatch(strings.TrimSpace(l))
		if m == nil {
			t.Fatalf("%s: %q", deb, l)
		}
		mode, owner, path := m[1], m[2], m[3]
		seen[path] = true
		if owner != "root/root" {
			t.Errorf("%s: %s belongs to %s", deb, path, owner)
		}
		switch want, known := files[path]; {
		case strings.HasSuffix(path, "/"):
			if mode != "drwxr-xr-x" {
				t.Errorf("%s: folder %s is %s", deb, path, mode)
			}
		case known && mode != want:
			t.Errorf("%s: %s is %s, want %s", deb, path, mode, want)
		case !known && !strings.HasPrefix(path, "./usr/share/doc/rscctl/docs/"):
			t.Errorf("%s: nobody expects %s", deb, path)
		}
	}
	for path := range files {
		if !seen[path] {
			t.Errorf("%s: no %s", deb, path)
		}
	}
}

// A later tree has a newer version, for dpkg as for people.
func TestVersionsGrow(t *testing.T) {
	need(t, "git")
	need(t, "dpkg")
	script, err := filepath.Abs("version.sh")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "packaging"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "packaging/version.sh"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) {
		t.Helper()
		run(t, "git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@t", "-c", "core.hooksPath=/dev/null"}, args...)...)
	}
	change := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "f"), fmt.Appendf(nil, "%d", len(t.Name())), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git("init", "-q")
	git("add", ".")
	git("commit", "-qm", "one")
	var versions []string
	note := func(pattern string) {
		t.Helper()
		v := strings.TrimSpace(run(t, filepath.Join(dir, "packaging/version.sh")))
		if !regexp.MustCompile("^" + pattern + "$").MatchString(v) {
			t.Errorf("version %q, want %s", v, pattern)
		}
		versions = append(versions, v)
	}
	note(`0\.0\.0\+1\.g[0-9a-f]{7}`)
	git("commit", "-q", "--allow-empty", "-m", "two")
	note(`0\.0\.0\+2\.g[0-9a-f]{7}`)
	git("tag", "v1.0.0-rc1")
	note(`1\.0\.0~rc1`)
	git("commit", "-q", "--allow-empty", "-m", "three")
	git("tag", "v1.0.0")
	note(`1\.0\.0`)
	git("commit", "-q", "--allow-empty", "-m", "four")
	note(`1\.0\.0\+1\.g[0-9a-f]{7}`)
	git("add", ".")
	change()
	git("add", "f")
	note(`1\.0\.0\+1\.g[0-9a-f]{7}\+dirty`)
	for i := 1; i < len(versions); i++ {
		run(t, "dpkg", "--compare-versions", versions[i-1], "lt", versions[i])
	}
}

// Purge takes the copy of the libvirt hook that an administrator made, or a link to it, and leaves a file of theirs in its place alone.
func TestPurgeTakesTheCopyOfTheHook(t *testing.T) {
	netnstest.Need(t, netnstest.Tool("unshare"))
	const hook = "/etc/libvirt/hooks/qemu.d/rscctl"
	doc, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	recipe := regexp.MustCompile(`(?m)^.*/usr/share/rscctl/libvirt/qemu ` + hook).FindString(string(doc))
	if recipe == "" {
		t.Fatal("operations.md does not say how the hook is put into its place")
	}
	recipe = strings.ReplaceAll(recipe, "/usr/share/rscctl/", "")
	for put, left := range map[string]string{
		recipe + " && [ ! -L " + hook + " ]":                     "", // AppArmor judges a link by where it leads
		"cp libvirt/qemu " + hook + "; echo exec mine >>" + hook: hook,
		"ln -s /usr/share/rscctl/libvirt/qemu " + hook:           "",
		"ln -s /usr/local/bin/other " + hook:                     hook,
		"touch " + hook:                                          hook,
		"true":                                                   "",
	} {
		script := "set -e; for d in /etc /run /var/lib /sys/fs/bpf; do mount -t tmpfs tmpfs $d; done; mkdir -p /etc/libvirt/hooks/qemu.d; " + put + "; " +
			"DPKG_MAINTSCRIPT_PACKAGE=rscctl sh scripts/postrm purge; find /etc/libvirt -name rscctl"
		if got := strings.TrimSpace(run(t, "unshare", "--mount", "sh", "-c", script)); got != left {
			t.Errorf("after %q purge leaves %q, want %q", put, got, left)
		}
	}
}

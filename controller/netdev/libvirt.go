package netdev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
)

// ErrLibvirt is returned when libvirt cannot be asked, or does not know what it is asked for.
var ErrLibvirt = errors.New("libvirt does not tell")

// libvirtWait is how long virsh may take: a libvirtd that hangs must not hold up the controller.
const libvirtWait = 3 * time.Second

// maxDomain bounds a domain's name, in bytes.
const maxDomain = 256

// DomainTap asks libvirt, by a read-only run of virsh, which tap of a running domain has the address. The caller's
// environment says which libvirt (LIBVIRT_DEFAULT_URI); without it root's is qemu:///system.
func DomainTap(ctx context.Context, domain string, mac net.HardwareAddr) (string, error) {
	if domain == "" || len(domain) > maxDomain || strings.ContainsAny(domain, "\x00\n") {
		return "", fmt.Errorf("domain %q: %w: it is no name: give the one that 'virsh list' shows", domain, ErrLibvirt)
	}
	virsh, err := exec.LookPath("virsh")
	if err != nil {
		return "", fmt.Errorf("domain %s: %w: there is no virsh here: install libvirt's clients, or name the tap alone", domain, ErrLibvirt)
	}
	ctx, cancel := context.WithTimeout(ctx, libvirtWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, virsh, "--readonly", "--quiet", "domiflist", "--domain", domain)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second // a child of virsh may hold its output open
	var failed *exec.ExitError
	switch out, err := cmd.Output(); {
	case ctx.Err() != nil:
		return "", fmt.Errorf("domain %s: %w: no answer from virsh in %v: see 'systemctl status libvirtd'", domain, ErrLibvirt, libvirtWait)
	case errors.As(err, &failed):
		return "", fmt.Errorf("domain %s: %w: %s: see 'virsh list' and 'systemctl status libvirtd', or name the tap with --tap", domain, ErrLibvirt, firstLine(failed.Stderr))
	case err != nil:
		return "", fmt.Errorf("domain %s: %w: %v: name the tap with --tap", domain, ErrLibvirt, err)
	default:
		return tapOf(domain, string(out), mac)
	}
}

// tapOf finds the row of an address in what domiflist prints: interface, type, source, model, MAC. A source may have
// spaces; an interface that does not run is "-".
func tapOf(domain, list string, mac net.HardwareAddr) (string, error) {
	var others []string
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		addr, err := net.ParseMAC(f[len(f)-1])
		switch {
		case err != nil: // the title
		case addr.String() != mac.String():
			others = append(others, addr.String())
		case !validName(f[0]) || f[0] == "-":
			return "", fmt.Errorf("domain %s: %w: its interface %s has no tap now: start the domain", domain, ErrLibvirt, mac)
		default:
			return f[0], nil
		}
	}
	if len(others) == 0 {
		return "", fmt.Errorf("domain %s: %w: it has no interface", domain, ErrLibvirt)
	}
	return "", fmt.Errorf("domain %s: %w: it has no interface %s, it has %s: see 'virsh domiflist %s'", domain, ErrLibvirt, mac, strings.Join(others, ", "), domain)
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if line == "" {
		return "virsh failed without a word"
	}
	return strings.TrimPrefix(line, "error: ")
}

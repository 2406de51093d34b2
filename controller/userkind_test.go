package controller

import (
	"errors"
	"os/user"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/vhost"
)

// Where libvirt is, a socket belongs by default to whom it runs QEMU as.
func TestASocketIsForWhomLibvirtRunsQEMUAs(t *testing.T) {
	for _, c := range []struct {
		users, groups string
		words         string
		uid, gid      int
	}{
		{"libvirt-qemu=64055", "kvm=106", "libvirt-qemu:kvm", 64055, 106},
		{"libvirt-qemu=64055 qemu=107", "kvm=106 qemu=107", "libvirt-qemu:kvm", 64055, 106},
		{"qemu=107", "kvm=36 qemu=107", "qemu:qemu", 107, 107},
		{"libvirt-qemu=64055", "", "libvirt-qemu", 64055, -1},
		{"somebody=1000", "kvm=106", "", -1, -1},
	} {
		id := func(list, name string) (string, error) {
			for _, e := range strings.Fields(list) {
				if n, id, _ := strings.Cut(e, "="); n == name {
					return id, nil
				}
			}
			return "", errors.New("unknown")
		}
		words, uid, gid := libvirtOwner(
			func(n string) (*user.User, error) { s, err := id(c.users, n); return &user.User{Uid: s}, err },
			func(n string) (*user.Group, error) { s, err := id(c.groups, n); return &user.Group{Gid: s}, err })
		if words != c.words || uid != c.uid || gid != c.gid {
			t.Errorf("%s: %s %d:%d, want %s %d:%d", c.users, words, uid, gid, c.words, c.uid, c.gid)
		}
	}
}

// Each error of a socket says what to do about it.
func TestEveryErrorOfASocketHasItsRemedy(t *testing.T) {
	for err, want := range map[error]string{
		vhost.ErrNoFolder: "make it", vhost.ErrNotSocket: "remove it", vhost.ErrSocketInUse: "--connect", vhost.ErrPathTooLong: "shorter", vhost.ErrConfig: "path of a file",
	} {
		if got := withRemedy(err); !errors.Is(got, err) || !strings.Contains(got.Error(), want) {
			t.Errorf("%v", got)
		}
	}
}

// libvirt's names are taken; what breaks a line, or what a command line takes for a flag, is not.
func TestNamesOfVMs(t *testing.T) {
	c := offHost(t, t.TempDir())
	c.kinds = builtinKinds()
	for name, ok := range map[string]bool{
		"web1": true, "web 1": true, "Windows 11 (test)+2": true, "büro-1": true, "テスト": true, "a": true, "100": true, "win2k22@lab": true, "(x)": true, strings.Repeat("x", 64): true,
		"": false, " a": false, "a ": false, "-a": false, "--vm": false, "a\nb": false, "a\tb": false, "a/b": false, "a'b": false, `a"b`: false, "a;b": false, "$a": false, "a\x00": false,
		"a\u202eb": false, "a\u00a0b": false, "\xff": false, strings.Repeat("x", 65): false, strings.Repeat("ü", 33): false,
	} {
		_, err := c.checkRequest(api.AttachRequest{Iface: "eth0", VM: name, MAC: "52:54:00:00:00:01", Tap: "vnet0"})
		if (err == nil) != ok || err != nil && !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

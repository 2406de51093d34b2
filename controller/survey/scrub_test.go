package survey

import (
	"strings"
	"testing"
)

// Whatever form an address, a UUID, a name or a path has, and whatever stands around it, nothing of it is left.
func TestNothingThatTellsWhoseMachineItIsStays(t *testing.T) {
	s := NewScrubber(map[string]string{
		"hv7": "HOST", "hv7.example.net": "HOST", "alice": "USER", "enp3s0f1": "nic0", "enp3s0f1np1": "nic1", "shop db": "VM", "web": "VM", "web-1": "VM", "Straße9": "VM", "/sys/fs/bpf/shop": "BPFFS",
	})
	for _, secret := range []string{
		"192.0.2.77", "10.0.0.1:443", "192.0.2.0/24", "0192.0.2.77",
		"2001:db8::77", "2001:DB8:0:0:1:2:3:4", "2001:db8:12:34:56:78:9a:bc", "fe80::5054:ff:fe12:3456%enp3s0f1", "[2001:db8::77]:443", "::ffff:192.0.2.77", "2001:db8:1:2:3:4:5:6:443", "::77",
		"52:54:00:5e:c2:e7", "52-54-00-5E-C2-E7", "5254.005e.c2e7", "5254005ec2e7", "52:54:0:5e:c2:e7", "enx5254005ec2e7", "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:5e:c2:e7",
		"6f1c7a52-8b1e-4c55-9d3a-0b6f5ec2e777", "6F1C7A52-8B1E-4C55-9D3A-0B6F5EC2E777", "6f1c7a528b1e4c559d3a0b6f5ec2e777",
		"/home/alice/vms/web.img", "/root/x", "~/shop", "~alice/shop", "/srv/shop/disk", "/run/libvirt/qemu/shop.sock", "/var/lib/libvirt/shop",
		"hv7", "HV7", "hv7.example.net", "alice", "enp3s0f1", "enp3s0f1np1", "enp3s0f1.100", "shop db", "web", "web-1", "Straße9", "/sys/fs/bpf/shop",
	} {
		for _, around := range []string{"%", "a % b", "(%)", "\"%\"", "'%'", "x=%, y", "address %.", "of %: gone", "tap-% up", "%/64", "addr:%", "on %;\nnext", "`%`"} {
			if strings.HasPrefix(secret, "/") || strings.HasPrefix(secret, "~") {
				if strings.HasPrefix(around, "tap-") || strings.HasSuffix(around, "/64") {
					continue
				}
			}
			text := strings.ReplaceAll(around, "%", secret)
			got := s.Text(text)
			for _, tell := range []string{"77", "5ec2", "5e:", "5e-", "5E-", "005e", "shop", "alice", "hv7", "HV7", "enp3s0", "web", "db8", "DB8", "192", "Stra"} {
				if strings.Contains(secret, tell) && strings.Contains(got, tell) {
					t.Errorf("%q became %q: %q is left", text, got, tell)
				}
			}
			if got == text {
				t.Errorf("%q stays as it is", text)
			}
		}
	}
}

// Forms of names that no list has: of mail, of hosts elsewhere, of what lies below a folder of the system.
func TestNamesThatNobodyListedAreKnownByTheirForm(t *testing.T) {
	s := NewScrubber(nil)
	for _, secret := range []string{
		"/etc/libvirt/qemu/acme-db.xml", "/dev/mapper/acme-vg", "/dev/disk/by-id/ata-ACME", "/usr/local/acme", "/usr/bin/acme", "/run/netns/acme", "/proc/1/root/home/acme", "/boot/vmlinuz-acme",
		"/sys/class/net/acme0", "/sys/fs/bpf/acme", "/dev/kvm/../acme", "-/home/acme", "acme@acme.com", "acme@acme", "acme.example.com", "db.acme.de", "ACME.LOCAL", "https://acme.io/x",
		"acme:5254:00ff:fe12:3456", "5254:00ff:fe12:acme",
	} {
		for _, around := range []string{"%", "a % b", "(%)", "'%'", "x=%, y", "of %: gone", "it is %."} {
			text := strings.ReplaceAll(around, "%", secret)
			got := s.Text(text)
			for _, tell := range []string{"acme", "3456", "00ff"} {
				if strings.Contains(secret, ":") && tell == "acme" && !strings.HasPrefix(secret, "https") { // beside the address
					continue
				}
				if strings.Contains(strings.ToLower(secret), tell) && strings.Contains(strings.ToLower(got), tell) {
					t.Errorf("%q became %q: %q is left", text, got, tell)
				}
			}
		}
	}
}

// What is no secret can still be read.
func TestTheRestStaysAsItIs(t *testing.T) {
	s := NewScrubber(map[string]string{"debian": "HOST", "root": "USER", "100": "VM", "web": "VM", "": "VM"})
	for _, text := range []string{
		"Linux 6.1.0-25-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.106-3 (2024-08-26)", "5.15.0-91-generic Ubuntu 5.15.131", "Intel(R) Xeon(R) CPU @ 2.20GHz, 100 CPUs", "at 12:34:56", "on / off: 2.41 times",
		"mount -t bpf bpf /sys/fs/bpf, or name another place with --bpffs", "/dev/kvm is there", "/run/rscctl and /var/lib/rscctl", "v0.0.0-20261129101112-abcdef123456", "webs of cobweb", "0.0325 s/GB", "a: b: c", "GNU/Linux",
		"6.18.0", "5.14.0-427.13.1.el9_4.x86_64", "at 12:34:56: gone", "0000:03:00.0", "virtio_net", "libbpf.so.1", "/proc/sys/net/core/bpf_jit_enable is 1", "/sys/class/net/nic0/queues", "ip netns lists /run/netns.",
		"'ethtool -K nic0 lro off'", "rscctl attach nic0 --vm VM --mac ADDRESS --vhost-user PATH", "/usr/libexec/qemu-kvm", "/sys/kernel/btf/vmlinux: it is not there", "net.core.bpf_jit_enable=1",
	} {
		if got := s.Text(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func FuzzScrubber(f *testing.F) {
	f.Add("a 52:54:00:5e:c2:e7 b", "web")
	f.Add("/home/x", "Straße9")
	f.Fuzz(func(t *testing.T, text, name string) {
		s := NewScrubber(map[string]string{name: "VM"})
		once := s.Text(text + " 192.0.2.77 52:54:00:5e:c2:e7 2001:db8::5ec2")
		for _, tell := range []string{"192.0.2.77", "5e:c2:e7", "db8::5ec2"} {
			if strings.Contains(once, tell) {
				t.Errorf("%q is left in %q", tell, once)
			}
		}
	})
}

package apply

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// Every field of the file can be set from text, but for the way to the VM and where its policy stands.
func TestEveryFieldCanBeSetFromText(t *testing.T) {
	values := map[string]string{
		"name": "null", "iface": "eth1", "mac": "52:54:00:12:34:56", "vlan": "7", "mtu": "1500", "socket-owner": "0:0", "socket-mode": "0600", "bypass-filters": "true",
		"trust-tap": "on", "allow-spoof": "yes", "isolate": "true", "any-memory": "true", "fix-offloads": "true", "coalesce": "off", "ipv4": "off",
		"ipv6": "false", "udp": "no", "host": "off", "profile": "rsc", "hold": "20us", "max-bytes": "9000", "max-segments": "4", "exclude-ports": "22 443", "macs": "52:54:00:12:34:57", "ips": "10.0.0.5, 2001:db8::/64", "rate-tx": "100Mbit", "rate-rx": "1.5Gbit/256KiB", "xsk-map": "/sys/fs/bpf/xsks", "queue": "0,1",
	}
	var vm VM
	for name, value := range values {
		if err := vm.Set(name, value); err != nil {
			t.Errorf("%s=%q: %v", name, value, err)
		}
	}
	ways := []string{"vhost-user", "connect", "tap", "domain", "policy", ""}
	for _, v := range []reflect.Value{reflect.ValueOf(vm), reflect.ValueOf(vm.Policy)} {
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			if name == "isolate" && v.Type() == reflect.TypeFor[Policy]() {
				continue // it is the VM's that is set
			}
			if _, tried := values[name]; tried == slices.Contains(ways, name) {
				t.Errorf("%s: set from text: %t", name, tried)
			} else if tried && v.Field(i).IsZero() {
				t.Errorf("%s was set, and is not", name)
			}
		}
	}
	if vm.Name != "null" || vm.SocketMode != "0600" || *vm.Policy.Coalesce || vm.Policy.Hold.Longest != 20*time.Microsecond || !slices.Equal(*vm.Policy.ExcludePorts, []uint16{22, 443}) ||
		!slices.Equal(*vm.IPs, []string{"10.0.0.5", "2001:db8::/64"}) {
		t.Errorf("%+v %+v", vm, vm.Policy)
	}
}

func TestWrongTextSetsNothing(t *testing.T) {
	for _, f := range [][2]string{
		{"vlan", "many"}, {"vlan", ""}, {"hold", "soon"}, {"coalesce", "maybe"}, {"exclude-ports", "ssh"}, {"exclude-ports", "70000"}, {"max-bytes", "[1]"},
		{"tap", "vnet0"}, {"vhost-user", "/s"}, {"policy", "{}"}, {"colour", "red"},
	} {
		var vm VM
		if err := vm.Set(f[0], f[1]); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), f[0]) {
			t.Errorf("%s=%q: %v", f[0], f[1], err)
		}
	}
}

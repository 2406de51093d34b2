package survey

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/doctor"
	"github.com/rscctl/rscctl/controller/netdev"
)

// fill puts a text into every string that a value has room for.
func fill(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), text)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			for i := range v.Len() {
				fill(v.Index(i), text)
			}
		}
	case reflect.String:
		v.SetString(text)
	}
}

// Wherever a secret comes in, through a driver's name, a finding or the demo's failure, it does not go out.
func TestWhateverAFieldHoldsIsScrubbed(t *testing.T) {
	names := map[string]string{"hv77": "HOST", "shopdb": "VM"}
	secrets := []string{"hv77", "shopdb", "192.0.2.77", "2001:db8::77", "52:54:00:5e:c2:e7", "6f1c7a52-8b1e-4c55-9d3a-0b6f5ec2e777", "/home/alice"}
	var r Report
	fill(reflect.ValueOf(&r).Elem(), "x "+strings.Join(secrets, " | "))
	r.Version = "v1.2.3"
	mac, err := net.ParseMAC("52:54:00:5e:c2:e7")
	if err != nil {
		t.Fatal(err)
	}
	r.NICs[0].MAC, r.NICs[0].Peer.Name = mac, "shopdb"
	for i := range r.Findings { // doctor's own words
		r.Findings[i].ID, r.Findings[i].Severity = "iface.mtu", doctor.Error
	}
	for _, demo := range [][]byte{nil, []byte(`{"schema": 2, "kernel": "hv77 of 192.0.2.77", "speedup": 2.41, "runs": [{"why": "hv77", "all": ["at 192.0.2.77", {"by": "/home/alice"}]}]}`)} {
		r.Demo = demo
		var out bytes.Buffer
		if err := r.Write(&out, names); err != nil {
			t.Fatal(err)
		}
		for _, s := range append(secrets, "alice", "77", "5ec2") {
			if at := strings.Index(out.String(), s); at >= 0 {
				t.Errorf("%s is left: %s", s, out.String()[max(0, at-80):at+len(s)])
			}
		}
	}
}

// The findings are what doctor prints as JSON, and the table's cells stay in their columns.
func TestTheReportCanBeRead(t *testing.T) {
	r := Report{Version: "devel abcdef123456", Host: &doctor.Facts{Kernel: doctor.Kernel{Release: "6.1.0"}, QEMU: doctor.Tool{Name: "qemu", Version: doctor.Version{7, 2, 22}}}, NoDemo: "it needs root",
		NICs:     []NIC{{Interface: doctor.Interface{Facts: netdev.Facts{Name: "eth1", Driver: "a|b", Kind: "veth"}}}},
		Findings: []doctor.Finding{{ID: "iface.mtu", Subject: "eth1", Severity: doctor.Error, What: `"MTU" <9000>`}, {ID: "bpffs", Subject: doctor.Host, Severity: doctor.OK}}}
	var out bytes.Buffer
	if err := r.Write(&out, map[string]string{"eth1": "nic0"}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| rscctl | devel abcdef123456 |", "| kernel | 6.1.0 |", "| QEMU | 7.2.22 |", "| libvirt | not found |", "| nic0 | veth a/b |", "it needs root"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	_, text, _ := strings.Cut(out.String(), "```json\n")
	text, _, _ = strings.Cut(text, "```")
	var got doctor.Report
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	if len(got.Findings) != 2 || got.Findings[0].Subject != "nic0" || got.Findings[0].What != `"MTU" <9000>` {
		t.Errorf("%+v", got)
	}
}

// A machine is read from the files that kernels and distributions have, and a missing one is no fault.
func TestAMachineIsReadFromItsFiles(t *testing.T) {
	root := t.TempDir()
	for file, text := range map[string]string{
		"etc/os-release": "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n", "proc/cpuinfo": "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx2 hypervisor vmx\n\nprocessor\t: 1\nmodel name\t: other\n",
		"proc/meminfo": "MemTotal:       16384000 kB\nHugePages_Total:       4\nHugepagesize:       2048 kB\n", "sys/class/dmi/id/sys_vendor": "QEMU\n", "run/.containerenv": "",
		"sys/devices/system/node/node0/x": "", "sys/devices/system/node/node1/x": "",
	} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := machine(root)
	if m.Distribution != "Debian GNU/Linux 12" || m.CPU != "Xeon" || !m.Virtual || !m.Container || m.MemoryMiB != 16000 || m.HugePages != "4 of 2048 kB" || m.Nodes != 2 || m.Vendor != "QEMU" || len(m.Flags) != 2 {
		t.Errorf("%+v", m)
	}
	if m := machine(t.TempDir()); m.CPU != "" || m.MemoryMiB != 0 || m.Virtual || m.Container {
		t.Errorf("of nothing: %+v", m)
	}
}

func TestTheNameOfAVMIsReadFromItsCommandLine(t *testing.T) {
	for line, want := range map[string]string{"qemu -name web": "web", "qemu -m 1 -name guest=web,debug-threads=on": "web", "qemu -name web,process=x": "web", "qemu": "", "qemu -name": ""} {
		if got := guestName(strings.Fields(line)); got != want {
			t.Errorf("%s: %q", line, got)
		}
	}
}

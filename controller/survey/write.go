package survey

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/doctor"
)

// head is for who reads the file before he sends it.
const head = `# rscctl report

What 'rscctl report' saw of a machine. Read it before you send it: there should be no MAC or IP address in it, no name of a host, user, VM
or interface, no serial number and no path of yours. Where one stood, it says ADDRESS, IDENTIFIER, HOST, USER, VM, PATH, nic0 or the like.
The suffix of a kernel of your own and the name of somebody's XDP program are not known to be names: look for them.

`

// Write lays the report out as Markdown. names are those that this machine has for things: see Names.
func (r *Report) Write(w io.Writer, names map[string]string) error {
	s := NewScrubber(names)
	var b strings.Builder
	b.WriteString(head)
	r.table(&b, s)
	r.nics(&b, s)
	b.WriteString("\n## doctor\n\n```json\n")
	if err := r.doctor(&b, s); err != nil {
		return err
	}
	b.WriteString("```\n\n## Speed\n\n")
	fmt.Fprintf(&b, "One processor copies the %d bytes of a segment in %.0f ns out of memory that no cache has, and sums them in %.0f ns.\n", payload, r.Speed.CopyNS, r.Speed.SumNS)
	if r.Demo == nil {
		fmt.Fprintf(&b, "\nThe demo did not run: %s.\n", s.Text(r.NoDemo))
	} else {
		text, err := measured(r.Demo, s)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "\nWhat `rscctl demo` measured, in short:\n\n```json\n%s\n```\n", text)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// table is the machine.
func (r *Report) table(b *strings.Builder, s *Scrubber) {
	m, h := &r.Machine, r.Host
	b.WriteString("| of the machine | |\n|---|---|\n")
	row := func(name, format string, args ...any) {
		text := strings.Trim(s.Text(fmt.Sprintf(format, args...)), " ,")
		if text == "" {
			text = "not told"
		}
		fmt.Fprintf(b, "| %s | %s |\n", name, cell(text))
	}
	tool := func(name string, t doctor.Tool) {
		if t.Name == "" {
			row(name, "not found")
			return
		}
		row(name, "%s", t.Version)
	}
	fmt.Fprintf(b, "| rscctl | %s |\n", cell(r.Version)) // ours: a commit looks like an identifier
	row("kernel", "%s %s", h.Kernel.Release, h.Kernel.Build)
	row("distribution", "%s", m.Distribution)
	row("processor", "%d of %s, %s, %s", m.CPUs, m.CPU, m.Arch, strings.Join(m.Flags, " "))
	row("frequency governor", "%s", m.Governor)
	row("memory", "%d MiB on %d nodes; huge pages: %s", m.MemoryMiB, max(m.Nodes, 1), m.HugePages)
	row("below a hypervisor", "%s", yesNo(m.Virtual))
	row("made by", "%s", m.Vendor)
	row("in a container", "%s", yesNo(m.Container))
	row("BPF JIT", "%s", m.JIT)
	row("root", "%s", yesNo(h.Root))
	row("/dev/kvm, /dev/vhost-net, /dev/net/tun", "%s, %s, %s", yesNo(h.KVM), yesNo(h.VhostNet), yesNo(h.Tun))
	tool("QEMU", h.QEMU)
	tool("libvirt", h.Libvirt)
	row("VMs that run", "%d", r.VMs)
}

// nics are the interfaces, a column each figure.
func (r *Report) nics(b *strings.Builder, s *Scrubber) {
	b.WriteString("\n| interface | driver | PCI | link, Mbit/s | MTU | RX queues, of | TX | native XDP | zero-copy | XDP on it | GRO | LRO | GRO-HW | RX VLAN | TSO |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for i := range r.NICs {
		n := &r.NICs[i]
		link := "down"
		if n.Up && n.Running {
			link = "up " + n.Speed
		}
		native, zero := "not told", "not told"
		if n.Features != nil {
			native, zero = yesNo(n.Features.Native()), yesNo(n.Features.ZeroCopy())
		}
		cells := []string{n.Name, strings.TrimSpace(n.Kind + " " + n.Driver), n.PCI, link, fmt.Sprint(n.MTU), fmt.Sprintf("%d, %d", n.RxQueues, n.MaxRxQueues), fmt.Sprint(n.TxQueues),
			native, zero, n.XDP.Mode, n.GRO, onOff(n.LRO), onOff(n.GROHW), onOff(n.RxVLAN), n.TSO}
		for k := range cells {
			cells[k] = cell(s.Text(cells[k]))
		}
		fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
	}
}

// doctor are the findings as 'rscctl doctor -o json' prints them, a line each.
func (r *Report) doctor(b *strings.Builder, s *Scrubber) error {
	fmt.Fprintf(b, "{\"schema\": %d, \"findings\": [", api.Schema)
	enc := json.NewEncoder(b) // which ends a line itself
	enc.SetEscapeHTML(false)
	for i, f := range r.Findings {
		f.What, f.Why, f.Remedy = s.Text(f.What), s.Text(f.Why), s.Text(f.Remedy)
		if f.Subject != doctor.Host {
			f.Subject = s.Text(f.Subject)
		}
		b.WriteString([]string{"\n ", ","}[min(i, 1)])
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	b.WriteString("]}\n")
	return nil
}

// measured is the demo's JSON, whose texts are few.
func measured(demo []byte, s *Scrubber) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(demo))
	d.UseNumber() // as it was printed
	var result map[string]any
	if err := d.Decode(&result); err != nil {
		return nil, fmt.Errorf("what the demo printed: %w", err)
	}
	return json.MarshalIndent(scrubbed(result, s), "", " ")
}

// scrubbed is a JSON value with all its texts scrubbed, in place. The names of fields are ours.
func scrubbed(v any, s *Scrubber) any {
	switch v := v.(type) {
	case string:
		return s.Text(v)
	case map[string]any:
		for key := range v {
			v[key] = scrubbed(v[key], s)
		}
	case []any:
		for i := range v {
			v[i] = scrubbed(v[i], s)
		}
	}
	return v
}

// cell is a text in a table.
func cell(text string) string {
	return strings.NewReplacer("|", "/", "\n", " ", "\r", " ").Replace(text)
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

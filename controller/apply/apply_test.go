package apply

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rscctl/rscctl/controller/api"
)

var defaults = api.Policy{Coalesce: true, IPv4: true, IPv6: true, Profile: api.ProfileGRO, HoldNS: 50000, MaxBytes: 65535, ExcludePorts: []uint16{}}

// host is a controller that keeps what it is told, and refuses VMs on interfaces that it does not have.
type host struct {
	defaults *api.Policy
	vms      []api.AttachRequest
	log      []string
	refuse   map[string]bool // by interface
	waiting  []string
	halfway  error // what Detach says after it has taken the VM off
	stuck    error // what it says when it has not
}

var errRefused = errors.New("refused")

func (h *host) config() *api.Config {
	c := &api.Config{VMs: slices.Clone(h.vms), Waiting: h.waiting, DefaultPolicy: defaults}
	if h.defaults != nil {
		c.DefaultPolicy = *h.defaults
	}
	return c
}

func (h *host) Attach(ctx context.Context, r api.AttachRequest) (*api.AttachResponse, error) {
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case slices.ContainsFunc(h.vms, func(v api.AttachRequest) bool {
		return v.VM == r.VM && (!r.DryRun || v.Iface != r.Iface || v.MAC != r.MAC) // attached again in another way it would be changed
	}):
		return nil, api.ErrTaken
	case h.refuse[r.Iface]:
		return nil, errRefused
	}
	if r.DryRun {
		return &api.AttachResponse{Warnings: []string{"dry"}}, nil
	}
	h.log = append(h.log, "attach "+r.VM)
	h.vms = append(h.vms, r)
	return &api.AttachResponse{}, nil
}

func (h *host) Detach(_ context.Context, r api.DetachRequest) (*api.DetachResponse, error) {
	if h.stuck != nil {
		return nil, h.stuck
	}
	n := len(h.vms)
	if h.vms = slices.DeleteFunc(h.vms, func(v api.AttachRequest) bool { return v.VM == r.VM && v.Iface == r.Iface }); len(h.vms) == n {
		return nil, api.ErrUnknownVM
	}
	h.log = append(h.log, "detach "+r.VM)
	if h.halfway != nil {
		return nil, h.halfway
	}
	return &api.DetachResponse{}, nil
}

func (h *host) SetPolicy(_ context.Context, r api.PolicyRequest) (*api.PolicyResponse, error) {
	if r.Default {
		p := r.Patch.Over(h.config().DefaultPolicy)
		h.defaults, h.log = &p, append(h.log, "default policy")
		return &api.PolicyResponse{}, nil
	}
	h.log = append(h.log, "policy "+r.VM)
	for i := range h.vms {
		if h.vms[i].VM == r.VM {
			h.vms[i].Policy = r.Patch
		}
	}
	return &api.PolicyResponse{}, nil
}

func read(t *testing.T, text string) *File {
	t.Helper()
	f, err := Read(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// run carries a file out, and returns what was done.
func (h *host) run(t *testing.T, f *File, prune bool) (done []string, failed error) {
	t.Helper()
	h.log = nil
	for _, s := range Plan(f, h.config(), prune) {
		if _, err := s.Do(t.Context(), h); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", s.VM, err))
		}
	}
	return h.log, failed
}

const described = `
version: 1
vms:
- {name: web, iface: eth0, mac: "52:54:00:12:34:56", vhost-user: /run/web.sock, policy: {hold: 20us}}
- {name: db, iface: eth0, mac: "52-54-00-12-34-57", vlan: 100, tap: vnet3}
`

// A file is carried out once; the second time there is nothing to do. Policies change in place, all else by attaching again; what
// the file does not name is left alone unless it is pruned, and goes first, because it may have what another one needs.
func TestAFileIsCarriedOutAndThenThereIsNothingToDo(t *testing.T) {
	h := &host{vms: []api.AttachRequest{{VM: "old", Iface: "eth0", MAC: "52:54:00:12:34:57", VLAN: 100, Tap: "vnet3"}}}
	for _, step := range []struct {
		text  string
		prune bool
		want  string
	}{
		{described, true, "[detach old attach web attach db]"},
		{described, true, "[]"},
		{strings.Replace(described, "hold: 20us", "hold: 0s, exclude-ports: [53, 22, 22]", 1), false, "[policy web]"},
		{strings.Replace(described, "hold: 20us", "hold: 0s, exclude-ports: [22, 53]", 1), false, "[]"},
		{strings.Replace(described, ", policy: {hold: 20us}", "", 1), false, "[policy web]"}, // what is not said is the default
		{strings.Replace(described, "/run/web.sock", "/run/other.sock, isolate: true", 1), false, "[detach web attach web]"},
		{strings.Replace(described, "tap: vnet3", "tap: vnet9, trust-tap: true", 1), false, "[detach web attach web]"}, // vnet9 is where the VM may be found: no change
		{"version: 1\nvms: []", false, "[]"},
		{"version: 1\nvms: []", true, "[detach db detach web]"},
	} {
		done, err := h.run(t, read(t, step.text), step.prune)
		if err != nil || fmt.Sprint(done) != step.want {
			t.Errorf("%s: did %v, want %s: %v", step.text, done, step.want, err)
		}
	}
}

// What a change says is what changes; a VM that cannot be as described is as it was, and the others are done all the same.
func TestAVMThatCannotBeAsDescribedIsAsItWas(t *testing.T) {
	h := &host{refuse: map[string]bool{"nosuch0": true}}
	if _, err := h.run(t, read(t, described), false); err != nil {
		t.Fatal(err)
	}
	before := h.vms[0]
	f := read(t, strings.Replace(described, "{name: web, iface: eth0", "{name: web, iface: nosuch0", 1)+"- {name: new, iface: nosuch0, mac: \"52:54:00:12:34:58\", tap: t}\n- {name: good, iface: eth1, mac: \"52:54:00:12:34:58\", tap: u}\n")
	plan := Plan(f, h.config(), false)
	if len(plan) != 3 || plan[0].String() != "change web, whose link goes down for a moment: iface: eth0 -> nosuch0" || plan[1].String() != "attach new to nosuch0" {
		t.Fatalf("%v", plan)
	}
	if _, err := plan[0].Try(t.Context(), h); err != nil {
		t.Errorf("of a VM that moves nothing can be asked: %v", err)
	}
	if _, err := plan[1].Try(t.Context(), h); !errors.Is(err, errRefused) {
		t.Errorf("tried: %v", err)
	}
	if w, err := plan[2].Try(t.Context(), h); err != nil || len(w) != 1 || len(h.vms) != 2 {
		t.Errorf("tried: %v %v, %d VMs", w, err, len(h.vms))
	}
	done, err := h.run(t, f, false)
	if fmt.Sprint(done) != "[detach web attach web attach good]" || !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "it is attached as it was") {
		t.Errorf("did %v: %v", done, err)
	}
	if i := slices.IndexFunc(h.vms, func(v api.AttachRequest) bool { return v.VM == "web" }); i < 0 || h.vms[i].Iface != before.Iface || *h.vms[i].Policy.HoldNS != *before.Policy.HoldNS {
		t.Errorf("%+v", h.vms)
	}
	h.refuse["eth0"] = true
	if _, err = h.run(t, f, false); !strings.Contains(err.Error(), "not attached as it was") {
		t.Errorf("lost without a word: %v", err)
	}
}

// A VM is never lost by a change: not when the operator gives up in the middle, not when the detach fails half-way, not when it waits
// and could not be attached in either form.
func TestNoVMIsLostByAChange(t *testing.T) {
	other := read(t, strings.Replace(described, "/run/web.sock", "/run/other.sock", 1))
	has := func(h *host, socket string) bool {
		return slices.ContainsFunc(h.vms, func(v api.AttachRequest) bool { return v.VM == "web" && v.VhostUser == socket })
	}
	failure := errors.New("offloads: not put back")
	for name, c := range map[string]struct {
		edit   func(h *host)
		cancel bool
		socket string
		err    error
	}{
		"given up":         {func(*host) {}, true, "/run/other.sock", nil},
		"detached halfway": {func(h *host) { h.halfway = failure }, false, "/run/other.sock", nil},
		"not detached":     {func(h *host) { h.stuck = failure }, false, "/run/web.sock", failure},
		"halfway, refused": {func(h *host) { h.halfway, h.refuse = failure, map[string]bool{"eth0": true} }, false, "", errRefused},
		"waits":            {func(h *host) { h.waiting = []string{"web"} }, false, "/run/web.sock", ErrWaits},
	} {
		h := &host{}
		if _, err := h.run(t, read(t, described), false); err != nil {
			t.Fatal(err)
		}
		c.edit(h)
		ctx, cancel := context.WithCancel(t.Context())
		if c.cancel {
			cancel()
		}
		plan := Plan(other, h.config(), false)
		if len(plan) != 1 {
			t.Fatalf("%s: %v", name, plan)
		}
		_, err := plan[0].Do(ctx, h)
		cancel()
		if !errors.Is(err, c.err) || c.socket != "" && !has(h, c.socket) {
			t.Errorf("%s: %v, %+v", name, err, h.vms)
		}
		if _, err := plan[0].Try(t.Context(), h); (err != nil) != (c.err == ErrWaits || c.err == errRefused) {
			t.Errorf("%s: tried: %v", name, err)
		}
	}
}

// What is exported describes what there is: read again, there is nothing to do. Defaults are not in it.
func TestWhatIsExportedIsWhatThereIs(t *testing.T) {
	h := &host{}
	all := `
version: 1
vms:
- name: a
  iface: eth1
  mac: 52:54:00:00:00:01
  vlan: 7
  vhost-user: /run/a.sock
  connect: true
  mtu: 1500
  allow-spoof: true
  isolate: true
  any-memory: true
  fix-offloads: true
  socket-mode: "0600"
  socket-owner: q:kvm
  policy: {coalesce: false, ipv4: false, ipv6: false, profile: rsc, hold: 1ms, max-bytes: 9000, max-segments: 7, exclude-ports: [1, 2]}
- {name: b, iface: eth0, mac: "52:54:00:00:00:02", tap: vnet1, trust-tap: true, bypass-filters: true}
- {name: c, iface: eth0, mac: "52:54:00:00:00:03", domain: c}
`
	if _, err := h.run(t, read(t, all), false); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := Export(h.config()).Write(&text); err != nil {
		t.Fatal(err)
	}
	f, err := Read(&text)
	if err != nil {
		t.Fatalf("%v\n%s", err, &text)
	}
	var asJSON bytes.Buffer
	if err := Export(h.config()).WriteJSON(&asJSON); err != nil || !json.Valid(asJSON.Bytes()) {
		t.Fatalf("%v\n%s", err, &asJSON)
	}
	if g, err := Read(&asJSON); err != nil || !reflect.DeepEqual(f, g) {
		t.Fatalf("JSON differs: %v\n%+v\n%+v", err, f, g)
	}
	if done, err := h.run(t, f, true); err != nil || len(done) > 0 {
		t.Errorf("did %v: %v", done, err)
	}
	want := read(t, all).VMs
	for i, v := range f.VMs { // by interface and name
		other := want[[]int{1, 2, 0}[i]]
		if a, b := fmt.Sprintf("%+v", v.request(defaults)), fmt.Sprintf("%+v", other.request(defaults)); v.Name != other.Name || len(a) != len(b) {
			t.Errorf("%s\n%s", a, b)
		}
	}
	if f.VMs[0].Policy != (Policy{}) {
		t.Errorf("defaults are written: %+v", f.VMs[0].Policy)
	}
}

// A default policy that is not the product's goes with the file: elsewhere the VMs get what they had.
func TestADefaultPolicyGoesWithTheFile(t *testing.T) {
	const text = "version: 1\ndefault-policy: {hold: 10us, exclude-ports: [22]}\nvms:\n- {name: a, iface: eth0, mac: \"52:54:00:00:00:01\", tap: t}\n"
	h := &host{}
	if done, err := h.run(t, read(t, text), false); err != nil || fmt.Sprint(done) != "[default policy attach a]" {
		t.Fatalf("did %v: %v", done, err)
	}
	var out bytes.Buffer
	if err := Export(h.config()).Write(&out); err != nil {
		t.Fatal(err)
	}
	other := &host{}
	if _, err := other.run(t, read(t, out.String()), false); err != nil || *other.vms[0].Policy.HoldNS != 10000 || other.defaults == nil {
		t.Errorf("%v, %+v from\n%s", err, other.vms, &out)
	}
	for _, again := range []string{text, out.String(), strings.Replace(text, "default-policy: {hold: 10us, exclude-ports: [22]}\n", "", 1)} { // what is not said stays
		if done, err := other.run(t, read(t, again), false); err != nil || len(done) > 0 {
			t.Errorf("did %v: %v", done, err)
		}
	}
	if done, _ := other.run(t, read(t, strings.Replace(text, "{hold: 10us, exclude-ports: [22]}", "{}", 1)), false); fmt.Sprint(done) != "[default policy policy a]" {
		t.Errorf("did %v", done)
	}
}

// Files that are cut, say something twice, or contradict themselves are refused by one line that names the place.
func TestWrongFilesAreRefused(t *testing.T) {
	const vm = `{name: a, iface: e, mac: "52:54:00:00:00:01", tap: t`
	for text, word := range map[string]string{
		"":                               "empty",
		"version: 2\nvms: []":            "version 2",
		"vms: []":                        "version 0",
		"version: 1\nvms: [":             "line",
		"version: 1\nbogus: 1":           "bogus",
		"version: 1\nvms: []\n---\na: 1": "follows",
		"version: 1\nvms: [{iface: e}]":  "place 1",
		"version: 1\nvms: [" + vm + "}, " + vm + "}]":                                           "VM a is described twice",
		"version: 1\nvms: [" + vm + "}, " + strings.Replace(vm, "name: a", "name: b", 1) + "}]": "VMs a and b: both have",
		"version: 1\nvms: [" + vm + ", vhost-user: /s}]":                                        "one of them",
		"version: 1\nvms: [" + strings.Replace(vm, ", tap: t", "", 1) + "}]":                    "one of vhost-user",
		"version: 1\nvms: [" + strings.Replace(vm, "52:54:00:00:00:01", "52:54", 1) + "}]":      "six bytes",
		"version: 1\nvms: [" + vm + ", vlan: 4095}]":                                            "1 to 4094",
		"version: 1\nvms: [" + vm + ", vlan: many}]":                                            "many",
		"version: 1\nvms: [" + vm + ", policy: {hold: soon}}]":                                  "soon",
		"version: 1\nvms: [" + vm + ", policy: {hold: -1us}}]":                                  "0 to 10ms",
		"version: 1\nvms: [" + vm + ", policy: {hold: 11ms}}]":                                  "VM a: hold 11ms: use 0 to 10ms",
		"version: 1\nvms: [" + vm + ", policy: {hold: 50}}]":                                    "line 2: hold: 50: not a duration: say for example 50us",
		"version: 1\nvms: [" + vm + ", policy: {max-bytes: 1}}]":                                "1500 to 65535",
		"version: 1\nvms: [" + vm + ", policy: {exclude-ports: 22}}]":                           "line 2: 22: wrong value: say a list of TCP ports, such as [22, 443]",
		"version: 1\nvms: [" + vm + ", isolated: true}]":                                        "line 2: isolated: no such name: did you mean isolate? say one of name, iface,",
		"version: 1\nvms: [" + vm + ", nosuch: 1}]":                                             "xsk-map, queue, macs, ips, policy",
		"version: 1\nvms:\n- {vlan: x}\n- {vlan: y}":                                            "line 3: x: wrong value: say a whole number (and 1 more)",
		"version: 1\nvms: {a: b}":                                                               "line 2: names with values: wrong value: say a list of VMs",
		"hello":                                                                                 "line 1: hello: wrong value: say a description, which begins with 'version: 1'",
		"version: 1\ndefault-policy: {profile: tso}\nvms: []":                                   "default-policy: profile",
		"version: 1\nvms: [" + vm + ", policy: {profile: tso}}]":                                "gro or rsc",
		"version: 1\nvms: [" + vm + ", policy: {exclude-ports: [70000]}}]":                      "70000",
		"version: 1\nvms: [" + strings.Replace(vm, "iface: e, ", "", 1) + "}]":                  "interface",
		"version: 1\nvms: &x [*x]":                                                              "",
		"\x00\x01":                                                                              "",
	} {
		f, err := Read(strings.NewReader(text))
		if !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v, %+v", text, err, f)
		}
		if err != nil && (strings.Contains(err.Error(), "yaml") || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%q: in the words of the program that reads it, or in more than a line: %v", text, err)
		}
	}
	for hold, want := range map[string]time.Duration{"0": 0, "'0'": 0, "1ms": time.Millisecond} {
		f, err := Read(strings.NewReader("version: 1\nvms: [" + vm + ", policy: {hold: " + hold + "}}]"))
		if err != nil || f.VMs[0].Policy.Hold.Longest != want {
			t.Errorf("hold %s: %v", hold, err)
		}
	}
	if _, err := Read(strings.NewReader(`{"version": 1, "vms": [` + `{"name": "a", "iface": "e", "mac": "52:54:00:00:00:01", "tap": "t", "policy": {"hold": "5us"}}]}`)); err != nil {
		t.Errorf("JSON: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(described))
	f.Add([]byte(`{"version": 1, "vms": []}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		h := &host{}
		for _, s := range Plan(file, h.config(), true) {
			if _, err := s.Do(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		}
		if left := Plan(file, h.config(), true); len(left) > 0 {
			t.Fatalf("done, and still to do: %v", left)
		}
	})
}

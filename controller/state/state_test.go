package state

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// sample is what testdata/state-v1.json and testdata/state-v2.json hold.
func sample() State {
	gro := Policy{Coalesce: true, IPv4: true, IPv6: true, Profile: "gro", HoldNS: 50_000, MaxBytes: 65535, ExcludePorts: []uint16{}}
	rsc := Policy{Coalesce: true, IPv4: true, IPv6: true, Profile: "rsc", HoldNS: 300_000, MaxBytes: 65535, MaxSegments: 22, ExcludePorts: []uint16{22, 3260}}
	return State{Interfaces: []Interface{
		{Name: "eth1", VMs: []VM{
			{Name: "web", MAC: "52:54:00:00:00:01", VhostUser: &VhostUser{Socket: "/run/rscctl/web.sock", Mode: "0660", Owner: "libvirt-qemu:kvm"}, Policy: rsc},
			{Name: "db", MAC: "52:54:00:00:00:02", VLAN: 7, VhostUser: &VhostUser{Socket: "/run/qemu/db.sock", Connect: true, AllowSpoof: true}, FixOffloads: true, Policy: gro},
		}},
		{Name: "eth2", VMs: []VM{{Name: "old", MAC: "52:54:00:00:00:03", Tap: &Tap{Device: "vnet3", BypassFilters: true}, Policy: gro}}},
	}}
}

// sampleChanges is the undo list inside testdata/state-v1.json.
func sampleChanges() []Change {
	return []Change{
		{ID: 1, Kind: Offload, Iface: "eth1", Link: "eth1", Feature: "large-receive-offload", Was: map[string]bool{"rx-lro": true}, Why: "the NIC would merge frames before we see them"},
		{ID: 2, Kind: Offload, Iface: "eth1", Link: "peer0", Via: "eth1", Feature: "tx-checksumming", Was: map[string]bool{"tx-checksum-ip-generic": true}, Why: "its frames would come with partial checksums"},
	}
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func open(t *testing.T, dir string) *Dir {
	t.Helper()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// block makes the next write of a file fail, for root as well.
func block(t *testing.T, dir, name string) (unblock func()) {
	t.Helper()
	path := filepath.Join(dir, name+".new")
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	return func() { os.RemoveAll(path) }
}

func TestTheStateSurvivesAndIsLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	d := open(t, dir)
	if _, err := Open(dir); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second controller on the same state: %v, want ErrLocked", err)
	}
	if s, err := d.Load(); err != nil || len(s.Interfaces) != 0 {
		t.Fatalf("no file yet: %+v, %v", s, err)
	}
	if err := d.Save(sample()); err != nil {
		t.Fatal(err)
	}
	d.Close()
	got, err := open(t, dir).Load()
	if err != nil || !reflect.DeepEqual(got, sample()) {
		t.Errorf("read back:\n%+v, %v\nwant\n%+v", got, err, sample())
	}
}

// Whoever changes the form must raise Schema, add a step that reads this file, and put a file of the new form beside it.
func TestTheFormOfThisSchemaStandsStill(t *testing.T) {
	b, err := encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	if want := testdata(t, "state-v2.json"); !bytes.Equal(b, want) {
		t.Errorf("state.json is now\n%s\nwant as in testdata/state-v2.json\n%s", b, want)
	}
}

func TestAFileOfSchema1IsTakenOver(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, stateFile, testdata(t, "state-v1.json"))
	d := open(t, dir)
	got, err := d.Load()
	if err != nil || !reflect.DeepEqual(got, sample()) {
		t.Fatalf("VMs:\n%+v, %v\nwant\n%+v", got, err, sample())
	}
	if !reflect.DeepEqual(d.Changes(), sampleChanges()) {
		t.Fatalf("undo list:\n%+v\nwant\n%+v", d.Changes(), sampleChanges())
	}
	if err := d.Save(got); err != nil {
		t.Fatal(err)
	}
	d.Close()
	d = open(t, dir)
	if got, err := d.Load(); err != nil || !reflect.DeepEqual(got, sample()) || !reflect.DeepEqual(d.Changes(), sampleChanges()) {
		t.Errorf("after it was written in the new form: %+v, %v, undo list %+v", got, err, d.Changes())
	}
}

// A crash may come after the list of schema 1 was undone and before state.json was written in the new form.
func TestWhatWasUndoneIsNotFoundAgainInTheOldFile(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, stateFile, testdata(t, "state-v1.json"))
	d := open(t, dir)
	if err := d.Forget(1, 2); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if left := open(t, dir).Changes(); len(left) != 0 {
		t.Errorf("to be undone again: %+v", left)
	}
}

func TestAFileOfSchema1CutAnywhereStillGivesItsUndoList(t *testing.T) {
	whole := testdata(t, "state-v1.json")
	var ends []int // where each change is whole
	for _, c := range []string{"rx-lro", "tx-checksum-ip-generic"} {
		at := bytes.Index(whole, []byte(c))
		for range 3 { // was, undo, the change
			at += bytes.IndexByte(whole[at:], '}') + 1
		}
		ends = append(ends, at)
	}
	for cut := range len(whole) {
		want := 0
		for _, end := range ends {
			if end <= cut {
				want++
			}
		}
		if got := v1Changes(whole[:cut]); len(got) != want {
			t.Fatalf("cut after %d bytes: %d changes, want %d", cut, len(got), want)
		}
	}
}

func TestADamagedListOfVMsDoesNotTouchTheUndoList(t *testing.T) {
	v1 := testdata(t, "state-v1.json")
	for name, text := range map[string][]byte{
		"cut short":           v1[:bytes.Index(v1, []byte("eth2"))],
		"a broken VM":         bytes.Replace(v1, []byte(`"vlan": 7`), []byte(`"vlan": "x"`), 1),
		"no JSON in front":    append([]byte("\x00\x00"), v1...),
		"no schema":           bytes.Replace(v1, []byte(`"schema"`), []byte(`"scheme"`), 1),
		"a VM without a feed": bytes.Replace(v1, []byte(`"tap": "vnet3",`), nil, 1),
		"a VM named twice":    bytes.Replace(v1, []byte(`"vm": "db"`), []byte(`"vm": "web"`), 1),
		"a VM named as a key": bytes.Replace(v1, []byte(`"vm": "db"`), []byte(`"vm": "\"changes\": [", "x": "changes", "vlan": ""`), 1),
	} {
		dir := t.TempDir()
		put(t, dir, stateFile, text)
		d := open(t, dir)
		if _, err := d.Load(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), filepath.Join(dir, stateFile)) {
			t.Errorf("%s: load: %v, want ErrDamaged and the file's name", name, err)
		}
		if !reflect.DeepEqual(d.Changes(), sampleChanges()) {
			t.Errorf("%s: undo list %+v", name, d.Changes())
		}
		if err := d.Save(State{}); !errors.Is(err, ErrNotSaved) {
			t.Errorf("%s: save: %v, want ErrNotSaved", name, err)
		}
		if get(t, dir, stateFile) != string(text) {
			t.Errorf("%s: the file was written over", name)
		}
	}
}

func TestANewerFileIsRefusedAndItsChangesAreUndone(t *testing.T) {
	dir := t.TempDir()
	newer := strings.Replace(string(testdata(t, "state-v2.json")), `"schema": 2`, `"schema": 3`, 1)
	put(t, dir, stateFile, []byte(newer))
	put(t, dir, undoFile, []byte(`{"id":7,"kind":"offload","iface":"eth1","link":"eth1","feature":"lro","was":{"rx-lro":true},"novel":1}
{"id":8,"kind":"teleport","iface":"eth1","where":"elsewhere"}
`))
	d := open(t, dir)
	if _, err := d.Load(); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "run that version") {
		t.Errorf("load: %v, want ErrNewer with a remedy", err)
	}
	if c := d.Changes(); len(c) != 1 || c[0].ID != 7 || !c[0].Was["rx-lro"] {
		t.Errorf("undo list %+v", c)
	}
	if p := d.Problems(); len(p) != 1 || !strings.Contains(p[0].Error(), "teleport") {
		t.Errorf("problems %v", p)
	}
	if err := d.Forget(7); err != nil {
		t.Fatal(err)
	}
	if got := get(t, dir, undoFile); got != `{"id":8,"kind":"teleport","iface":"eth1","where":"elsewhere"}`+"\n" {
		t.Errorf("what only the newer version can undo is now %q", got)
	}
	if err := d.Save(State{}); !errors.Is(err, ErrNotSaved) || get(t, dir, stateFile) != newer {
		t.Errorf("save: %v", err)
	}
}

func TestAFailedSaveLeavesTheOldState(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	if err := d.Save(sample()); err != nil {
		t.Fatal(err)
	}
	unblock := block(t, dir, stateFile)
	if err := d.Save(State{}); !errors.Is(err, ErrNotSaved) {
		t.Fatalf("got %v, want ErrNotSaved", err)
	}
	if got, err := d.Load(); err != nil || !reflect.DeepEqual(got, sample()) {
		t.Errorf("old state: %+v, %v", got, err)
	}
	unblock()
	if err := d.Save(State{}); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

func TestAFullDiskIsAnError(t *testing.T) {
	if err := writeSynced("/dev/full", []byte("x")); err == nil {
		t.Error("no error from a full device")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(testdata(f, "state-v1.json"))
	f.Add(testdata(f, "state-v2.json"))
	f.Add([]byte(`{"schema":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, c := range v1Changes(b) {
			if err := c.check(); err != nil {
				t.Fatalf("taken from the old form: %+v: %v", c, err)
			}
		}
		s, err := decode(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		again, err := encode(s)
		if err != nil {
			t.Fatal(err)
		}
		if s2, err := decode(again); err != nil || !reflect.DeepEqual(s, s2) {
			t.Fatalf("written and read again: %+v, %v; was %+v", s2, err, s)
		}
	})
}

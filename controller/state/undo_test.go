package state

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func lro(link string) Change {
	return Change{Kind: Offload, Iface: link, Link: link, Device: Device{Index: 4, Addr: "52:54:00:aa:00:01", Boot: "x"}, Feature: "lro", Was: map[string]bool{"rx-lro": true}, Why: "frames would come merged"}
}

func TestARecordedChangeIsOnTheDiskBeforeRecordReturns(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	changes := []Change{lro("eth1"), lro("eth2")}
	if err := d.Record(changes); err != nil {
		t.Fatal(err)
	}
	d.Close() // a crash keeps no more than this
	if got := open(t, dir).Changes(); !reflect.DeepEqual(got, changes) {
		t.Errorf("after a crash: %+v, want %+v", got, changes)
	}
}

func TestIDsAreNotUsedAgainWhileTheirChangeIsListed(t *testing.T) {
	dir := t.TempDir()
	a, b, c := []Change{lro("a")}, []Change{lro("b")}, []Change{lro("c")}
	d := open(t, dir)
	if err := errors.Join(d.Record(a), d.Record(b), d.Forget(a[0].ID)); err != nil {
		t.Fatal(err)
	}
	d.Close()
	d = open(t, dir)
	if err := d.Record(c); err != nil || c[0].ID == b[0].ID {
		t.Errorf("IDs %d and %d, %v", b[0].ID, c[0].ID, err)
	}
	if got := d.Changes(); len(got) != 2 || got[0].Link != "b" || got[1].Link != "c" {
		t.Errorf("list %+v", got)
	}
}

func TestWhatCannotBeRecordedMustNotBeChanged(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	first := []Change{lro("eth1")}
	if err := d.Record(first); err != nil {
		t.Fatal(err)
	}
	defer block(t, dir, undoFile)()
	second := []Change{lro("eth2")}
	if err := d.Record(second); !errors.Is(err, ErrNotSaved) || second[0].ID != 0 {
		t.Errorf("got %v and ID %d, want ErrNotSaved and none", err, second[0].ID)
	}
	if got := d.Changes(); !reflect.DeepEqual(got, first) {
		t.Errorf("list %+v", got)
	}
	if err := d.Record([]Change{{Kind: "teleport", Link: "x", Feature: "y"}}); err == nil {
		t.Error("a change that nobody can undo was recorded")
	}
}

func TestAForgottenChangeIsWrittenOffLaterWhenTheDiskIsFull(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	changes := []Change{lro("eth1")}
	if err := d.Record(changes); err != nil {
		t.Fatal(err)
	}
	unblock := block(t, dir, undoFile)
	if err := d.Forget(changes[0].ID); !errors.Is(err, ErrNotSaved) {
		t.Errorf("got %v, want ErrNotSaved", err)
	}
	if len(d.Changes()) != 0 || get(t, dir, undoFile) == "" {
		t.Errorf("list %+v, file %q", d.Changes(), get(t, dir, undoFile))
	}
	unblock()
	if err := d.Flush(); err != nil || get(t, dir, undoFile) != "" {
		t.Errorf("once there is room: %v, file %q", err, get(t, dir, undoFile))
	}
}

func TestADamagedLineCostsItselfOnly(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	changes := []Change{lro("a"), lro("b"), lro("c")}
	if err := d.Record(changes); err != nil {
		t.Fatal(err)
	}
	d.Close()
	text := get(t, dir, undoFile)
	damaged := strings.Replace(text, `"link":"b"`, `"link":"b`, 1)
	put(t, dir, undoFile, []byte(damaged))
	d = open(t, dir)
	if got := d.Changes(); len(got) != 2 || got[0].Link != "a" || got[1].Link != "c" {
		t.Errorf("list %+v", got)
	}
	if p := d.Problems(); len(p) != 1 || !errors.Is(p[0], ErrDamaged) || !strings.Contains(p[0].Error(), "line 2") {
		t.Errorf("problems %v", p)
	}
	if err := d.Forget(changes[0].ID); err != nil {
		t.Fatal(err)
	}
	if get(t, dir, undoFile+".damaged") != damaged {
		t.Error("the damaged file was not kept for the operator")
	}
	if got := get(t, dir, undoFile); strings.Contains(got, `"link":"b`) || !strings.Contains(got, `"link":"c"`) {
		t.Errorf("file %q", got)
	}
}

func TestAListCutAnywhereGivesItsWholeLines(t *testing.T) {
	e, err := newEntry(lro("eth1"))
	if err != nil {
		t.Fatal(err)
	}
	text := append(append([]byte{}, e.raw...), '\n')
	text = append(append(text, e.raw...), '\n')
	for cut := range len(text) + 1 {
		want := 0
		for _, end := range []int{len(e.raw), 2*len(e.raw) + 1} { // whole without its end of line as well
			if cut >= end {
				want++
			}
		}
		if list, _ := parseUndo(text[:cut]); len(list) != want {
			t.Fatalf("cut after %d bytes: %d changes, want %d", cut, len(list), want)
		}
	}
}

func FuzzUndoList(f *testing.F) {
	e, err := newEntry(lro("eth1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(e.raw, '\n'))
	f.Add([]byte("{\"kind\":\"x\"}\n\x00\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _ := parseUndo(b)
		for _, e := range list {
			if e.known && e.check() != nil {
				t.Fatalf("%+v was taken", e.Change)
			}
			if again, _ := parseUndo(append(e.raw, '\n')); len(again) != 1 || !reflect.DeepEqual(again[0], e) {
				t.Fatalf("written and read again: %+v, was %+v", again, e)
			}
		}
	})
}

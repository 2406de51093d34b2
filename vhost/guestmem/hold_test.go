package guestmem

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever has a hold can read the memory, whatever the owner does.
func TestAHeldTableIsNotUnmapped(t *testing.T) {
	fd := memfd(t, 8192)
	table, err := Map([]Region{{Size: 8192, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := table.Slice(0, 8192)
	if err != nil {
		t.Fatal(err)
	}
	if !table.Retain() {
		t.Fatal("no hold")
	}
	if err := errors.Join(table.Close(), table.Close()); err != nil {
		t.Fatal(err)
	}
	b[5000] = 7 // would end the process
	if err := table.Release(); err != nil {
		t.Fatal(err)
	}
	if err := table.Touch(func() { b[5000] = 8 }); !errors.Is(err, ErrFault) {
		t.Errorf("after the last hold: %v", err)
	}
	if table.Retain() {
		t.Error("a hold on what is unmapped")
	}
}

func TestATouchOfVanishedMemoryIsAnErrorAndNothingElseIs(t *testing.T) {
	fd := memfd(t, 8192)
	table, err := Map([]Region{{Size: 8192, FD: fd}})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	b, _ := table.Slice(0, 8192)
	if err := table.Touch(func() { b[0] = 1 }); err != nil {
		t.Error(err)
	}
	if err := unix.Ftruncate(fd, 4096); err != nil {
		t.Fatal(err)
	}
	if err := table.Touch(func() { b[4096] = 1 }); !errors.Is(err, ErrFault) {
		t.Errorf("cut short: %v", err)
	}
	defer func() {
		if r := recover(); r == nil || IsFault(r) {
			t.Errorf("recovered %v", r)
		}
	}()
	var none []byte
	_ = table.Touch(func() { none[len(b)] = 1 })
}

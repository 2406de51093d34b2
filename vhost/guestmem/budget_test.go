package guestmem

import (
	"errors"
	"testing"
)

// Front-ends that ask for as many regions as they may leave room for guests that have few.
func TestManyRegionsLeaveRoomForGuestsWithFew(t *testing.T) {
	const size = 4096
	fd := memfd(t, 1<<20)
	regions := func(n int) (out []Region) {
		for i := range uint64(n) {
			out = append(out, Region{GPA: i * size, Size: size, UVA: i * size, Offset: i * size, FD: fd})
		}
		return out
	}
	b := &Budget{many: 40, few: 60, bytes: 1 << 40}
	var tables []*Table
	get := func(n int) error {
		none := NewTable(Options{Budget: b})
		defer none.Close()
		table, err := none.Replace(regions(n))
		if err == nil {
			tables = append(tables, table)
		}
		return err
	}
	if err := errors.Join(get(30), get(10)); err != nil {
		t.Fatal(err)
	}
	if err := get(12); !errors.Is(err, ErrTooMuch) {
		t.Errorf("beyond half of the mappings: %v", err)
	}
	if err := errors.Join(get(8), get(8), get(4)); err != nil {
		t.Errorf("guests with few regions: %v", err)
	}
	if err := get(1); !errors.Is(err, ErrTooMuch) {
		t.Errorf("beyond three quarters: %v", err)
	}
	for _, table := range tables {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	}
	if b.maps != 0 || b.usedBytes != 0 {
		t.Errorf("%d mappings, %d bytes still booked", b.maps, b.usedBytes)
	}
	b.bytes = 3 * size
	if err := get(4); !errors.Is(err, ErrTooMuch) {
		t.Errorf("beyond the address space: %v", err)
	}
	if b.maps != 0 || b.usedBytes != 0 {
		t.Errorf("%d mappings, %d bytes booked by a table that was refused", b.maps, b.usedBytes)
	}
}

func TestABudgetFitsTheMachine(t *testing.T) {
	if b := NewBudget(); b.many < 1000 || b.few <= b.many || b.bytes == 0 {
		t.Errorf("%d, %d mappings, %d bytes", b.many, b.few, b.bytes)
	}
}

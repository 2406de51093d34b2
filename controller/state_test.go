package controller

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/netdev"
)

func TestStateSurvivesAndIsLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openState(dir); !errors.Is(err, ErrHeld) {
		t.Fatalf("second controller on the same state: error %v, want ErrHeld", err)
	}
	want := savedState{Schema: api.Schema, Interfaces: []savedInterface{{
		Name:    "eth1",
		Ports:   []savedPort{{Attach: api.AttachRequest{Iface: "eth1", VM: "a", MAC: "52:54:00:00:00:01", VhostUser: "/x"}, Policy: defaultPolicy()}},
		Changes: []change{{Link: "peer0", Via: "eth1", Feature: netdev.TxChecksum, Undo: netdev.Change{Feature: netdev.TxChecksum, Was: map[string]bool{"tx-checksum-ip-generic": true}}}},
	}}}
	if err := s.save(want); err != nil {
		t.Fatal(err)
	}
	s.close()
	s, err = openState(dir)
	if err != nil {
		t.Fatalf("after the first controller ended: %v", err)
	}
	defer s.close()
	got, err := s.load()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("state read back:\n%+v\nwant\n%+v", got, want)
	}
	left, err := filepath.Glob(filepath.Join(dir, stateFile+".new-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left beside the state: %v (%v)", left, err)
	}
}

func TestDamagedStateIsNamedNotGuessed(t *testing.T) {
	for _, text := range []string{"{", `{"schema": 99}`, "\x00"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openState(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.load(); err == nil {
			t.Errorf("state %q was taken", text)
		}
		s.close()
	}
}

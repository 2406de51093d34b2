package api

import (
	"reflect"
	"testing"
)

// What a process before counted goes on: every count of VMStats is added, whatever its kind, so that none falls back to 0 with an
// upgrade. A field that is new is found here.
func TestEveryCountGoesOn(t *testing.T) {
	full := func() VMStats {
		var s VMStats
		v := reflect.ValueOf(&s).Elem()
		for i := range v.NumField() {
			switch f := v.Field(i); f.Interface().(type) {
			case uint64:
				f.SetUint(3)
			case int64:
				f.SetInt(3)
			case map[string]uint64:
				f.Set(reflect.ValueOf(map[string]uint64{"a": 3, "b": 4}))
			case []Bucket:
				f.Set(reflect.ValueOf([]Bucket{{Le: 10, Count: 3}, {Le: 0, Count: 4}}))
			}
		}
		return s
	}
	a, b := full(), full()
	a.Add(&b)
	v := reflect.ValueOf(a)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if name == "Held" || name == "RxShare" { // a level, and what the kernel counts: it goes on by itself
			continue
		}
		switch f := v.Field(i).Interface().(type) {
		case uint64:
			if f != 6 {
				t.Errorf("%s: %d after 3 and 3", name, f)
			}
		case map[string]uint64:
			if f["a"] != 6 || f["b"] != 8 {
				t.Errorf("%s: %v", name, f)
			}
		case []Bucket:
			if f[0].Count != 6 || f[1].Count != 8 {
				t.Errorf("%s: %v", name, f)
			}
		}
	}
	if a.Held != 3 || a.RxShare != 3 {
		t.Errorf("held_packets is a level: %d; rx_share goes on by itself: %d", a.Held, a.RxShare)
	}
}

// A version before had finer or coarser buckets: no count of it is lost.
func TestBucketsOfAnotherVersionAreNotLost(t *testing.T) {
	s := VMStats{HoldNS: []Bucket{{Le: 10}, {Le: 100}, {Le: 0}}}
	s.Add(&VMStats{HoldNS: []Bucket{{Le: 5, Count: 1}, {Le: 50, Count: 2}, {Le: 1000, Count: 4}, {Le: 0, Count: 8}}})
	if got := []uint64{s.HoldNS[0].Count, s.HoldNS[1].Count, s.HoldNS[2].Count}; !reflect.DeepEqual(got, []uint64{1, 2, 12}) {
		t.Fatal(got)
	}
}

package datapath

import (
	"reflect"
	"testing"
)

// What two workers count of a VM is added field by field: none is left out.
func TestTheCountersOfTwoWorkersAddUp(t *testing.T) {
	var a, b PortCounters
	n := uint64(0)
	fields(reflect.ValueOf(&a).Elem(), func(v reflect.Value) { n++; v.SetUint(n) })
	b.Add(&a)
	b.Add(&a)
	var got []uint64
	fields(reflect.ValueOf(&b).Elem(), func(v reflect.Value) { got = append(got, v.Uint()) })
	for i, v := range got {
		if v != 2*uint64(i+1) {
			t.Errorf("counter %d of %d: twice %d is %d", i, len(got), i+1, v)
		}
	}
}

// fields visits every number in v.
func fields(v reflect.Value, visit func(reflect.Value)) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fields(v.Field(i), visit)
		}
	case reflect.Array:
		for i := range v.Len() {
			fields(v.Index(i), visit)
		}
	default:
		visit(v)
	}
}

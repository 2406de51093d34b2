package replay

import "testing"

func TestFeatureListsReplaceOrChangeTheDefault(t *testing.T) {
	def := DefaultFeatures(false)
	for _, tt := range []struct {
		list string
		want Features
		ok   bool
	}{
		{"csum,tso4", Features{Csum: true, TSO4: true}, true},
		{" csum , TSO6 ", Features{Csum: true, TSO6: true}, true},
		{"csum,tso4,tso6,ecn,rsc", Features{true, true, true, true, true}, true},
		{"+ecn", Features{Csum: true, TSO4: true, TSO6: true, ECN: true}, true},
		{"-tso6", Features{Csum: true, TSO4: true}, true},
		{"+rsc,-tso4", Features{Csum: true, TSO6: true, RSC: true}, true},
		{"-csum", Features{TSO4: true, TSO6: true}, true},
		{"none", Features{}, true},
		{"", Features{}, false},
		{"csum,", Features{}, false},
		{"csum,+ecn", Features{}, false},
		{"+ecn,csum", Features{}, false},
		{"+", Features{}, false},
		{"ufo", Features{}, false},
	} {
		got, err := ParseFeatures(tt.list, def)
		if (err == nil) != tt.ok || tt.ok && got != tt.want {
			t.Errorf("%q: got %+v, %v", tt.list, got, err)
		}
	}
}

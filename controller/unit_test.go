package controller

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
)

// An heir that is refused when it is known who it is hears why, in the place of a parcel.
func TestARefusedHeirHearsWhy(t *testing.T) {
	ends := unixPair(t)
	for said, want := range map[string]string{
		"replace: this one is of another unit: use 'systemctl reload rscctl'": "this one is of another unit: use 'systemctl reload rscctl'",
		"": "an answer where a parcel belongs",
	} {
		if err := json.NewEncoder(ends[0]).Encode(api.ReplaceAnswer{Error: said}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := receivePacked(ends[1]); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q: %v", said, err)
		}
	}
}

// The unit of a process is the innermost service, on either layout of control groups, and with groups of its own below it.
func TestTheUnitOfAProcessIsFound(t *testing.T) {
	for groups, want := range map[string]string{
		"0::/system.slice/rscctl.service\n":                                                         "rscctl.service",
		"0::/system.slice/rscctl.service/.control\n":                                                "rscctl.service",
		"0::/user.slice/user-0.slice/user@0.service/app.slice/mine.service\n":                       "mine.service",
		"0::/user.slice/user-0.slice/session-3.scope\n":                                             "",
		"12:cpu,cpuacct:/other.service\n1:name=systemd:/system.slice/rscctl.service\n0::/unified\n": "rscctl.service",
		"0::/\n":                   "",
		"0::/../../system.slice\n": "",
		"":                         "", "0": "", "0::": "", "0::relative": "", "::::": "",
	} {
		if got := serviceIn(groups); got != want {
			t.Errorf("%q: %q, want %q", groups, got, want)
		}
	}
	if err := sameUnit(1<<22 + 1); err != nil { // nobody
		t.Error(err)
	}
}

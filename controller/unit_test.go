package controller

import "testing"

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

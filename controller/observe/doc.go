// Package observe tells whether a host needs rscctl at all: it counts for some seconds how large the kernel makes the TCP frames that it
// gives to each VM on a tap, and says in words what merging would add.
//
// It needs no controller and changes nothing that stays. The programs that count hang on the taps by TCX, and go with the process
// however it ends; before Linux 6.6 by a filter under clsact, which a killed run leaves behind for RemoveStale.
//
// Estimate and Judge are pure functions of what was counted; docs/observe.md says where their figures come from.
package observe

package doctor

// hostChecks are the checks of the host, in the order in which they are told.
var hostChecks = []func(f *Facts) Finding{
	checkKernel, checkUSO, checkPrograms, checkBTF, checkAFXDP, checkBPFFS, checkTun, checkVhostNet, checkKVM, checkQEMU, checkLibvirt,
}

// Examine judges what was found of a host and its interfaces, the gravest first. Each check gives at least one finding.
func Examine(f *Facts) []Finding {
	out := []Finding{visitor(f)}
	for _, check := range hostChecks {
		out = append(out, check(f))
	}
	for _, one := range faults {
		out = append(out, checkFault(f, one))
	}
	if names, _ := f.lacking(); len(names) == 0 { // somebody else's limits and rights say nothing of the controller's
		out = append(out, checkMemlock(f))
	}
	out = append(out, checkTaps(f)...)
	return sorted(append(out, examineInterfaces(f)...))
}

// Needs are the errors of what a controller cannot start without, whatever is attached to it later. Empty: it can.
func Needs(f *Facts) (out []Finding) {
	for _, check := range []func(f *Facts) Finding{checkPrivileges, checkKernel, checkPrograms, checkAFXDP, checkMemlock} {
		if found := check(f); found.Severity == Error {
			out = append(out, found)
		}
		if len(out) > 0 && out[0].ID == "privileges" { // the rest follows from it, and cannot be seen
			break
		}
	}
	return out
}

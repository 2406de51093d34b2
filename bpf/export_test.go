package bpf

// AttachFilters is Attach by clsact alone, as on a kernel without TCX.
func (p *HostProgram) AttachFilters() error { return p.attachBy(tcHook.attachFilter) }

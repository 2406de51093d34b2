package controller

import (
	"log/slog"
	"net/http"

	"github.com/rscctl/rscctl/controller/api"
)

// audit logs who asked for a change, of what, and what became of it. What only looks, a dry run among it, leaves no line.
func audit(log *slog.Logger, r *http.Request, req any, err error) {
	p := askedBy(r)
	about := []any{"uid", p.uid, "pid", p.pid}
	switch q := req.(type) {
	case api.AttachRequest:
		if q.DryRun {
			return
		}
		about = append(about, "verb", "attach", "iface", q.Iface, "vm", q.VM)
	case api.DetachRequest:
		about = append(about, "verb", "detach", "iface", q.Iface, "vm", q.VM)
	case api.PolicyRequest:
		verb := "policy set"
		if q.Reset {
			verb = "policy reset"
		}
		whose := q.VM
		if q.Default {
			whose = "--default"
		}
		about = append(about, "verb", verb, "vm", whose)
	}
	if err != nil {
		about = append(about, "err", err)
	}
	log.Info("request", about...)
}

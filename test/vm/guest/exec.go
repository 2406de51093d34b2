//go:build linux

package main

import (
	"context"
	"errors"
	"os/exec"

	"github.com/rscctl/rscctl/test/vm/control"
)

// exec runs a program; what it writes goes out as events while it runs.
func (g *guest) exec(id uint64, e control.Exec) (*control.ExecResult, error) {
	if len(e.Args) == 0 {
		return nil, errors.New("exec: no program")
	}
	ctx := context.Background()
	if e.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, e.Timeout)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, e.Args[0], e.Args[1:]...)
	cmd.Env = append([]string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/tmp", "TMPDIR=/tmp"}, e.Env...)
	cmd.Dir = e.Dir
	w := &output{out: g.out, id: id}
	cmd.Stdout, cmd.Stderr = w, w
	err := cmd.Run()
	r := &control.ExecResult{}
	var ended *exec.ExitError
	switch {
	case errors.As(err, &ended):
		r.Exit, r.How = ended.ExitCode(), ended.String()
	case err != nil:
		return nil, err
	}
	return r, nil
}

// output sends what is written to it as events.
type output struct {
	out *replies
	id  uint64
}

func (o *output) Write(b []byte) (int, error) {
	err := o.out.send(control.Reply{ID: o.id, Event: control.EventOutput}, string(b), nil)
	return len(b), err
}

package controller

import (
	"errors"
	"fmt"
	"reflect"

	"golang.org/x/sys/unix"

	"github.com/rscctl/rscctl/bpf"
	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/parcel"
	"github.com/rscctl/rscctl/controller/xsk"
)

// readied is what was made for an interface of the controller before while that went on: what takes long, and changes nothing.
type readied struct {
	prog   *bpf.Program
	linkID uint32         // of the link that prog is for
	queues []readiedQueue // by id; empty where the controller before did not say
}

type readiedQueue struct {
	worker *datapath.Worker // not started
	umem   *xsk.Ahead       // nil where the socket cannot be adopted
}

// checked is a VM that was looked at in front of a hand-over. The users and groups of its socket are looked up for it, which may take long
// where they are not this machine's.
type checked struct {
	asked api.AttachRequest
	vm    *attachment
}

// checkAhead does for a VM what checkPacked would do. What is wrong will be told there.
func (c *Controller) checkAhead(req api.AttachRequest) {
	if a, err := c.checkRequest(req); err == nil {
		c.checked[req.VM] = checked{req, a}
	}
}

// checkPacked is checkRequest, or what checkAhead found for the same request, which says all of the policy: what new VMs get, which is not
// known yet when checkAhead looks, has no part in it.
func (c *Controller) checkPacked(req api.AttachRequest) (*attachment, error) {
	ahead, ok := c.checked[req.VM]
	if delete(c.checked, req.VM); !ok || !reflect.DeepEqual(ahead.asked, req) {
		return c.checkRequest(req)
	}
	return ahead.vm, nil
}

// readyUplink makes what it can of a preview.
func readyUplink(p *parcel.Parcel, s *packedUplink, slots int) (r *readied, err error) {
	r = &readied{linkID: s.Program.LinkID}
	if r.prog, err = adoptProgram(p, &s.devices()[0], nil); err != nil {
		return nil, err
	}
	for id := range s.Queues {
		q, err := readyQueue(p, s, id, slots)
		r.queues = append(r.queues, q)
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
	}
	return r, nil
}

func readyQueue(p *parcel.Parcel, s *packedUplink, id, slots int) (q readiedQueue, err error) {
	if q.worker, err = datapath.Prepare(s.Rings.Chunks, slots); err != nil || s.Queues[id].Umem == "" {
		return q, err
	}
	fd, err := p.Take(s.Queues[id].Umem, parcel.Memory)
	if err != nil {
		return q, err
	}
	d, _, nic := s.place(id)
	if d == nil {
		return q, errors.Join(fmt.Errorf("queue %d: %w", id, parcel.ErrDamaged), unix.Close(fd))
	}
	q.umem, err = xsk.MapAhead(queueConfig(d.Index, nic, s.ChunkSize, s.Rings, d.Native), fd)
	return q, errors.Join(err, unix.Close(fd))
}

// queue is what was made for a queue, nothing for nil.
func (r *readied) queue(id int) readiedQueue {
	if r == nil || id >= len(r.queues) {
		return readiedQueue{}
	}
	return r.queues[id]
}

// program gives the program away, if it is for that link.
func (r *readied) program(linkID uint32) (p *bpf.Program) {
	if r != nil && r.linkID == linkID {
		p, r.prog = r.prog, nil
	}
	return p
}

// close lets go of what nobody has taken.
func (r *readied) close() (err error) {
	if r == nil {
		return nil
	}
	for _, q := range r.queues {
		err = errors.Join(err, q.umem.Close())
	}
	if p := r.program(r.linkID); p != nil {
		err = errors.Join(err, p.Release())
	}
	return err
}

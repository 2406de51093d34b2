package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/rscctl/rscctl/test/vm/control"
)

var (
	// ErrGone is returned for an order when QEMU has ended.
	ErrGone = errors.New("the VM has ended")
	// ErrRebooted is returned for an order that a reboot of the guest, wanted or by a panic, left without an answer.
	ErrRebooted = errors.New("the guest started again")
)

// channel is the harness's end of the control port.
type channel struct {
	ready chan control.Hello // one for every boot

	mu      sync.Mutex
	w       io.Writer
	next    uint64
	waiting map[uint64]order
	ended   error
}

// order is one that waits for its answer.
type order struct {
	answer chan control.Reply
	output io.Writer // of the program it started; may be nil
}

func newChannel(w io.Writer) *channel {
	return &channel{
		// Nobody boots that often; should a guest do, the oldest boots tell enough.
		ready:   make(chan control.Hello, 64),
		w:       w,
		waiting: map[uint64]order{},
	}
}

// run reads answers until the port ends.
func (c *channel) run(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var reply control.Reply
		if json.Unmarshal(lines.Bytes(), &reply) != nil {
			continue // half a line, cut by a reboot
		}
		if reply.Event == control.EventReady {
			c.booted(reply)
			continue
		}
		c.deliver(reply)
	}
	c.abandon(ErrGone, true)
	close(c.ready)
}

func (c *channel) deliver(reply control.Reply) {
	c.mu.Lock()
	o, known := c.waiting[reply.ID]
	if reply.Event == "" {
		delete(c.waiting, reply.ID)
	}
	c.mu.Unlock()
	switch {
	case !known:
	case reply.Event == "":
		o.answer <- reply
	case reply.Event == control.EventOutput && o.output != nil:
		var text string
		if json.Unmarshal(reply.Result, &text) == nil {
			_, _ = io.WriteString(o.output, text) // who asked for the output sees what it misses
		}
	}
}

func (c *channel) booted(reply control.Reply) {
	c.abandon(ErrRebooted, false)
	var hello control.Hello
	if json.Unmarshal(reply.Result, &hello) != nil {
		return
	}
	select {
	case c.ready <- hello:
	default:
	}
}

// abandon fails every order that waits, and with forever all later ones.
func (c *channel) abandon(why error, forever bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, o := range c.waiting {
		o.answer <- control.Reply{Error: why.Error()}
		delete(c.waiting, id)
	}
	if forever {
		c.ended = why
	}
}

// do sends one order and waits for its answer. Args and output may be nil; result is a pointer or nil.
func (c *channel) do(ctx context.Context, op string, args, result any, output io.Writer) error {
	req := control.Request{Op: op}
	if args != nil {
		b, err := json.Marshal(args)
		if err != nil {
			return fmt.Errorf("guest: %s: %w", op, err)
		}
		req.Args = b
	}
	answer, id, err := c.send(req, output)
	if err != nil {
		return fmt.Errorf("guest: %s: %w", op, err)
	}
	select {
	case reply := <-answer:
		return decode(op, reply, result)
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
		return fmt.Errorf("guest: %s: no answer: %w", op, ctx.Err())
	}
}

func (c *channel) send(req control.Request, output io.Writer) (<-chan control.Reply, uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return nil, 0, c.ended
	}
	c.next++
	req.ID = c.next
	line, err := json.Marshal(req)
	if err != nil {
		return nil, 0, err
	}
	if _, err := c.w.Write(append(line, '\n')); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrGone, err)
	}
	answer := make(chan control.Reply, 1)
	c.waiting[req.ID] = order{answer, output}
	return answer, req.ID, nil
}

func decode(op string, reply control.Reply, result any) error {
	switch reply.Error {
	case "":
	case ErrGone.Error():
		return fmt.Errorf("guest: %s: %w", op, ErrGone)
	case ErrRebooted.Error():
		return fmt.Errorf("guest: %s: %w", op, ErrRebooted)
	default:
		return fmt.Errorf("guest: %s: %s", op, reply.Error)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Result, result); err != nil {
		return fmt.Errorf("guest: %s: answer: %w", op, err)
	}
	return nil
}

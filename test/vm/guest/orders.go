//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/rscctl/rscctl/test/vm/control"
	"github.com/rscctl/rscctl/test/vm/peer"
)

// guest is the state between orders.
type guest struct {
	mu        sync.Mutex
	listeners map[int]*net.TCPListener
	datagrams map[int]*net.UDPConn
	echoes    map[int]bool
	out       *replies
}

func newGuest(out *replies) *guest {
	return &guest{listeners: map[int]*net.TCPListener{}, datagrams: map[int]*net.UDPConn{}, echoes: map[int]bool{}, out: out}
}

// do carries out one order.
func (g *guest) do(req control.Request) (any, error) {
	args := req.Args
	switch req.Op {
	case control.OpAddr:
		return nothing(with(args, g.addr))
	case control.OpNIC:
		return result(g.nic())
	case control.OpOffload:
		return nothing(with(args, g.offload))
	case control.OpListen:
		return nothing(with(args, g.listen))
	case control.OpReceive:
		return ask(args, g.receive)
	case control.OpSend:
		return ask(args, g.send)
	case control.OpTrains:
		return ask(args, g.trains)
	case control.OpEcho:
		return nothing(with(args, g.echo))
	case control.OpPing:
		return ask(args, peer.Ping)
	case control.OpUDP:
		return ask(args, peer.UDP)
	case control.OpForget:
		return nil, g.forget()
	case control.OpRebind:
		return nil, g.rebind()
	case control.OpExec:
		return ask(args, func(e control.Exec) (*control.ExecResult, error) { return g.exec(req.ID, e) })
	case control.OpReboot, control.OpPowerOff:
		return nil, nil // done after the answer
	}
	return nil, fmt.Errorf("no such order: %q", req.Op)
}

func with[A any](args json.RawMessage, f func(A) error) error {
	var a A
	if err := json.Unmarshal(args, &a); err != nil {
		return err
	}
	return f(a)
}

func ask[A, R any](args json.RawMessage, f func(A) (*R, error)) (any, error) {
	var a A
	if err := json.Unmarshal(args, &a); err != nil {
		return nil, err
	}
	return result(f(a))
}

// result keeps a nil *R from becoming a non-nil any.
func result[R any](r *R, err error) (any, error) {
	if r == nil {
		return nil, err
	}
	return r, err
}

func nothing(err error) (any, error) { return nil, err }

func (g *guest) listen(l control.Listen) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l.UDP {
		return g.listenUDP(l.Port)
	}
	if g.listeners[l.Port] != nil {
		return nil
	}
	ln, err := peer.Listen(fmt.Sprintf(":%d", l.Port))
	if err != nil {
		return err
	}
	g.listeners[l.Port] = ln
	return nil
}

func (g *guest) listenUDP(port int) error {
	if g.datagrams[port] != nil {
		return nil
	}
	c, err := peer.ListenTrains(fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	g.datagrams[port] = c
	return nil
}

// trains takes one stream of datagrams. What cut it short travels in the Reception, with what came before.
func (g *guest) trains(t control.Trains) (*control.Reception, error) {
	g.mu.Lock()
	c := g.datagrams[t.Port]
	g.mu.Unlock()
	if c == nil {
		return nil, fmt.Errorf("trains: port %d is not open", t.Port)
	}
	r, _ := peer.ReceiveTrains(c, t)
	return r, nil
}

// receive hashes what one connection brings. What came before an error is in the Transfer too, so the error travels there.
func (g *guest) receive(r control.Receive) (*control.Transfer, error) {
	g.mu.Lock()
	ln := g.listeners[r.Port]
	g.mu.Unlock()
	if ln == nil {
		return nil, fmt.Errorf("receive: port %d is not open", r.Port)
	}
	deadline := time.Now().Add(r.Timeout)
	c, err := peer.Accept(ln, deadline)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	t, _ := peer.Receive(c, r.Count)
	return t, nil
}

func (g *guest) send(s control.Send) (*control.Transfer, error) {
	deadline := time.Now().Add(s.Timeout)
	c, err := peer.Dial(s.To, s.Timeout)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	t, _ := peer.Send(c, s.Seed, s.Bytes)
	return t, nil
}

func (g *guest) echo(e control.Echo) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.echoes[e.Port] {
		return nil
	}
	c, err := net.ListenUDP("udp", &net.UDPAddr{Port: e.Port})
	if err != nil {
		return err
	}
	g.echoes[e.Port] = true
	go func() {
		if err := peer.Echo(c); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
		}
	}()
	return nil
}

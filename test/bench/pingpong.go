package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/pprof"
	"slices"
	"time"

	"github.com/rscctl/rscctl/controller/demo"
)

// profileEnv names the file into which the controller's process writes its profile, "": none.
const profileEnv = "RSCCTL_BENCH_PROFILE"

// child is one of the processes of the demo's topology, with what this program adds.
func child(role string) (err error) {
	if path := os.Getenv(profileEnv); path != "" && role == "controller" {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if os.Getenv(gcEnv) != "" && role == "controller" {
		go collectForEver()
	}
	beside := &peer{}
	return demo.ChildWith(context.Background(), role, "bench", demo.Extra{Host: beside.makeHostWay, HostPID: func() int { return int(beside.pid.Load()) }, NIC: openHostNIC, Do: exchange})
}

// message is the length of a request, and of its answer, in bytes: a small frame, whose time is all latency.
const message = 64

// pingRequest asks for a series of requests, one at a time.
type pingRequest struct {
	Address string
	Time    time.Duration
}

// pings is the series: nanoseconds between a request and its answer.
type pings struct {
	N              int
	P50, P99, P999 float64
}

var errOp = errors.New("unknown operation")

// exchange is the operations of the sender's and the guest's process: "echo" answers requests from now on, "ping" makes them, and "flows" sends
// a segment of each of many flows.
func exchange(op string, arg json.RawMessage) (any, error) {
	switch op {
	case "echo":
		var address string
		if err := json.Unmarshal(arg, &address); err != nil {
			return nil, err
		}
		return echo(address)
	case "ping":
		var q pingRequest
		if err := json.Unmarshal(arg, &q); err != nil {
			return nil, err
		}
		return ping(q)
	case "flows":
		return sendFlowsOp(arg)
	}
	return nil, fmt.Errorf("%s: %w", op, errOp)
}

// echo answers one connection, until it ends, and returns the address at once.
func echo(ip string) (string, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		return "", err
	}
	go func() {
		defer ln.Close()
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, message)
		for {
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	return ln.Addr().String(), nil
}

func ping(q pingRequest) (*pings, error) {
	c, err := net.DialTimeout("tcp", q.Address, 5*time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(q.Time + 10*time.Second)); err != nil {
		return nil, err
	}
	b := make([]byte, message)
	var took []float64
	for end := time.Now().Add(q.Time); time.Now().Before(end); {
		start := time.Now()
		if _, err := c.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(start)))
	}
	slices.Sort(took)
	at := func(q float64) float64 { return took[min(len(took)-1, int(q*float64(len(took))))] }
	return &pings{N: len(took), P50: at(0.5), P99: at(0.99), P999: at(0.999)}, nil
}

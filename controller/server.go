package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/controller/near"
	"github.com/rscctl/rscctl/vhost"
	"github.com/rscctl/rscctl/vhost/unixsock"
)

const (
	capturePath = "/v1/capture"
	maxRequest  = 64 << 10 // bytes of a request body
	sockMode    = 0o660
	sockBacklog = 128 // connections that wait to be accepted
)

// listenControl makes the control socket, of a group ("": the process'). A file left by a controller that died is replaced; a live one is
// ErrHeld.
func listenControl(path, group string) (*unixsock.Listener, error) {
	gid, err := socketGroup(path, group)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w: choose another path with --socket", err)
	}
	l, err := unixsock.Listen(controlConfig(path, gid))
	switch {
	case errors.Is(err, unixsock.ErrInUse):
		return nil, fmt.Errorf("control %w: %w: stop it, or use another --socket", err, ErrHeld)
	case err != nil:
		return nil, fmt.Errorf("control %w: choose another path with --socket", err)
	}
	return l, nil
}

// listenAgain makes the control socket anew when somebody has removed its file, or its folder: nobody could ask or end a controller that is
// not to be reached. Who is connected by the old one is served to his end. Only watch calls it, without mu: it makes files. ctx is watch's.
func (c *Controller) listenAgain(ctx context.Context, serve func(*unixsock.Listener)) {
	c.mu.Lock()
	old := c.listener
	c.mu.Unlock()
	if _, ours := old.Group(); ours || ctx.Err() != nil { // at the end it is we who remove it
		return
	}
	l, err := listenControl(c.opt.Socket, c.opt.SocketGroup)
	c.guarded(func() {
		if err != nil {
			if c.deaf != err.Error() {
				c.deaf = err.Error()
				c.log.Error("the control socket's file is gone, and cannot be made anew: it is tried again each second", "err", err)
			}
			return
		}
		c.deaf = ""
		c.log.Warn("the control socket's file was gone: it is made anew", "socket", c.opt.Socket)
		c.listener = l
		c.remember() // a process after a crash is to have this one
	})
	if err == nil {
		serve(l)
		_ = old.Leave()
	}
}

// socketGroup is the number of the group that the control socket is to have, -1 for the process'.
func socketGroup(path, group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	gid, err := groupID(group)
	if err != nil {
		return 0, fmt.Errorf("control socket %s: %w: make the group ('groupadd %s'), or name another with --socket-group", path, err, group)
	}
	return gid, nil
}

func controlConfig(path string, gid int) unixsock.Config {
	return unixsock.Config{Path: path, Mode: sockMode, UID: -1, GID: gid, Backlog: sockBacklog}
}

// serve answers requests until ctx ends, or l was left and the last request by it has ended.
func (c *Controller) serve(ctx context.Context, l *unixsock.Listener) error {
	f := &front{handler: c.routes(), log: c.log, who: func(conn *net.UnixConn) peer { return peerOf(conn, l.Group, c.opt.GroupMayWrite) }}
	return f.serve(ctx, patient{l})
}

// patient is a listener whose deadline is no error: it has passed while the controller is handed over.
type patient struct{ *unixsock.Listener }

func (l patient) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return conn, err
		}
		time.Sleep(time.Millisecond)
	}
}

func (c *Controller) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", query(func(r *http.Request) (any, error) { return c.Status(r.FormValue("iface")) }, "iface"))
	mux.HandleFunc("GET /v1/policy", query(func(r *http.Request) (any, error) {
		if r.FormValue("default") == "true" {
			return c.DefaultPolicy(), nil
		}
		return c.GetPolicy(r.FormValue("vm"))
	}, "default", "vm"))
	mux.HandleFunc("GET /v1/stats", query(func(r *http.Request) (any, error) { return c.Stats(r.FormValue("vm")) }, "vm"))
	mux.HandleFunc("GET /v1/config", query(func(*http.Request) (any, error) { return c.Config(), nil }))
	mux.HandleFunc("GET /v1/flows", query(func(r *http.Request) (any, error) {
		limit := 0
		if s := r.FormValue("limit"); s != "" {
			n, err := strconv.Atoi(s)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("flows: limit %q: %w: use a number", s, ErrUsage)
			}
			limit = n
		}
		return c.Flows(r.FormValue("iface"), r.FormValue("vm"), api.FlowSort(r.FormValue("sort")), limit)
	}, "iface", "vm", "sort", "limit"))
	mux.HandleFunc("GET /v1/trace", c.serveTrace)
	mux.HandleFunc("GET "+capturePath, c.serveCapture)
	mux.HandleFunc("POST /v1/attach", command(c.log, c.Attach))
	mux.HandleFunc("POST /v1/detach", command(c.log, c.Detach))
	mux.HandleFunc("POST /v1/policy", command(c.log, c.SetPolicy))
	mux.HandleFunc("POST /v1/replace", c.handOver)
	return mux
}

// front is what every request meets first: who it is from, and what he may do.
type front struct {
	handler http.Handler
	who     func(*net.UnixConn) peer
	log     *slog.Logger
	limit   vhost.LogLimit // of lines about who may not
}

type peerKey struct{}

// serve answers as serveUntil does.
func (f *front) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           f,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		ErrorLog:          slog.NewLogLogger(f.log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx }, // streams end with it
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			var p peer
			if uc, ok := conn.(*net.UnixConn); ok {
				p = f.who(uc)
			}
			return context.WithValue(ctx, peerKey{}, p)
		},
	}
	if err := serveUntil(ctx, srv, l); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// ServeHTTP implements http.Handler. Whatever changes something is no GET.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := askedBy(r)
	var err error
	switch {
	case p.access == mayNothing:
		err = fmt.Errorf("control socket: %w: be root or a member of the socket's group", api.ErrPermission)
	case p.access == mayRead && r.URL.Path == capturePath:
		err = fmt.Errorf("control socket: %w: what a VM's frames hold is not for members of the socket's group: be root", api.ErrPermission)
	case p.access == mayRead && r.Method != http.MethodGet:
		err = fmt.Errorf("control socket: %w: members of the socket's group may look only: be root, or start the controller with --group-may-write", api.ErrPermission)
	}
	if err != nil {
		if left, ok := f.limit.Allow("refused"); ok {
			f.log.Warn("request refused", "path", r.URL.Path, "uid", p.uid, "pid", p.pid, "lines_left_out", left)
		}
		refuse(w, err)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	defer func() { // a fault of ours in it costs the request, and ends nothing
		if fault := recover(); fault != nil {
			f.log.Error("internal fault: please report it", "path", r.URL.Path, "fault", fmt.Sprint(fault), "stack", string(debug.Stack()))
			refuse(w, errors.New("control socket: internal fault: please report it with the controller's log"))
		}
	}()
	f.handler.ServeHTTP(w, r)
}

// serveUntil serves until ctx ends, and then gives requests under way a moment. They have until ctx ends when l is closed before.
func serveUntil(ctx context.Context, srv *http.Server, l net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			return err
		}
		if srv.Shutdown(ctx) == nil {
			return nil
		}
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		srv.Close()
	}
	return nil
}

// query answers a request. params are those that it may have behind the question mark.
func query(f func(*http.Request) (any, error), params ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := checkParams(r, params...)
		var v any
		if err == nil {
			v, err = f(r)
		}
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, http.StatusOK, v)
	}
}

// checkParams refuses parameters that a request does not have, that cannot be read or that are given twice: what was meant to choose would
// choose nothing, or something else.
func checkParams(r *http.Request, params ...string) error {
	given, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fmt.Errorf("request: %w: parameters %q: %w: write them as URLs do, ; as %%3B", ErrUsage, r.URL.RawQuery, err)
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		switch {
		case !slices.Contains(params, name):
			return fmt.Errorf("request: %w: unknown parameter %q: %s%s has %s", ErrUsage, name, near.Hint(name, params), r.URL.Path, cmp.Or(strings.Join(params, ", "), "none"))
		case len(given[name]) > 1:
			return fmt.Errorf("request: %w: parameter %q is given %d times: give it once", ErrUsage, name, len(given[name]))
		}
	}
	return nil
}

// command answers a request that changes something, and has it in the log who asked for it.
func command[Req, Resp any](log *slog.Logger, f func(Req) (Resp, error)) http.HandlerFunc {
	return query(func(r *http.Request) (any, error) {
		var req Req
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			return nil, fmt.Errorf("request: %w: %w", ErrUsage, api.JSONError(err))
		}
		if _, err := d.Token(); err != io.EOF {
			return nil, fmt.Errorf("request: %w: something follows it", ErrUsage)
		}
		resp, err := f(req)
		audit(log, r, req, err)
		return resp, err
	})
}

// refuse answers with an error, its code and its HTTP status.
func refuse(w http.ResponseWriter, err error) {
	for _, gone := range []error{datapath.ErrStuck, datapath.ErrStopped, datapath.ErrFault} { // which know nothing of codes
		if errors.Is(err, gone) {
			err = coded{err, ErrWorker}
			break
		}
	}
	e := api.NewError(err)
	reply(w, e.Status, e.ErrorBody)
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the peer may be gone: nothing left to tell it
}

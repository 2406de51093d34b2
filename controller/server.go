package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
	"github.com/rscctl/rscctl/vhost/unixsock"
)

const (
	maxRequest  = 64 << 10 // bytes of a request body
	sockMode    = 0o660
	sockBacklog = 128 // connections that wait to be accepted
)

// listenControl makes the control socket. A file left by a controller that died is replaced; a live one is ErrHeld.
func listenControl(path string) (*unixsock.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w: choose another path with --socket", err)
	}
	l, err := unixsock.Listen(controlConfig(path))
	switch {
	case errors.Is(err, unixsock.ErrInUse):
		return nil, fmt.Errorf("control %w: %w: stop it, or use another --socket", err, ErrHeld)
	case err != nil:
		return nil, fmt.Errorf("control %w: choose another path with --socket", err)
	}
	return l, nil
}

func controlConfig(path string) unixsock.Config {
	return unixsock.Config{Path: path, Mode: sockMode, UID: -1, GID: -1, Backlog: sockBacklog}
}

type credKey struct{}

// serve answers requests until ctx ends.
func (c *Controller) serve(ctx context.Context, l *unixsock.Listener) error {
	return serveHTTP(ctx, l, c.routes(), func(peer *net.UnixConn) bool { return peerAllowed(peer, l.Group) })
}

func (c *Controller) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", query(func(r *http.Request) (any, error) { return c.Status(r.FormValue("iface")) }))
	mux.HandleFunc("GET /v1/policy", query(func(r *http.Request) (any, error) { return c.GetPolicy(r.FormValue("vm")) }))
	mux.HandleFunc("GET /v1/stats", query(func(r *http.Request) (any, error) { return c.Stats(r.FormValue("vm")) }))
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
	}))
	mux.HandleFunc("GET /v1/trace", c.serveTrace)
	mux.HandleFunc("GET /v1/capture", c.serveCapture)
	mux.HandleFunc("POST /v1/attach", command(c.Attach))
	mux.HandleFunc("POST /v1/detach", command(c.Detach))
	mux.HandleFunc("POST /v1/policy", command(c.SetPolicy))
	mux.HandleFunc("POST /v1/replace", c.handOver)
	return mux
}

// serveHTTP serves h to the peers that allowed lets in, until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, allowed func(*net.UnixConn) bool) error {
	srv := &http.Server{
		Handler:           guard(h),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		ErrorLog:          nil,
		BaseContext:       func(net.Listener) context.Context { return ctx }, // streams end with it
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			uc, ok := conn.(*net.UnixConn)
			return context.WithValue(ctx, credKey{}, ok && allowed(uc))
		},
	}
	if err := serveUntil(ctx, srv, l); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// serveUntil serves until ctx ends, and then gives requests under way a moment.
func serveUntil(ctx context.Context, srv *http.Server, l net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		srv.Close()
	}
	return nil
}

func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ok, _ := r.Context().Value(credKey{}).(bool); !ok {
			refuse(w, fmt.Errorf("control socket: %w: be root or a member of the socket's group", api.ErrPermission))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		next.ServeHTTP(w, r)
	})
}

func query(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, http.StatusOK, v)
	}
}

func command[Req, Resp any](f func(Req) (Resp, error)) http.HandlerFunc {
	return query(func(r *http.Request) (any, error) {
		var req Req
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			return nil, fmt.Errorf("request: %w: %w", ErrUsage, err)
		}
		if _, err := d.Token(); err != io.EOF {
			return nil, fmt.Errorf("request: %w: something follows it", ErrUsage)
		}
		return f(req)
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

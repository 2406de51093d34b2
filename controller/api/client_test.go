package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	srv.Start()
	t.Cleanup(srv.Close)
	c := NewClient(path)
	t.Cleanup(c.Close)
	return c
}

func TestEveryCallUsesItsMethodAndPath(t *testing.T) {
	var got string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Method + " " + r.URL.RequestURI()
		fmt.Fprintf(w, `{"schema":%d}`, Schema)
	})
	ctx := context.Background()
	schema := func(n int, err error) (int, error) { return n, err }
	for want, call := range map[string]func() (int, error){
		"GET /v1/status":         func() (int, error) { r, err := c.Status(ctx, ""); return schema(r.Schema, err) },
		"GET /v1/status?iface=i": func() (int, error) { r, err := c.Status(ctx, "i"); return schema(r.Schema, err) },
		"POST /v1/attach":        func() (int, error) { r, err := c.Attach(ctx, AttachRequest{}); return schema(r.Schema, err) },
		"POST /v1/detach":        func() (int, error) { r, err := c.Detach(ctx, DetachRequest{}); return schema(r.Schema, err) },
		"GET /v1/flows?limit=2&vm=a+b%26c": func() (int, error) {
			r, err := c.Flows(ctx, FlowsQuery{VM: "a b&c", Limit: 2})
			return schema(r.Schema, err)
		},
		"GET /v1/policy?vm=v": func() (int, error) { r, err := c.GetPolicy(ctx, "v"); return schema(r.Schema, err) },
		"POST /v1/policy":     func() (int, error) { r, err := c.SetPolicy(ctx, PolicyRequest{}); return schema(r.Schema, err) },
		"GET /v1/stats?vm=v":  func() (int, error) { r, err := c.Stats(ctx, "v"); return schema(r.Schema, err) },
	} {
		if n, err := call(); err != nil || n != Schema || got != want {
			t.Errorf("%s: asked %s, schema %d, %v", want, got, n, err)
		}
	}
}

func TestRefusalIsATypedError(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		w.Write([]byte(`{"error":{"code":"usage","message":"eth9: no such interface: see ip link"}}`))
	})
	_, err := c.Status(context.Background(), "eth9")
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, ErrUsage) || errors.Is(err, ErrTaken) || e.Status != http.StatusBadRequest || e.Error() != "eth9: no such interface: see ip link" {
		t.Errorf("got %#v", err)
	}
}

func TestRefusalsOfAnOlderControllerAreUnderstood(t *testing.T) {
	for body, usage := range map[string]bool{`{"error":"eth9: wrong","usage":true}`: true, `{"error":"eth9: wrong"}`: false} {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusConflict)
			w.Write([]byte(body))
		})
		if _, err := c.Status(context.Background(), ""); err == nil || err.Error() != "eth9: wrong" || errors.Is(err, ErrUsage) != usage {
			t.Errorf("%s: got %v", body, err)
		}
	}
}

func TestACodeOfANewerControllerIsStillAnError(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		w.Write([]byte(`{"error":{"code":"novel","message":"eth9: something new"}}`))
	})
	_, err := c.Status(context.Background(), "")
	var e *Error
	if !errors.As(err, &e) || e.Code != "novel" || e.Error() != "eth9: something new" || errors.Unwrap(e) != nil {
		t.Errorf("got %#v", err)
	}
}

func TestRubbishForAnAnswerIsAnError(t *testing.T) {
	for name, body := range map[string]string{"no JSON": "hello", "empty": "", "cut short": `{"schema":1,`, "other type": `[1]`} {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(body)) })
		if _, err := c.Stats(context.Background(), ""); err == nil || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestNothingListeningIsErrNoController(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "missing"), filepath.Join(file, "below-a-file"), stale, file} {
		_, err := NewClient(path).Status(context.Background(), "")
		if !errors.Is(err, ErrNoController) || !strings.Contains(err.Error(), "rscctl run") {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestPermissionErrorSaysWhoMayConnect(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("allowed: root may connect everywhere; explain is tested below")
	}
	c := serve(t, func(http.ResponseWriter, *http.Request) {})
	if err := os.Chmod(c.path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(context.Background(), ""); !errors.Is(err, ErrPermission) {
		t.Errorf("got %v", err)
	}
}

func TestPermissionRemedyNamesTheSocketsGroup(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "s"))
	if err := os.WriteFile(c.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := c.explain(context.Background(), os.ErrPermission)
	if !errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), "run as root") {
		t.Errorf("got %v", err)
	}
}

// A burst of clients fills the controller's queue of connections; those that come then wait for their turn.
func TestAFullQueueIsWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	var queued []net.Conn
	defer func() {
		for _, c := range queued {
			c.Close()
		}
	}()
	for {
		c, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		if err != nil || len(queued) > 9 {
			t.Fatalf("%d connections, %v: the queue does not fill", len(queued), err)
		}
		queued = append(queued, c)
	}
	accepted := time.AfterFunc(50*time.Millisecond, func() {
		if n, _, err := syscall.Accept(fd); err == nil {
			syscall.Close(n)
		}
	})
	defer accepted.Stop()
	c, err := dialPatiently(context.Background(), &net.Dialer{Timeout: dialTimeout}, path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestOverlongSocketPathIsNamed(t *testing.T) {
	_, err := NewClient("/"+strings.Repeat("x", 200)).Status(context.Background(), "")
	if err == nil || errors.Is(err, ErrNoController) || !strings.Contains(err.Error(), "at most 107") {
		t.Errorf("got %v", err)
	}
}

func TestContextEndsACall(t *testing.T) {
	hold := make(chan struct{})
	c := serve(t, func(http.ResponseWriter, *http.Request) { <-hold })
	defer close(hold)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

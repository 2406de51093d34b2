package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
	"github.com/rscctl/rscctl/controller/datapath"
)

// serveFor serves h on a control socket as the controller does, and returns a client and the socket's path.
func serveFor(t *testing.T, h http.Handler, may access) (*api.Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenControl(path, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	f := &front{handler: h, log: slog.New(slog.DiscardHandler), who: func(*net.UnixConn) peer { return peer{access: may} }}
	go func() { done <- f.serve(ctx, l) }()
	client := api.NewClient(l.Path())
	t.Cleanup(func() {
		client.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return client, path
}

// A client can tell what went wrong by errors.Is, whatever the words are.
func TestEverySentinelCrossesTheControlSocket(t *testing.T) {
	var fail error
	h := http.NewServeMux()
	h.HandleFunc("GET /v1/status", query(func(*http.Request) (any, error) { return nil, fail }))
	c, _ := serveFor(t, h, mayWrite)
	sentinels := []error{ErrHeld, ErrTaken, ErrLimit, ErrUnknownVM, ErrUnknownIface, ErrFiltered, ErrUsage, ErrWorker, ErrMTU, ErrNotSaved, api.ErrPermission}
	for _, want := range sentinels {
		fail = fmt.Errorf("status: eth1: %w: do this: %w", want, io.ErrUnexpectedEOF)
		_, err := c.Status(context.Background(), "")
		if !errors.Is(err, want) || err.Error() != fail.Error() {
			t.Errorf("sent %q, got %q (%T)", fail, err, err)
		}
		for _, other := range sentinels {
			if other != want && errors.Is(err, other) {
				t.Errorf("%v arrived as %v too", want, other)
			}
		}
	}
	for _, gone := range []error{datapath.ErrStuck, datapath.ErrStopped, datapath.ErrFault} {
		fail = fmt.Errorf("attach: eth1: worker 1: %w", gone)
		if _, err := c.Status(context.Background(), ""); !errors.Is(err, api.ErrWorker) || err.Error() != fail.Error() {
			t.Errorf("sent %q, got %v", fail, err)
		}
	}
	fail = coded{errors.New("state: no room"), ErrNotSaved}
	if _, err := c.Status(context.Background(), ""); !errors.Is(err, api.ErrNotSaved) || err.Error() != "state: no room" {
		t.Errorf("got %v", err)
	}
}

func TestTheRealRoutesAnswerWithCodes(t *testing.T) {
	ctl := offHost(t, t.TempDir())
	c, _ := serveFor(t, ctl.routes(), mayWrite)
	ctx := context.Background()
	for what, call := range map[string]struct {
		do   func() error
		want error
	}{
		"status of an unknown interface": {func() error { _, err := c.Status(ctx, "eth9"); return err }, api.ErrUnknownIface},
		"policy of an unknown VM":        {func() error { _, err := c.GetPolicy(ctx, "x"); return err }, api.ErrUnknownVM},
		"flows by a wrong key":           {func() error { _, err := c.Flows(ctx, api.FlowsQuery{Sort: "colour"}); return err }, api.ErrUsage},
		"detach of an unknown interface": {func() error { _, err := c.Detach(ctx, api.DetachRequest{Iface: "eth9"}); return err }, api.ErrUnknownIface},
		"attach of nothing":              {func() error { _, err := c.Attach(ctx, api.AttachRequest{}); return err }, api.ErrUsage},
	} {
		if err := call.do(); !errors.Is(err, call.want) {
			t.Errorf("%s: %v, want %v", what, err, call.want)
		}
	}
}

func TestAPeerWithoutRightsIsToldSo(t *testing.T) {
	c, _ := serveFor(t, http.NewServeMux(), mayNothing)
	if _, err := c.Status(context.Background(), ""); !errors.Is(err, api.ErrPermission) || !strings.Contains(err.Error(), "group") {
		t.Errorf("got %v", err)
	}
}

// A member of the socket's group may look, and neither change anything nor read what VMs send.
func TestWhoMayLookSeesNoFrames(t *testing.T) {
	c, _ := serveFor(t, offHost(t, t.TempDir()).routes(), mayRead)
	ctx := context.Background()
	if _, err := c.Status(ctx, ""); err != nil {
		t.Errorf("status: %v", err)
	}
	if _, err := c.Capture(ctx, api.CaptureQuery{VM: "x"}); !errors.Is(err, api.ErrPermission) {
		t.Errorf("capture: %v", err)
	}
	if _, err := c.Detach(ctx, api.DetachRequest{Iface: "x"}); !errors.Is(err, api.ErrPermission) {
		t.Errorf("detach: %v", err)
	}
}

// A fault of ours in a request is said to who asked, and the next request is answered.
func TestAFaultCostsOneRequest(t *testing.T) {
	h := http.NewServeMux()
	calls := 0
	h.HandleFunc("GET /v1/status", query(func(*http.Request) (any, error) {
		if calls++; calls == 1 {
			panic("boom")
		}
		return api.Status{PID: 7}, nil
	}))
	c, _ := serveFor(t, h, mayWrite)
	var e *api.Error
	if _, err := c.Status(context.Background(), ""); !errors.As(err, &e) || e.Code != api.CodeFailed || !strings.Contains(err.Error(), "report it") {
		t.Errorf("got %v", err)
	}
	if st, err := c.Status(context.Background(), ""); err != nil || st.PID != 7 {
		t.Errorf("then %+v, %v", st, err)
	}
}

func TestMalformedRequestsAreUsageErrors(t *testing.T) {
	_, socket := serveFor(t, offHost(t, t.TempDir()).routes(), mayWrite)
	web := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	defer web.CloseIdleConnections()
	for name, body := range map[string]string{
		"no JSON": "hello", "empty": "", "an unknown field": `{"vm":"a","colour":1}`, "two of them": `{} {}`,
		"too long": `{"vm":"` + strings.Repeat("x", maxRequest) + `"}`,
	} {
		resp, err := web.Post("http://rscctl/v1/policy", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !bytes.Contains(text, []byte(`{"error":{"code":"usage","message":"request: `)) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, text)
		}
	}
}

// A parameter that cannot be read, or that two values compete for, chooses nothing: the answer would be of another VM than the one meant.
func TestParametersThatCannotBeReadAreUsageErrors(t *testing.T) {
	_, socket := serveFor(t, offHost(t, t.TempDir()).routes(), mayWrite)
	web := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	defer web.CloseIdleConnections()
	for query, want := range map[string]string{
		"/v1/stats?vm=a;b": "semicolon", "/v1/stats?vm=%zz": "%zz", "/v1/stats?vm=a&vm=b": "2 times", "/v1/flows?limit=1&limit=1": "2 times", "/v1/config?;": "semicolon",
		"/v1/trace?vm=a&vm=b": "2 times", "/v1/capture?vm=a;side=guest": "semicolon", "/v1/status?ifac=a": "iface",
	} {
		resp, err := web.Get("http://rscctl" + query)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !bytes.Contains(text, []byte(`{"error":{"code":"usage","message":"`)) || !bytes.Contains(text, []byte(want)) {
			t.Errorf("%s: %d %s", query, resp.StatusCode, text)
		}
	}
}

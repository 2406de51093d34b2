package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

// DefaultSocket is where a controller listens when nothing else is asked for.
const DefaultSocket = "/run/rscctl/rscctl.sock"

// Limits of a conversation. A request answers within RequestTimeout unless its context ends sooner: attach may wait for a
// link that XDP flaps, everything else takes milliseconds.
const (
	dialTimeout    = 5 * time.Second
	retryDial      = 20 * time.Millisecond
	RequestTimeout = 60 * time.Second
	maxErrorBody   = 64 << 10
)

// ErrNoController means that nothing listens on the control socket: it is missing or nobody accepts on it.
var ErrNoController = errors.New("no controller")

// Client talks to one controller. It is safe for concurrent use and keeps no state but idle connections.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a client for the control socket at path. It does not connect.
func NewClient(path string) *Client {
	dialer := net.Dialer{Timeout: dialTimeout}
	return &Client{
		path: path,
		http: &http.Client{
			Timeout: RequestTimeout,
			Transport: &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return dialPatiently(ctx, &dialer, path)
				},
				MaxIdleConns: 1,
			},
		},
	}
}

// Dial connects to the control socket at path, for what HTTP alone does not do. Errors: ErrNoController, ErrPermission.
func Dial(path string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn, err := dialPatiently(ctx, &net.Dialer{Timeout: dialTimeout}, path)
	if err != nil {
		return nil, NewClient(path).explain(ctx, err)
	}
	return conn, nil
}

// dialPatiently tries again while the controller's queue of connections is full: a Unix socket then answers EAGAIN at once.
func dialPatiently(ctx context.Context, d *net.Dialer, path string) (net.Conn, error) {
	for end := time.Now().Add(d.Timeout); ; {
		conn, err := d.DialContext(ctx, "unix", path)
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(end) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(retryDial):
		}
	}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns the state of the controller, with iface "" of every interface.
func (c *Client) Status(ctx context.Context, iface string) (*Status, error) {
	return get[Status](ctx, c, "/v1/status", query{"iface": iface})
}

// Attach puts a VM on an interface, or with DryRun says what that would change.
func (c *Client) Attach(ctx context.Context, req AttachRequest) (*AttachResponse, error) {
	return post[AttachResponse](ctx, c, "/v1/attach", req)
}

// Detach takes one VM, or every VM, off an interface.
func (c *Client) Detach(ctx context.Context, req DetachRequest) (*DetachResponse, error) {
	return post[DetachResponse](ctx, c, "/v1/detach", req)
}

// FlowsQuery selects and orders flows. Empty fields do not select; a Limit of 0 means no limit.
type FlowsQuery struct {
	Iface, VM string
	Sort      FlowSort
	Limit     int
}

// Flows reads the flow map.
func (c *Client) Flows(ctx context.Context, q FlowsQuery) (*Flows, error) {
	v := query{"iface": q.Iface, "vm": q.VM, "sort": string(q.Sort)}
	if q.Limit > 0 {
		v["limit"] = strconv.Itoa(q.Limit)
	}
	return get[Flows](ctx, c, "/v1/flows", v)
}

// GetPolicy returns the policy of one VM.
func (c *Client) GetPolicy(ctx context.Context, vm string) (*PolicyResponse, error) {
	return get[PolicyResponse](ctx, c, "/v1/policy", query{"vm": vm})
}

// DefaultPolicy returns the policy that a VM gets when attach says nothing.
func (c *Client) DefaultPolicy(ctx context.Context) (*PolicyResponse, error) {
	return get[PolicyResponse](ctx, c, "/v1/policy", query{"default": "true"})
}

// SetPolicy changes or resets a policy and returns the one now in force.
func (c *Client) SetPolicy(ctx context.Context, req PolicyRequest) (*PolicyResponse, error) {
	return post[PolicyResponse](ctx, c, "/v1/policy", req)
}

// Stats returns the counters of one VM, with vm "" of every VM.
func (c *Client) Stats(ctx context.Context, vm string) (*Stats, error) {
	return get[Stats](ctx, c, "/v1/stats", query{"vm": vm})
}

// Config returns what the controller was told of every VM.
func (c *Client) Config(ctx context.Context) (*Config, error) {
	return get[Config](ctx, c, "/v1/config", nil)
}

type query map[string]string

func (q query) encode() string {
	v := url.Values{}
	for key, value := range q {
		if value != "" {
			v.Set(key, value)
		}
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}

func get[T any](ctx context.Context, c *Client, path string, q query) (*T, error) {
	return roundTrip[T](ctx, c, http.MethodGet, path+q.encode(), nil)
}

func post[T any](ctx context.Context, c *Client, path string, body any) (*T, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("client: encode request: %w", err)
	}
	return roundTrip[T](ctx, c, http.MethodPost, path, data)
}

func roundTrip[T any](ctx context.Context, c *Client, method, path string, body []byte) (*T, error) {
	// The host part is required by HTTP and read by nobody.
	req, err := http.NewRequestWithContext(ctx, method, "http://rscctl"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("client: request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return nil, ReadError(resp)
	}
	out := new(T)
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return nil, fmt.Errorf("answer of the controller at %s: %w", c.path, err)
	}
	return out, nil
}

// ReadError reads a refusal. The body is read, not closed.
func ReadError(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err != nil || json.Unmarshal(data, &e.ErrorBody) != nil || e.Message == "" {
		e.ErrorBody = ErrorBody{Code: CodeFailed, Message: "controller answered " + resp.Status}
	}
	return e
}

package metrics

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/netutil"
)

// ErrAddress is returned for an address that cannot be one.
var ErrAddress = errors.New("not an address: say [HOST]:PORT or PORT; without a host only this machine can scrape")

// connectionsAtOnce bounds what anybody who reaches the address takes of the controller's descriptors.
const connectionsAtOnce = 64

// Address is what address names, as HOST:PORT, or ErrAddress. Whoever reaches it may read, so without a host it is the loopback's.
func Address(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = "", address
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && port != "0" {
		return "", fmt.Errorf("metrics: %q: %w", address, ErrAddress)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// Listen listens for Server at what Address makes of address. The listener has a descriptor, which can be handed to another process.
func Listen(address string) (net.Listener, error) {
	at, err := Address(address)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", at)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w: choose another address with --metrics", err)
	}
	return l, nil
}

// Limit is l with a bound on what is open at a time, for Server.
func Limit(l net.Listener) net.Listener { return netutil.LimitListener(l, connectionsAtOnce) }

// Server answers GET /metrics with h. Slow and idle peers are let go.
func Server(h http.Handler) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "rscctl: see /metrics") })
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 2 * scrapeWithin,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
}

package demo

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// ends are two endpoints on the loopback interface; b listens.
func ends(t *testing.T) (a, b *endpoint, address string) {
	t.Helper()
	a, b = &endpoint{}, &endpoint{}
	t.Cleanup(func() { a.close(); b.close() })
	return a, b, ask(t, b, request{Op: "listen", Address: "127.0.0.1"}).Address
}

func ask(t *testing.T, e *endpoint, q request) *reply {
	t.Helper()
	r, err := e.do(&q)
	if err != nil {
		t.Fatalf("%s: %v", q.Op, err)
	}
	return r
}

func TestTransferReportsTheSameAtBothEnds(t *testing.T) {
	for _, sum := range []string{sumCRC, sumSHA} {
		for _, limit := range []int64{0, 1, writeLen + 1, 20 << 20} {
			a, b, address := ends(t)
			ask(t, b, request{Op: "receive", Flows: 3, Sum: sum})
			ask(t, a, request{Op: "send", Flows: 3, Sum: sum, Address: address, Bytes: limit, Seed: 1})
			op := "complete"
			if limit == 0 {
				time.Sleep(20 * time.Millisecond)
				op = "finish"
			}
			sent, got := ask(t, a, request{Op: op}), ask(t, b, request{Op: "received"})
			if len(sent.Streams) != 3 || !slices.Equal(sent.Streams, got.Streams) {
				t.Fatalf("%s, %d bytes: sent %+v, received %+v", sum, limit, sent.Streams, got.Streams)
			}
			var total int64
			for _, s := range got.Streams {
				total += s.Bytes
				if limit > 0 && s.Bytes != limit {
					t.Errorf("%s: %d bytes of %d", sum, s.Bytes, limit)
				}
			}
			if total != b.received.Load() {
				t.Errorf("counted %d of %d bytes", b.received.Load(), total)
			}
		}
	}
}

func TestStreamsOfAPatternDiffer(t *testing.T) {
	a, b := pattern(1), pattern(2)
	if slices.Equal(a, b) || !slices.Equal(a, pattern(1)) {
		t.Error("the seed does not decide the pattern")
	}
	if !slices.Equal(a[:writeLen], a[patternLen:]) {
		t.Error("the pattern does not go on with its beginning")
	}
}

func TestOperationsOutOfPlaceAreErrors(t *testing.T) {
	var e endpoint
	for _, q := range []request{{Op: "finish"}, {Op: "complete"}, {Op: "received"}, {Op: "receive", Flows: 1, Sum: sumCRC}} {
		if _, err := e.do(&q); !errors.Is(err, errNoTransfer) {
			t.Errorf("%s: %v", q.Op, err)
		}
	}
	if _, err := e.do(&request{Op: "fly"}); !errors.Is(err, errOp) {
		t.Error(err)
	}
}

func TestBrokenConnectionIsAnError(t *testing.T) {
	a, b, address := ends(t)
	ask(t, b, request{Op: "receive", Flows: 1, Sum: sumCRC})
	ask(t, a, request{Op: "send", Flows: 1, Sum: sumCRC, Address: address, Seed: 1})
	var conn *net.TCPConn
	for conn == nil {
		b.in.mu.Lock()
		if len(b.in.conns) > 0 {
			conn = b.in.conns[0]
		}
		b.in.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	_ = conn.SetLinger(0)
	conn.Close()
	if _, err := a.do(&request{Op: "complete"}); err == nil {
		t.Error("sender did not notice")
	}
	if _, err := b.do(&request{Op: "received"}); err == nil {
		t.Error("receiver did not notice")
	}
}

// echo answers every request with its Op as the address, and "fail" with two lines of error.
type echo struct{}

func (echo) do(q *request) (*reply, error) {
	if q.Op == "fail" {
		return nil, errors.New("one\ntwo")
	}
	return &reply{Address: q.Op}, nil
}
func (echo) close() error { return nil }

func TestServeAnswersLineByLineUntilTheEnd(t *testing.T) {
	in := strings.NewReader(`{"op":"a"}` + "\n" + `{"op":"fail"}` + "\n")
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- serve(echo{}, in, w)
		w.Close()
	}()
	var got []reply
	for s := bufio.NewScanner(r); s.Scan(); {
		var x reply
		if err := json.Unmarshal(s.Bytes(), &x); err != nil {
			t.Fatal(err)
		}
		got = append(got, x)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Address != "a" || got[1].Error != "one; two" {
		t.Errorf("replies %+v", got)
	}
	if err := serve(echo{}, strings.NewReader("{\n"), io.Discard); err == nil {
		t.Error("rubbish was accepted")
	}
}

func TestLogTailGivesTheLineThatMatters(t *testing.T) {
	tests := []struct{ log, want string }{
		{"", ""},
		{"one\ntwo\n", " (two)"},
		{"x\npanic: boom\n\ngoroutine 1\n", " (panic: boom)"},
		{strings.Repeat("x", 2*tailLen) + "\nlast", " (last)"},
	}
	for _, tt := range tests {
		var l tail
		for chunk := range slices.Chunk([]byte(tt.log), 100) {
			_, _ = l.Write(chunk)
		}
		if got := l.lastLine(); got != tt.want {
			t.Errorf("%.20q: %q, want %q", tt.log, got, tt.want)
		}
	}
}

// A transfer that is broken off ends at once, whatever lies in the sockets, and the next one on the same sockets is whole.
func TestABrokenOffTransferLeavesNothingToTheNext(t *testing.T) {
	var from, to endpoint
	defer from.close()
	defer to.close()
	r, err := to.do(&request{Op: "listen", Address: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(e *endpoint, q request) *reply {
		t.Helper()
		q.Sum, q.Address = sumCRC, r.Address
		got, err := e.do(&q)
		if err != nil {
			t.Fatalf("%s: %v", q.Op, err)
		}
		return got
	}
	for range 3 {
		ask(&to, request{Op: "receive", Flows: 20})
		ask(&from, request{Op: "send", Flows: 16}) // four that never come
		ask(&from, request{Op: "abandon"})
		ask(&to, request{Op: "abandon"})
	}
	ask(&to, request{Op: "receive", Flows: 2})
	ask(&from, request{Op: "send", Flows: 2, Bytes: 1 << 20})
	sent, got := ask(&from, request{Op: "complete"}), ask(&to, request{Op: "received"})
	if !slices.Equal(sent.Streams, got.Streams) || len(got.Streams) != 2 || got.Streams[0].Bytes != 1<<20 {
		t.Errorf("sent %+v, received %+v", sent.Streams, got.Streams)
	}
}

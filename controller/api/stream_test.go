package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"reflect"
	"testing"
)

func TestFlowFilters(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::2")
	for text, want := range map[string]FlowFilter{
		"":                               {},
		"10.0.0.1":                       {A: FlowEnd{Addr: a}},
		":443":                           {A: FlowEnd{Port: 443}},
		" 10.0.0.1:80 ":                  {A: FlowEnd{a, 80}},
		"fd00::2":                        {A: FlowEnd{Addr: b}},
		"[fd00::2]":                      {A: FlowEnd{Addr: b}},
		"[fd00::2]:443,10.0.0.1":         {FlowEnd{b, 443}, FlowEnd{Addr: a}},
		"10.0.0.1:43210 > [fd00::2]:443": {FlowEnd{a, 43210}, FlowEnd{b, 443}},
		"::ffff:10.0.0.1":                {A: FlowEnd{Addr: a}},
		":1,:65535":                      {FlowEnd{Port: 1}, FlowEnd{Port: 65535}},
	} {
		if got, err := ParseFlowFilter(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		" ", ",", "10.0.0.1,", ",:443", ":0", ":65536", ":-1", ":+1", "10.0.0.1:", ":", "443", "10.0.0", "10.0.0.1:80:90", "[10.0.0.1]:80", "[fd00::2", "[fd00::2]443", "[fd00::2]:", "[]:80",
		"fd00::2%eth0", "a,b,c", "10.0.0.1,10.0.0.2,10.0.0.3", "web1", "10.0.0.1 10.0.0.2", "10.0.0.0/8", "\x00",
	} {
		if got, err := ParseFlowFilter(text); !errors.Is(err, ErrUsage) || got != (FlowFilter{}) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func FuzzParseFlowFilter(f *testing.F) {
	f.Add("[fd00::2]:443,10.0.0.1")
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := ParseFlowFilter(text); err != nil && (!errors.Is(err, ErrUsage) || got != FlowFilter{}) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	})
}

func sampleBlocks() []CaptureBlock {
	return []CaptureBlock{
		{Kind: BlockFrame, Deed: 4, Reason: 9, ToWire: true, Queue: 65535, Len: 65000, Packets: 45, Segments: 44, TimeNS: 1 << 60, Hdr: VirtioHeader{1, 2, 3, 4, 5, 6, 7}, Data: bytes.Repeat([]byte{7}, 1000)},
		{Kind: BlockLost, Count: 1 << 50, Data: []byte{}},
		{Kind: BlockEnd, Data: []byte("the end")},
	}
}

// A block is read as it was written, and a stream that is cut anywhere is an error and nothing else.
func TestBlocksAreReadAsWritten(t *testing.T) {
	var all []byte
	for _, k := range sampleBlocks() {
		all = k.Append(all)
	}
	in := bytes.NewReader(all)
	for _, want := range sampleBlocks() {
		var got CaptureBlock
		if err := readBlock(in, &got, make([]byte, 10)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("read %+v, %v", got, err)
		}
	}
	for n := range len(all) {
		in, got, err := bytes.NewReader(all[:n]), CaptureBlock{}, error(nil)
		for err == nil {
			err = readBlock(in, &got, nil)
		}
		if err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

func FuzzReadBlock(f *testing.F) {
	for _, k := range sampleBlocks() {
		f.Add(k.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var k CaptureBlock
		if readBlock(bytes.NewReader(b), &k, nil) == nil && !bytes.Equal(k.Append(nil)[blockSize:], b[blockSize:blockSize+len(k.Data)]) {
			t.Errorf("%x became %+v", b, k)
		}
	})
}

// A stream that ends says why; one that is cut is an end too; the caller's own end is his.
func TestAStreamsEndIsTold(t *testing.T) {
	head := []byte(`{"schema":2,"vm":"v","iface":"i"}` + "\n")
	end := sampleBlocks()[2]
	for path, stream := range map[string][]byte{
		"end":  end.Append(head),
		"cut":  append(head, 1, 2, 3),
		"kind": append(head, make([]byte, blockSize)...),
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(stream) })
		s, err := c.Capture(context.Background(), CaptureQuery{VM: "v"})
		if err != nil {
			t.Fatal(err)
		}
		var k CaptureBlock
		if err := s.Next(&k); !errors.Is(err, ErrEnded) || path == "end" && err.Error() != "the stream has ended: the end" {
			t.Errorf("%s: %v", path, err)
		}
		s.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, `{"event":"begin"}`)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	if err := c.Trace(ctx, TraceQuery{VM: "v"}, func(*TraceEvent) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if err := c.Trace(context.Background(), TraceQuery{VM: "v"}, func(*TraceEvent) error { return io.ErrShortWrite }); err != io.ErrShortWrite {
		t.Errorf("the caller's error: %v", err)
	}
}

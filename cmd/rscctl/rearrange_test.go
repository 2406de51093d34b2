package main

import (
	"io"
	"strings"
	"testing"
)

func TestFlagsMayStandAnywhere(t *testing.T) {
	app := newApp(streams{out: io.Discard, err: io.Discard})
	for _, tt := range []struct{ in, want string }{
		{"attach eth0 --vm a", "attach --vm=a -- eth0"},
		{"attach --vm a eth0", "attach --vm=a -- eth0"},
		{"--vm a attach eth0", "attach --vm=a -- eth0"},
		{"attach --vm=a eth0 --connect", "attach --vm=a --connect -- eth0"},
		{"attach --connect eth0", "attach --connect -- eth0"},
		{"attach -vm a eth0", "attach --vm=a -- eth0"},
		{"flows -o json", "flows --output=json"},
		{"policy set web --hold 0", "policy set --hold=0 -- web"},
		{"policy --hold 0 set web", "policy set --hold=0 -- web"},
		{"replay --features -tso6 in.pcap", "replay --features=-tso6 -- in.pcap"},
		{"replay -", "replay -- -"},
		{"replay -w out.pcap -- --json", "replay --write=out.pcap -- --json"},
		{"attach --vm -- eth0", "attach --vm=-- -- eth0"},
		{"policy set web --exclude-port 1 --exclude-port 2", "policy set --exclude-port=1 --exclude-port=2 -- web"},
		{"observe vnet0 --seconds 5 vnet1 -o json", "observe --seconds=5 --output=json -- vnet0 vnet1"},
		{"--all observe", "observe --all"},
		{"attach eth0 --help", "attach --help"},
		{"help attach", "attach --help"}, {"help policy set", "policy set --help"}, {"help", "help"},
		{"--version", "--version"},
	} {
		got, err := rearrange(app, strings.Fields(tt.in))
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%s: got %s, %v; want %s", tt.in, strings.Join(got, " "), err, tt.want)
		}
	}
}

package main

import (
	"testing"
	"time"
)

func TestFiguresCarryUnits(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{size(0), "0 B"}, {size(999), "999 B"}, {size(1000), "1.00 kB"}, {size(999_999), "1.00 MB"}, {size(1_869_134_438), "1.87 GB"},
		{size(15_140_000), "15.1 MB"}, {size(1 << 63), "9223 PB"}, {bitrate(1.495e9), "1.50 Gbit/s"}, {bitrate(0.5), "0.50 bit/s"},
		{grouped(0), "0"}, {grouped(999), "999"}, {grouped(1000), "1,000"}, {grouped(1234567), "1,234,567"},
		{percent(1, 3), "33.3%"}, {percent(0, 0), "-"},
		{duration(0), "0"}, {duration(1), "1 ns"}, {duration(50 * time.Microsecond), "50 us"}, {duration(1250 * time.Microsecond), "1.25 ms"},
		{duration(999_999), "1000 us"}, {duration(12345 * time.Millisecond), "12.3 s"}, {duration(-1), "0"},
		{duration(3*time.Minute + 5*time.Second), "3m5s"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

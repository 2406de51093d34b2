package vhost

import (
	"fmt"
	"testing"
	"time"
)

func TestTenLinesOfAKindAMinuteAndACountOfTheRest(t *testing.T) {
	now := time.Unix(1000, 0)
	l := LogLimit{clock: func() time.Time { return now }}
	said := func(kind string, n int) (lines int, left uint64) {
		for range n {
			if more, ok := l.Allow(kind); ok {
				lines++
				left += more
			}
		}
		return lines, left
	}
	if lines, left := said("a", 10000); lines != 10 || left != 0 {
		t.Errorf("first minute: %d lines, %d told", lines, left)
	}
	if lines, left := said("b", 3); lines != 3 || left != 0 {
		t.Errorf("another kind: %d lines, %d told", lines, left)
	}
	now = now.Add(59 * time.Second)
	if lines, _ := said("a", 10); lines != 0 {
		t.Errorf("still the first minute: %d lines", lines)
	}
	now = now.Add(time.Second)
	if lines, left := said("a", 50); lines != 10 || left != 10000 {
		t.Errorf("second minute: %d lines, %d told", lines, left)
	}
	if n := l.Left(); n != 40 {
		t.Errorf("%d left to tell", n)
	}
	if n := l.Left(); n != 0 {
		t.Errorf("%d told twice", n)
	}
}

func TestKindsAreBounded(t *testing.T) {
	var l LogLimit
	lines := 0
	for i := range 10000 {
		if _, ok := l.Allow(fmt.Sprint(i)); ok {
			lines++
		}
	}
	if len(l.kinds) > logKinds+1 || lines > logKinds+logLines {
		t.Errorf("%d kinds, %d lines", len(l.kinds), lines)
	}
}

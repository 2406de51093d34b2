package top

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/rscctl/rscctl/controller/api"
)

func TestScreensAreStable(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {20, 10}, {200, 60}, {40, 15}} {
		m, w := busyModel(Options{})
		golden(t, fmt.Sprintf("%dx%d", size[0], size[1]), text(m.Screen(size[0], size[1], w.at)))
	}
	m, w := busyModel(Options{ASCII: true})
	m.Key("enter", "", w.at)
	golden(t, "details-80x24", text(m.Screen(80, 24, w.at)))
	m, w = busyModel(Options{})
	m.Key("tab", "", w.at)
	golden(t, "queues-20x10", text(m.Screen(20, 10, w.at)))
	m, w = busyModel(Options{Filter: "DB"})
	m.Miss(w.at, errors.New("no controller: /run/rscctl/rscctl.sock"))
	golden(t, "gone-80x24", text(m.Screen(80, 24, w.at.Add(12*time.Second))))
	golden(t, "gone-20x10", text(m.Screen(20, 10, w.at.Add(12*time.Second))))
}

// Whatever the size, whatever is typed and whatever the names hold, no line is wider than the screen, there are no more lines than it
// has, and nothing in them moves the cursor.
func TestNoLineIsWiderThanTheScreen(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", strings.Repeat("long-name-", 7), "日本語のとても長い名前の仮想機械です", "e\x1b[31mvil\r\n", "", "x\u0301\u0301y", "\xff\xfe"}
	keys := []string{"enter", "tab", "p", "s", "r", "/", "esc", "up", "down", "pgdown", "end", "home", "x", "backspace", "日"}
	for range 300 {
		w := newWorld(names...)
		w.status.Interfaces[0].Ports[1].Health = api.Health{State: api.HealthDegraded, Reasons: []string{strings.Repeat("日本 word\t", 20)}}
		m := New(Options{ASCII: r.IntN(2) == 0})
		for range r.IntN(4) {
			m.See(w.look())
			w.at = w.at.Add(time.Second)
			w.bulk(r.IntN(len(names)), r.Uint64N(1<<40))
			w.worked("eth0/0", time.Duration(r.Int64N(2e9)), r.Uint64N(1<<50), r.Uint64N(1<<50))
		}
		if r.IntN(2) == 0 {
			m.Miss(w.at, errors.New("a\x1b[2Jb\nc"))
		}
		for range r.IntN(8) {
			k := keys[r.IntN(len(keys))]
			m.Key(k, k, w.at)
		}
		width, height := r.IntN(120), r.IntN(40)
		lines := m.Screen(width, height, w.at)
		if len(lines) > height {
			t.Fatalf("%d lines on a screen of %d", len(lines), height)
		}
		for _, l := range lines {
			s := l.String()
			if n := l.width(); n > width {
				t.Fatalf("%d cells on a screen of %d: %q", n, width, s)
			}
			if strings.ContainsFunc(s, unicode.IsControl) {
				t.Fatalf("control characters in %q", s)
			}
		}
	}
}

// After one look nothing is known of any rate, also not in sum.
func TestOneLookHasNoSums(t *testing.T) {
	m := New(Options{})
	w := newWorld("web")
	m.See(w.look())
	if s := text(m.Screen(80, 24, w.at)); !strings.Contains(s, "1 VM  -bit/s  - lost/s  CPU -  - packets/s") {
		t.Error(s)
	}
}

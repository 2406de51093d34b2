package vhost

import (
	"sync"
	"time"
)

// What a LogLimit lets through.
const (
	logLines  = 10          // of one kind
	logWindow = time.Minute // in this time
	logKinds  = 64          // kinds that are told apart; further ones share one
)

// LogLimit bounds the lines that somebody can provoke: a front-end that connects
// and fails ten thousand times a second must not fill the disk, nor bury what else
// the log says. Have one for each such party. Safe for concurrent use; the zero
// value is ready.
type LogLimit struct {
	mu    sync.Mutex
	kinds map[string]*logKind
	clock func() time.Time // nil means time.Now
}

// logKind is what was said of one kind since since.
type logKind struct {
	since time.Time
	lines int
	left  uint64 // lines left out and not yet told
}

// Allow says whether a line of that kind may be written now: 10 a minute may. If so,
// left is how many were left out before it, for the line to tell. A kind is a text
// of the caller's own, never the other party's.
func (l *LogLimit) Allow(kind string) (left uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[kind]
	if k == nil {
		if l.kinds == nil {
			l.kinds = map[string]*logKind{}
		}
		if len(l.kinds) >= logKinds {
			kind = ""
		}
		if k = l.kinds[kind]; k == nil {
			k = new(logKind)
			l.kinds[kind] = k
		}
	}
	now := time.Now()
	if l.clock != nil {
		now = l.clock()
	}
	if k.lines == 0 || now.Sub(k.since) >= logWindow {
		k.since, k.lines = now, 0
	}
	if k.lines == logLines {
		k.left++
		return 0, false
	}
	k.lines++
	left, k.left = k.left, 0
	return left, true
}

// Left is how many lines of all kinds were left out and not told yet, for a last
// line. They count as told then.
func (l *LogLimit) Left() (left uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.kinds {
		left += k.left
		k.left = 0
	}
	return left
}

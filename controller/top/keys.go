package top

import (
	"slices"
	"time"
)

// Key does what a key asks for. name is the key's ("up", "enter", "ctrl+c"), text what it types, if anything. It tells whether the
// screen is to be left.
func (m *Model) Key(name, text string, now time.Time) (quit bool) {
	if name == "ctrl+c" {
		return true
	}
	if m.typing {
		m.typed(name, text)
		return false
	}
	switch name {
	case "q":
		return true
	case "esc":
		m.detail, m.filter = false, ""
	case "enter":
		m.detail = !m.detail && !m.onQueues
	case "tab":
		m.onQueues, m.detail = !m.onQueues, false
	case "p", "space":
		m.Pause(now)
	case "/":
		m.typing, m.detail = true, false
	case "s":
		m.Sort(Keys[(slices.Index(Keys, m.sort)+1)%len(Keys)])
	case "r":
		m.Sort(m.sort)
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-10)
	case "pgdown":
		m.move(10)
	case "home", "g":
		m.move(-1 << 20)
	case "end", "G":
		m.move(1 << 20)
	}
	return false
}

// longestFilter is more than the longest name.
const longestFilter = 64

// typed takes a key while the filter is being typed. What is there already is in force.
func (m *Model) typed(name, text string) {
	switch name {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, m.filter = false, ""
	case "backspace":
		if r := []rune(m.filter); len(r) > 0 {
			m.filter = string(r[:len(r)-1])
		}
	default:
		if len(m.filter)+len(text) <= longestFilter {
			m.filter += clean(text)
		}
	}
}

// move moves the cursor by so many rows. It stays on the VM or the queue that it is on, wherever that goes.
func (m *Model) move(by int) {
	var names []string
	table := 0
	if m.onQueues {
		table = 1
		for _, q := range m.Queues() {
			names = append(names, q.Name)
		}
	} else {
		for _, v := range m.VMs() {
			names = append(names, v.Name)
		}
	}
	if len(names) == 0 {
		return
	}
	at := max(0, slices.Index(names, m.cursor[table]))
	m.cursor[table] = names[max(0, min(len(names)-1, at+by))]
}

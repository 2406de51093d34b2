package near

import "testing"

func TestTheWordThatWasMeant(t *testing.T) {
	verbs := []string{"run", "attach", "detach", "status", "stats", "flows", "policy", "observe", "doctor"}
	for _, c := range []struct {
		word  string
		known []string
		want  string
	}{
		{"atach", verbs, "attach"}, {"detatch", verbs, "detach"}, {"stast", verbs, "stats"}, {"STATUS", verbs, "status"}, {"polisy", verbs, "policy"},
		{"flow", verbs, "flows"}, {"web2", []string{"db", "web1"}, "web1"}, {"eht0", []string{"eth0", "lo"}, "eth0"}, {"vhostuser", []string{"vhost-user", "vm"}, "vhost-user"},
		{"web1", []string{"web3", "web2"}, "web2"}, // of equals the first, whatever their order
		{"frobnicate", verbs, ""}, {"", verbs, ""}, {"x", nil, ""}, {"Ж", []string{"Ц"}, ""}, {"a b", []string{"a c"}, "a c"},
	} {
		if got := Word(c.word, c.known); got != c.want {
			t.Errorf("%q: %q, want %q", c.word, got, c.want)
		}
	}
	if got := Hint("atach", verbs); got != "did you mean attach? " {
		t.Errorf("%q", got)
	}
	if got := Hint("frobnicate", verbs); got != "" {
		t.Errorf("%q", got)
	}
}

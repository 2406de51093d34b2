package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/test/netnstest"
)

// written puts what a verb prints into a file.
func written(t *testing.T, args ...string) (path, text string) {
	t.Helper()
	code, out, errs := rscctl(t, args...)
	if code != exitDone || errs != "" {
		t.Fatalf("%v: exit %d, %s", args, code, errs)
	}
	path = filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(path, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
	return path, out
}

// need skips where a program is missing: test/vm/setup.sh package installs it.
func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		netnstest.Skip(t, "the program "+program+" (test/vm/setup.sh package)")
	}
}

func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
	return string(out)
}

// What each shell offers for a line: in yes a word of it, in no one that it must not have.
func TestShellsCompleteVerbsFlagsAndValues(t *testing.T) {
	lines := map[string]struct{ yes, no string }{
		"rscctl at":                         {"attach", "detach"},
		"rscctl policy ":                    {"set", "attach"},
		"rscctl policy set web --coal":      {"--coalesce", "--hold"},
		"rscctl attach --output ":           {"json", "--vm"},
		"rscctl run --log-level ":           {"debug", "--state"},
		"rscctl policy set web --coalesce ": {"off", "--ipv4"},
		"rscctl status ":                    {"lo", "--output"},
		"rscctl attach lo --vm ":            {"", "lo"},
		"rscctl completion ":                {"", "attach"},
	}
	ask := map[string]func(t *testing.T, script, line string) string{
		"bash": func(t *testing.T, script, line string) string {
			output(t, "bash", "-n", script)
			return output(t, "bash", "-c", `set -u; source "$1"; COMP_WORDS=($2); [[ $2 != *" " ]] || COMP_WORDS+=(""); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); COMPREPLY=(); _rscctl; printf '%s\n' "${COMPREPLY[@]}"`, "-", script, line)
		},
		"fish": func(t *testing.T, script, line string) string {
			output(t, "fish", "--no-execute", script)
			var words []string
			for l := range strings.Lines(output(t, "fish", "-c", `source $argv[1]; complete -C $argv[2]`, script, line)) {
				word, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
				words = append(words, word)
			}
			return strings.Join(words, "\n")
		},
		// zsh's completion system needs a terminal: here its functions are ours, and say what they were given.
		"zsh": func(t *testing.T, script, line string) string {
			output(t, "zsh", "-n", script)
			return strings.Join(strings.Fields(output(t, "zsh", "-f", "-c", `
				_describe() { print -l -- ${(P)2%%:*} }
				compadd() { print -l -- ${(P)2} }
				_files() { }
				_arguments() {
					local cur=$words[CURRENT] prev=$words[CURRENT-1] a
					for a in "$@"; do [[ $a == ${prev}\[*:*:* ]] && { a=${a##*:}; [[ $a == \(* ]] && print -l -- ${=${a#\(}%\)} || eval $a; return }; done
					for a in "$@"; do [[ $cur == -* && $a == ${cur}* ]] && print -- ${a%%\[*}; [[ $cur != -* && $a == \*:* ]] && eval ${a##*:}; done
				}
				words=(${=2}); [[ $2 != *" " ]] || words+=(""); CURRENT=$#words; source $1; true`, "-", script, line)), "\n")
		},
	}
	for shell, words := range ask {
		t.Run(shell, func(t *testing.T) {
			need(t, shell)
			script, _ := written(t, "completion", shell)
			for line, want := range lines {
				got := "\n" + words(t, script, line) + "\n"
				if want.yes != "" && !strings.Contains(got, "\n"+want.yes+"\n") {
					t.Errorf("%q: no %s in %q", line, want.yes, got)
				}
				if prefix := line[strings.LastIndex(line, " ")+1:]; strings.Contains(got, "\n"+want.no+"\n") && (shell != "zsh" || prefix == "") {
					t.Errorf("%q: %s in %q", line, want.no, got)
				}
			}
		})
	}
	if code, _, errs := rscctl(t, "completion", "tcsh"); code != exitUsage || !strings.Contains(errs, "bash, zsh or fish") {
		t.Errorf("an unknown shell: exit %d, %s", code, errs)
	}
}

// The page formats without a warning and has every verb and flag of the tree, and none that is hidden.
func TestTheManualPageIsTheCommandTree(t *testing.T) {
	path, text := written(t, "man")
	for _, v := range verbs(newApp(streams{}))[1:] {
		if !strings.Contains(text, "\n.SS "+v.path+"\n") {
			t.Errorf("no verb %s", v.path)
		}
		for _, f := range v.flags {
			if f.usage == "" || !strings.Contains(text, roff(f.long())) {
				t.Errorf("%s: flag %s has no paragraph", v.path, f.long())
			}
		}
	}
	if strings.Contains(text, "demo\\-child") {
		t.Error("a hidden verb is shown")
	}
	need(t, "man")
	cmd := exec.Command("man", "--warnings=w", "-l", path)
	cmd.Env = append(os.Environ(), "MANWIDTH=80", "LC_ALL=C.UTF-8")
	var out, warnings strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &warnings
	if err := cmd.Run(); err != nil || warnings.Len() > 0 {
		t.Errorf("man: %v\n%s", err, &warnings)
	}
	if !strings.Contains(out.String(), "rscctl attach eth0 --vm web --mac") {
		t.Errorf("the example is not as it is typed in\n%s", out.String())
	}
}

// Each table of values names a flag that there is.
func TestChoicesAreThoseOfFlags(t *testing.T) {
	seen := map[string]bool{}
	for _, v := range verbs(newApp(streams{})) {
		for _, f := range v.flags {
			seen[f.names[0]] = true
		}
	}
	for name := range choices {
		if !seen[name] {
			t.Errorf("no flag --%s", name)
		}
	}
}

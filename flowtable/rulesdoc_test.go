package flowtable_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/flowtable"
)

// row of docs/rules.md: its names, and what its last column says.
type docRow struct {
	names []string
	tests []string
}

var quoted = regexp.MustCompile("`([^`]+)`")

func words(cell string) (list []string) {
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		list = append(list, m[1])
	}
	return list
}

// readRules returns the rows of docs/rules.md and its whole text.
func readRules(t *testing.T) ([]docRow, string) {
	t.Helper()
	text, err := os.ReadFile("../docs/rules.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []docRow
	held := false // the table has a column of tests
	for line := range strings.SplitSeq(string(text), "\n") {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		switch {
		case strings.HasPrefix(line, "| row |"):
			held = cells[len(cells)-1] == "held by"
		case strings.HasPrefix(line, "| `"):
			r := docRow{names: words(cells[0])}
			if held {
				if r.tests = words(cells[len(cells)-1]); len(r.tests) == 0 {
					t.Errorf("row %v names no test", r.names)
				}
			}
			rows = append(rows, r)
		}
	}
	if len(rows) < 60 {
		t.Fatalf("%d rows", len(rows))
	}
	return rows, string(text)
}

// testsOf returns the test functions of a folder, each with the strings in it: the names of its cases among them.
func testsOf(t *testing.T, dir string) map[string]map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d test files: %v", dir, len(files), err)
	}
	all := map[string]map[string]bool{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Test") {
				continue
			}
			cases := map[string]bool{}
			ast.Inspect(fn, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
					if s, err := strconv.Unquote(l.Value); err == nil {
						cases[s] = true
					}
				}
				return true
			})
			all[fn.Name.Name] = cases
		}
	}
	return all
}

func TestEveryRuleHasItsTest(t *testing.T) {
	rows, _ := readRules(t)
	here, parse := testsOf(t, "."), testsOf(t, "packet")
	seen := map[string]bool{}
	for _, r := range rows {
		for _, n := range r.names {
			if seen[n] {
				t.Errorf("row %s stands there twice", n)
			}
			seen[n] = true
		}
		for _, name := range r.tests {
			all := here
			if rest, ok := strings.CutPrefix(name, "packet."); ok {
				name, all = rest, parse
			}
			fn, sub, one := strings.Cut(name, "/")
			cases, ok := all[fn]
			if !ok || one && !cases[sub] {
				t.Errorf("row %v: there is no test %q", r.names, name)
			}
		}
	}
}

// Every reason is a row, so nobody looks for one in vain.
func TestEveryReasonIsARow(t *testing.T) {
	rows, _ := readRules(t)
	seen := map[string]bool{}
	for _, r := range rows {
		for _, n := range r.names {
			seen[n] = true
		}
	}
	for r := range flowtable.NumReasons {
		if name := flowtable.Reason(r).String(); !seen[name] {
			t.Errorf("reason %s is no row of docs/rules.md", name)
		}
	}
}

// The rows that the code's comments name exist.
func TestEveryRowThatTheCodeNamesExists(t *testing.T) {
	rows, text := readRules(t)
	seen := map[string]bool{}
	for _, r := range rows {
		for _, n := range r.names {
			seen[n] = true
		}
	}
	cite := regexp.MustCompile(`\b[Rr]ows? ([a-z_]+(?:, [a-z_]+)*)(?:[:;.)]|$)`)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(src), "\n") {
			_, comment, _ := strings.Cut(line, "//")
			for _, m := range cite.FindAllStringSubmatch(comment, -1) {
				for n := range strings.SplitSeq(m[1], ", ") {
					found++
					if !seen[n] {
						t.Errorf("%s:%d: no row %s", name, i+1, n)
					}
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("the code names %d rows only", found)
	}
	for _, m := range regexp.MustCompile("row `([a-z_]+)`").FindAllStringSubmatch(text, -1) {
		if m[1] != "x" && !seen[m[1]] {
			t.Errorf("docs/rules.md speaks of row %s, which it has not", m[1])
		}
	}
}

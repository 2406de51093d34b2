package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A figure in a document stands beside the command that measures it: each test and benchmark that such a command names, every one of several
// between bars, is one of the package that it names.
func TestEveryMeasurementNamesATestThatIsThere(t *testing.T) {
	commands := regexp.MustCompile(`go test ([^` + "`" + `\n]*)`)
	flags := regexp.MustCompile(`-(run|bench)[ =](?:'([^']*)'|(\S+))`)
	folders := regexp.MustCompile(` (\./[a-z][\w/]*)(?:\s|$)`)
	checked := 0
	for _, doc := range documents(t) {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range commands.FindAllStringSubmatch(string(text), -1) {
			command, _, _ := strings.Cut(c[1], "&&") // what follows names the same package's tests otherwise
			folder := folders.FindStringSubmatch(" " + command)
			if folder == nil {
				continue // PACKAGE, or all of them
			}
			names := testsOf(t, folder[1])
			for _, f := range flags.FindAllStringSubmatch(command, -1) {
				pattern, _, _ := strings.Cut(f[2]+f[3], "/")
				pattern = strings.ReplaceAll(pattern, `\|`, "|") // in a table
				kind := map[string]string{"run": "Test", "bench": "Benchmark"}[f[1]]
				for one := range strings.SplitSeq(pattern, "|") {
					if one == "XXX" || one == "." {
						continue
					}
					checked++
					if !regexp.MustCompile(`(?m)^func ` + kind + `\w*` + strings.TrimPrefix(one, kind) + `\w*\(`).MatchString(names) {
						t.Errorf("%s: go test %s: %s has no %s that %q matches", filepath.Base(doc), c[1], folder[1], kind, one)
					}
				}
			}
		}
	}
	if checked < 20 {
		t.Errorf("%d names: this looked at little", checked)
	}
}

// testsOf is the text of a folder's tests.
func testsOf(t *testing.T, folder string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", folder, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Errorf("%s has no tests: %v", folder, err)
	}
	var b strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	return b.String()
}

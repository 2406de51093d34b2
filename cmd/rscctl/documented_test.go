package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every command line of ours in the documents, in a block or in a code span, is one that the command line takes. Words in capitals are
// places for what the reader puts there; brackets and bars of a synopsis are left out.
func TestDocumentedCommandLinesAreTaken(t *testing.T) {
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(docs) == 0 {
		t.Fatal(err)
	}
	app := newApp(streams{out: io.Discard, err: io.Discard})
	lines := regexp.MustCompile("(?m)(?:^|`|\\| |'|\\$ )(?:sudo )?(?:bin/)?rscctl ([a-z-][^`'\\n|#]*)")
	found := 0
	for _, doc := range append(docs, "../../README.md") {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range lines.FindAllStringSubmatch(string(text), -1) {
			if strings.HasPrefix(m[1], "merges ") { // a sentence
				continue
			}
			if strings.ContainsAny(m[1], "[(<>…") && !strings.Contains(m[1], " > ") || strings.Contains(m[1], "...") {
				continue
			}
			words, _, _ := strings.Cut(m[1], " > ")
			found++
			if _, err := rearrange(app, strings.Fields(words)); err != nil {
				t.Errorf("%s: rscctl %s: %v", filepath.Base(doc), m[1], err)
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d command lines found", found)
	}
}

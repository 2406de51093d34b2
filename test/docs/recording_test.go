package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What README shows, and what it was made of: test/e2e, TestRecording.
const (
	recordedCast = "../../docs/demo.cast"
	recordedSVG  = "../../docs/demo.svg"
)

// The recording is of the commands that it is said to be of, small enough for a repository, and tells nothing of the machine that it was made on.
func TestTheRecordingIsOfWhatItSays(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{"/root", "/home/", "/tmp/", "root@", host + ":", "@" + host, repository}
	if parent := filepath.Dir(repository); parent != "/" { // it may have been made in another copy, beside this one
		secrets = append(secrets, parent+"/")
	}
	for _, path := range []string{recordedCast, recordedSVG} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		if len(b) > 256<<10 {
			t.Errorf("%s has %d bytes", path, len(b))
		}
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows %s", path, secret)
			}
		}
	}
	b, err := os.ReadFile(recordedCast)
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(b), "\n")
	if !strings.Contains(head, `"version": 2`) {
		t.Errorf("no asciicast of version 2: %s", head)
	}
	// What was printed: the text of its events.
	var out strings.Builder
	for _, m := range regexp.MustCompile(`(?m)^\[[0-9.]+, "o", "(.*)"\]$`).FindAllStringSubmatch(string(b), -1) {
		out.WriteString(m[1])
	}
	for _, want := range []string{"rscctl observe", "SEGMENTS/FRAME", "rscctl demo", "segments per data frame", "every stream arrived as it was sent"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the recording does not show %q", want)
		}
	}
}

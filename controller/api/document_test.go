package api

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const document = "../../docs/api.md"

// documented are the structs that cross the control socket, each under a heading of its own: but for those by which one controller hands over to the
// next, which are nobody else's.
var documented = []any{
	AttachRequest{}, AttachResponse{}, DetachRequest{}, DetachResponse{}, PolicyRequest{}, PolicyPatch{}, PolicyResponse{}, Policy{},
	Status{}, Waiting{}, Interface{}, Bond{}, BondMember{}, ForeignProgram{}, Queue{}, Port{}, Health{}, Flows{}, Flow{}, Stats{}, VMStats{}, Bucket{}, Config{}, TraceEvent{}, CaptureHead{}, errorJSON{},
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// section is what stands under a heading, up to the next one.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, "\n"+heading+"\n")
	if !found {
		t.Errorf("docs/api.md has no heading %q", heading)
		return ""
	}
	if at := regexp.MustCompile(`(?m)^#+ `).FindStringIndex(rest); at != nil {
		rest = rest[:at[0]]
	}
	return rest
}

// jsonType is a Go type as the document names what crosses the socket.
func jsonType(t reflect.Type) string {
	if t == reflect.TypeFor[time.Time]() {
		return "time"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return jsonType(t.Elem())
	case reflect.Bool:
		return "boolean"
	case reflect.Float64:
		return "number"
	case reflect.String:
		return "string"
	case reflect.Slice:
		return "list of " + jsonType(t.Elem())
	case reflect.Map:
		return "map of " + jsonType(t.Elem())
	case reflect.Struct:
		return t.Name()
	}
	return "integer"
}

// A struct's table has a row for each of its fields, with its type, and no other.
func TestEveryFieldIsInTheDocument(t *testing.T) {
	text := read(t, document)
	row := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| ([^|]*) \\| (.*) \\|$")
	for _, v := range documented {
		typ := reflect.TypeOf(v)
		name := typ.Name()
		if name == "errorJSON" {
			name = "Error"
		}
		want := map[string]string{}
		for i := range typ.NumField() {
			key, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			want[key] = jsonType(typ.Field(i).Type)
		}
		if name == "Stats" { // see compat.go
			want["verdicts"] = "map of integer"
		}
		for _, m := range row.FindAllStringSubmatch(section(t, text, "### "+name), -1) {
			switch has, there := want[m[1]]; {
			case !there:
				t.Errorf("%s: the document has a field %s, or has it twice, that the code has not", name, m[1])
			case has != m[2]:
				t.Errorf("%s.%s: the document says %q, the code %q", name, m[1], m[2], has)
			case strings.TrimSpace(m[3]) == "":
				t.Errorf("%s.%s: the document does not say what it is", name, m[1])
			}
			delete(want, m[1])
		}
		for key := range want {
			t.Errorf("%s.%s is not in the document", name, key)
		}
	}
}

// A struct that is new is in the list above, or is no part of the API for a reason.
func TestEveryStructIsInTheDocument(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	known := []string{"ReplaceRequest", "ReplaceAnswer"}
	for _, v := range documented {
		known = append(known, reflect.TypeOf(v).Name())
	}
	found := 0
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		for _, m := range regexp.MustCompile(`(?ms)^type (\w+) struct \{\n(.*?)^\}`).FindAllStringSubmatch(read(t, f), -1) {
			if !strings.Contains(m[2], "`json:") {
				continue
			}
			found++
			if !slices.Contains(known, m[1]) {
				t.Errorf("%s crosses the socket and is not in the document", m[1])
			}
		}
	}
	if found != len(known) {
		t.Errorf("%d structs with JSON, %d are listed", found, len(known))
	}
}

// sources are the files of the controller that serve requests.
func sources(t *testing.T) (text string) {
	t.Helper()
	files, err := filepath.Glob("../*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources: %v", err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f, "_test.go") {
			text += read(t, f)
		}
	}
	return text
}

// The table of requests has each path with its method, and the parameters of queries, and no other.
func TestEveryRequestIsInTheDocument(t *testing.T) {
	code := sources(t)
	code = strings.ReplaceAll(code, `"GET "+capturePath`, `"GET `+regexp.MustCompile(`capturePath += "([^"]+)"`).FindStringSubmatch(code)[1]+`"`)
	var routes, parameters []string
	for _, m := range regexp.MustCompile(`mux\.HandleFunc\("(\w+ /v1/\w+)"`).FindAllStringSubmatch(code, -1) {
		routes = append(routes, m[1])
	}
	for _, m := range regexp.MustCompile(`FormValue\("(\w+)"\)`).FindAllStringSubmatch(code, -1) {
		parameters = append(parameters, m[1])
	}
	text := section(t, read(t, document), "## Requests")
	var said, query []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+ /v1/\\w+)` \\| ([^|]*) \\|").FindAllStringSubmatch(text, -1) {
		said = append(said, m[1])
		for _, p := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(m[2], -1) {
			if strings.HasPrefix(m[1], "GET ") {
				query = append(query, p[1])
			}
		}
	}
	for _, list := range []*[]string{&routes, &parameters, &said, &query} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	if !slices.Equal(routes, said) {
		t.Errorf("the code has the requests %q, the document %q", routes, said)
	}
	if !slices.Equal(parameters, query) {
		t.Errorf("the code reads the parameters %q, the document has %q", parameters, query)
	}
	if len(routes) < 10 || len(parameters) < 8 {
		t.Errorf("%d requests, %d parameters: this looked at little", len(routes), len(parameters))
	}
}

// The table of errors has each code with its HTTP status, and no other.
func TestEveryCodeIsInTheDocument(t *testing.T) {
	want := []string{fmt.Sprintf("%s %d", CodeFailed, 500)}
	for _, k := range kinds {
		want = append(want, fmt.Sprintf("%s %d", k.code, k.status))
	}
	var said []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\d+) \\|").FindAllStringSubmatch(section(t, read(t, document), "## Errors"), -1) {
		said = append(said, m[1]+" "+m[2])
	}
	slices.Sort(want)
	slices.Sort(said)
	if !slices.Equal(want, said) {
		t.Errorf("the code has %q, the document %q", want, said)
	}
}

// The words that a field may have are all in the document.
func TestEveryWordOfAListIsInTheDocument(t *testing.T) {
	text := read(t, document)
	var words []string
	for _, p := range Profiles {
		words = append(words, string(p))
	}
	for _, s := range Sides {
		words = append(words, string(s))
	}
	for _, s := range FlowSorts {
		words = append(words, string(s))
	}
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ +(?:\w+) += "(\w[\w-]*)"`).FindAllStringSubmatch(read(t, "enums.go")+read(t, "health.go")+read(t, "queue.go")+read(t, "trace.go"), -1) {
		words = append(words, m[1])
	}
	if len(words) < 40 {
		t.Errorf("%d words: this looked at little", len(words))
	}
	for _, w := range words {
		if !strings.Contains(text, "`"+w+"`") {
			t.Errorf("%s is not in the document", w)
		}
	}
}

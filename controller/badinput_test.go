package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/rscctl/rscctl/controller/api"
)

// ask gives a request to the real routes, without the socket: a panic in them ends the test.
func ask(h http.Handler, method, target, body string) (status int, code api.Code, message string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, strings.NewReader(body)))
	var e api.ErrorBody
	if w.Code >= 400 {
		_ = json.Unmarshal(w.Body.Bytes(), &e)
	}
	return w.Code, e.Code, e.Message
}

// jsonFields are the names of a struct's fields as they are sent, those of a patch inside among them, each with its type.
func jsonFields(t reflect.Type, prefix string, out map[string]reflect.Type) {
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		kind := f.Type
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		if kind.Kind() == reflect.Struct {
			jsonFields(kind, prefix+name+".", out)
			continue
		}
		out[prefix+name] = kind
	}
}

// nested writes a.b = value as JSON.
func nested(path, value string) string {
	parts := strings.Split(path, ".")
	for i := len(parts) - 1; i >= 0; i-- {
		value = `{"` + parts[i] + `":` + value + `}`
	}
	return value
}

// Every field of every request with a value of another type is wrong usage, and the answer names the field.
func TestEveryFieldOfAnotherTypeIsNamed(t *testing.T) {
	h := offHost(t, t.TempDir()).routes()
	n := 0
	for path, kind := range map[string]reflect.Type{
		"/v1/attach": reflect.TypeFor[api.AttachRequest](), "/v1/detach": reflect.TypeFor[api.DetachRequest](), "/v1/policy": reflect.TypeFor[api.PolicyRequest](),
	} {
		fields := map[string]reflect.Type{}
		jsonFields(kind, "", fields)
		for name, k := range fields {
			wrong := []string{`{"a":1}`}
			switch k.Kind() {
			case reflect.String:
				wrong = append(wrong, "7", "true", "[]")
			case reflect.Bool:
				wrong = append(wrong, "7", `"true"`, "[]")
			case reflect.Slice:
				if wrong = append(wrong, "7", `"22"`, "[70000]", "[-1]", "[1.5]"); k.Elem().Kind() != reflect.String {
					wrong = append(wrong, `["22"]`)
				}
			default:
				wrong = append(wrong, `"7"`, "true", "1.5", "1e99", "99999999999999999999")
			}
			for _, v := range wrong {
				n++
				status, code, message := ask(h, "POST", path, nested(name, v))
				if status != http.StatusBadRequest || code != "usage" || !strings.Contains(message, name) || strings.Contains(message, "json:") || strings.Contains(message, "Go ") {
					t.Errorf("%s %s: %d %s %s", path, nested(name, v), status, code, message)
				}
			}
		}
	}
	if n < 100 {
		t.Errorf("only %d values were tried", n)
	}
}

// Values of the right type that no request can have are wrong usage, and the answer says what can be had.
func TestValuesOutOfRangeAreNamedWithTheirRange(t *testing.T) {
	c := offHost(t, t.TempDir())
	c.kinds = builtinKinds()
	h := c.routes()
	good := map[string]any{"iface": "nosuch0", "vm": "a", "mac": "52:54:00:00:00:01", "vhost_user": "/run/a.sock"}
	for _, tt := range []struct{ field, value, says string }{
		{"iface", `""`, "name one"}, {"vm", `""`, "64"}, {"vm", `"a\nb"`, "letters"}, {"mac", `"52:54"`, "52:54:00:12:34:56"}, {"mac", `"01:00:5e:00:00:01"`, "unicast"},
		{"mac", `"00:00:00:00:00:00"`, "unicast"}, {"mac", `"52:54:00:00:00:01:02:03"`, "52:54"}, {"vlan", "-1", "1 to 4094"}, {"vlan", "4095", "1 to 4094"},
		{"socket_mode", `"0999"`, "octal"}, {"socket_mode", `"7777"`, "octal"}, {"socket_mode", `"rw"`, "octal"}, {"socket_owner", `"nosuch-user:x"`, "QEMU"},
		{"socket_owner", `"root:nosuch-group"`, "QEMU"}, {"tap", `"vnet0"`, "either"},
		{"iface", `"eth0\u0000x"`, "no interface has such a name"}, {"iface", `"../eth0"`, "no interface has such a name"}, {"tap", `"vnet0\n"`, "no interface has such a name"},
		{"socket_owner", `":"`, "QEMU"}, {"socket_owner", `"-1:-1"`, "QEMU"}, {"vhost_user", `"a.sock"`, "from /"}, {"vhost_user", `"/run/a\u0000.sock"`, "visible"}, {"vhost_user", `"/run/a\u001b[31m"`, "visible"},
		{"macs", `["52:54"]`, "52:54:00:12:34:56"}, {"macs", `["01:00:5e:00:00:01"]`, "unicast"}, {"macs", `["00:00:00:00:00:00"]`, "unicast"},
		{"policy", `{"rate_tx":1}`, "8kbit to 1Tbit"}, {"policy", `{"rate_rx":1000000000000000}`, "8kbit to 1Tbit"}, {"policy", `{"burst_tx":5000}`, "8kbit"}, {"policy", `{"rate_rx":8000,"burst_rx":1}`, "1514"},
		{"ips", `["10.0"]`, "10.0.0.5"}, {"ips", `["10.0.0.5/24"]`, "10.0.0.0/24"}, {"ips", `["fe80::1%eth0"]`, "zone"}, {"ips", `["::ffff:10.0.0.5"]`, "10.0.0.5"},
		{"ips", `["224.0.0.1"]`, "no station"}, {"ips", `["::"]`, "no station"}, {"ips", `["10.0.0.5/33"]`, "no address"}, {"ips", `[""]`, "no address"},
		{"policy", `{"exclude_ports":[0]}`, "1 to 65535"}, {"queues", "[0]", "--xsk-map"}, {"xsk_map", `"/sys/fs/bpf/xsks"`, "--queue 0"}, {"xsk_map", `"xsks"`, "from /"},
		{"policy", `{"hold_ns":-1}`, "10ms"}, {"policy", `{"hold_ns":10000001}`, "10ms"}, {"policy", `{"max_bytes":1499}`, "1500 to 65535"}, {"policy", `{"max_bytes":65536}`, "1500 to 65535"},
		{"policy", `{"max_segments":1}`, "2 to"}, {"policy", `{"max_segments":-1}`, "2 to"}, {"policy", `{"profile":"lro"}`, "gro or rsc"}, {"policy", `{"profile":"off"}`, "gro or rsc"},
	} {
		req := map[string]any{}
		for k, v := range good {
			req[k] = v
		}
		req[tt.field] = json.RawMessage(tt.value)
		body, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		if status, code, message := ask(h, "POST", "/v1/attach", string(body)); status != http.StatusBadRequest || code != "usage" || !strings.Contains(message, tt.says) {
			t.Errorf("%s %s: %d %s %s", tt.field, tt.value, status, code, message)
		}
	}
	for target, says := range map[string]string{"/v1/flows?limit=many": "number", "/v1/flows?limit=-1": "number", "/v1/flows?sort=colour": "bytes, packets",
		"/v1/policy": "name one", "/v1/flows?ifcae=a": "did you mean iface? /v1/flows has iface, vm, sort, limit", "/v1/stats?iface=a": "unknown parameter", "/v1/config?x": "has none",
		"/v1/trace?vm=a&event=seal": "did you mean events?", "/v1/capture?vm=a&limit=1": "unknown parameter"} {
		if status, code, message := ask(h, "GET", target, ""); status != http.StatusBadRequest || code != "usage" || !strings.Contains(message, says) {
			t.Errorf("%s: %d %s %s", target, status, code, message)
		}
	}
	long := `{"vm":"` + strings.Repeat("x", maxRequest) + `"}`
	rec := httptest.NewRecorder()
	(&front{handler: h, log: c.log}).ServeHTTP(rec, httptest.NewRequest("POST", "/v1/attach", strings.NewReader(long)).WithContext(context.WithValue(t.Context(), peerKey{}, peer{access: mayWrite})))
	if !strings.Contains(rec.Body.String(), fmt.Sprintf("it is longer than %d bytes", maxRequest)) {
		t.Errorf("a long request: %d %s", rec.Code, rec.Body)
	}
	for _, r := range []struct{ method, target string }{{"GET", "/v1/attach"}, {"POST", "/v1/status"}, {"DELETE", "/v1/policy"}, {"GET", "/"}, {"GET", "/v2/status"}} {
		if status, _, _ := ask(h, r.method, r.target, "{}"); status != http.StatusMethodNotAllowed && status != http.StatusNotFound {
			t.Errorf("%s %s: %d", r.method, r.target, status)
		}
	}
}

// Whatever is sent to whatever path, the answer is JSON, is no fault of ours, and changes nothing of a host without VMs. (Attach only looks:
// the host's own interfaces have names that a fuzzer finds.)
func FuzzRequests(f *testing.F) {
	f.Add("POST", "/v1/policy", `{"vm":"a","patch":{"hold_ns":5}}`)
	f.Add("POST", "/v1/policy", `{"default":true,"patch":{"exclude_ports":[22]}}`)
	f.Add("POST", "/v1/detach", `{"iface":"lo"}`)
	f.Add("POST", "/v1/attach", `{"iface":"lo","vm":"a","mac":"52:54:00:00:00:01","tap":"vnet0","dry_run":true}`)
	f.Add("GET", "/v1/flows?limit=7&sort=vm&vm=a", "")
	f.Add("GET", "/v1/policy?default=true", "")
	f.Fuzz(func(t *testing.T, method, target, body string) {
		r, err := http.NewRequest(method, target, strings.NewReader(body))
		if err != nil || !strings.HasPrefix(target, "/v1/") || len(body) > maxRequest {
			t.Skip("no request of ours")
		}
		c := offHost(t, t.TempDir())
		c.kinds = builtinKinds()
		mux := http.NewServeMux()
		mux.HandleFunc("POST /v1/attach", command(c.log, func(req api.AttachRequest) (api.AttachResponse, error) {
			req.DryRun, req.Domain = true, ""
			return c.Attach(req)
		}))
		mux.Handle("/", c.routes())
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		switch w.Code {
		case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusTemporaryRedirect, http.StatusMovedPermanently: // the multiplexer's own
		default:
			if !json.Valid(w.Body.Bytes()) {
				t.Fatalf("%d %q", w.Code, w.Body)
			}
		}
		if len(c.uplinks) > 0 || len(c.waiting) > 0 {
			t.Fatal("something is attached")
		}
	})
}

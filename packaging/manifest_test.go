package packaging

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/rscctl/rscctl/controller/apply"
)

const manifest = "kubernetes/rscctl.yaml"

// Kubernetes' own types take the manifest, and no field is one that they do not have.
func TestKubernetesTakesTheManifest(t *testing.T) {
	need(t, "go")
	reader := filepath.Join(t.TempDir(), "manifest")
	run(t, "go", "-C", "../tools", "build", "-o", reader, "./manifest") // on its own: it may say what it downloads
	if got := run(t, reader, manifest); got != "Namespace rscctl\nConfigMap rscctl\nDaemonSet rscctl\n" {
		t.Errorf("%q", got)
	}
}

// document is what the tests read of a document of the manifest.
type document struct {
	Kind string            `yaml:"kind"`
	Data map[string]string `yaml:"data"` // of the ConfigMap
	Spec struct {
		Update struct {
			Type string `yaml:"type"`
		} `yaml:"updateStrategy"`
		Template struct {
			Spec pod `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

type pod struct {
	HostNetwork bool  `yaml:"hostNetwork"`
	HostPID     bool  `yaml:"hostPID"`
	HostIPC     bool  `yaml:"hostIPC"`
	Token       *bool `yaml:"automountServiceAccountToken"`
	Security    struct {
		Seccomp struct {
			Type string `yaml:"type"`
		} `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	Init       []any       `yaml:"initContainers"`
	Containers []container `yaml:"containers"`
	Volumes    []struct {
		Name     string `yaml:"name"`
		HostPath struct {
			Path string `yaml:"path"`
		} `yaml:"hostPath"`
	} `yaml:"volumes"`
}

type container struct {
	Command  []string `yaml:"command"`
	Args     []string `yaml:"args"`
	Security struct {
		Privileged *bool `yaml:"privileged"`
		Escalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnly   *bool `yaml:"readOnlyRootFilesystem"`
		Caps       struct {
			Drop []string `yaml:"drop"`
			Add  []string `yaml:"add"`
		} `yaml:"capabilities"`
		Seccomp any `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	Mounts []struct {
		Name string `yaml:"name"`
		Path string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
	Startup   probe `yaml:"startupProbe"`
	Readiness probe `yaml:"readinessProbe"`
	Liveness  probe `yaml:"livenessProbe"`
}

type probe struct {
	Exec struct {
		Command []string `yaml:"command"`
	} `yaml:"exec"`
}

func documents(t *testing.T) map[string]document {
	t.Helper()
	b, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]document{}
	for d := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var doc document
		if err := d.Decode(&doc); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out[doc.Kind] = doc
	}
}

// The pod has the capabilities of the service and no other right that a pod can be given, and sees of the host its network and three folders.
func TestThePodHasNoMoreThanTheService(t *testing.T) {
	set := documents(t)["DaemonSet"].Spec
	p := set.Template.Spec
	if len(p.Containers) != 1 || len(p.Init) > 0 {
		t.Fatalf("%d containers, %d before them", len(p.Containers), len(p.Init))
	}
	c := p.Containers[0]
	var service []string
	for _, name := range strings.Fields(strings.Join(settings(t)["CapabilityBoundingSet"], " ")) {
		service = append(service, strings.TrimPrefix(name, "CAP_"))
	}
	slices.Sort(service)
	slices.Sort(c.Security.Caps.Add)
	if !slices.Equal(service, c.Security.Caps.Add) || !slices.Equal(c.Security.Caps.Drop, []string{"ALL"}) {
		t.Errorf("capabilities %q without %q, those of the service are %q", c.Security.Caps.Add, c.Security.Caps.Drop, service)
	}
	for what, got := range map[string]*bool{
		"privileged": c.Security.Privileged, "privilege escalation": c.Security.Escalation, "service account's token": p.Token,
	} {
		if got == nil || *got {
			t.Errorf("%s is not forbidden", what)
		}
	}
	if c.Security.ReadOnly == nil || !*c.Security.ReadOnly {
		t.Error("the root file system can be written")
	}
	if !p.HostNetwork || p.HostPID || p.HostIPC {
		t.Errorf("namespaces of the host: network %t, PIDs %t, IPC %t", p.HostNetwork, p.HostPID, p.HostIPC)
	}
	if p.Security.Seccomp.Type != "RuntimeDefault" || c.Security.Seccomp != nil {
		t.Errorf("system calls are filtered by %q (%v)", p.Security.Seccomp.Type, c.Security.Seccomp)
	}
	var folders []string
	for _, v := range p.Volumes {
		if v.HostPath.Path == "" {
			continue
		}
		folders = append(folders, v.HostPath.Path)
		for _, m := range c.Mounts {
			if m.Name == v.Name && m.Path != v.HostPath.Path { // QEMU on the node is to find its socket where the controller says it is
				t.Errorf("%s of the host is %s in the pod", v.HostPath.Path, m.Path)
			}
		}
	}
	if want := []string{"/run/rscctl", "/var/lib/rscctl", "/sys/fs/bpf/rscctl"}; !slices.Equal(folders, want) {
		t.Errorf("folders of the host %q, want %q", folders, want)
	}
}

// The pod starts what the service starts, is asked how it is as an operator asks, and is not replaced unasked. Its configuration is one that the
// controller takes.
func TestThePodRunsAsTheServiceDoes(t *testing.T) {
	docs := documents(t)
	set := docs["DaemonSet"].Spec
	c := set.Template.Spec.Containers[0]
	if line := strings.Join(append(c.Command, c.Args...), " "); "/usr/bin"+line != settings(t)["ExecStart"][0] {
		t.Errorf("starts %q, the service %q", line, settings(t)["ExecStart"])
	}
	for name, p := range map[string]probe{"startup": c.Startup, "readiness": c.Readiness, "liveness": c.Liveness} {
		if !slices.Equal(p.Exec.Command, []string{"/rscctl", "status"}) {
			t.Errorf("%s: %q", name, p.Exec.Command)
		}
	}
	if set.Update.Type != "OnDelete" {
		t.Errorf("update strategy %q", set.Update.Type)
	}
	file := docs["ConfigMap"].Data[path.Base(c.Args[len(c.Args)-1])]
	if _, err := apply.Read(strings.NewReader(file)); err != nil {
		t.Errorf("its configuration: %v", err)
	}
}

// Command manifest reads Kubernetes manifests with the types of Kubernetes' own API, strictly: a field that they do not have, a value of another
// kind or a field that comes twice is an error, which a cluster would pass over.
//
//	go -C tools run ./manifest FILE...
//
// It prints kind and name of each document.
package main

import (
	"bytes"
	"fmt"
	"os"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	for _, path := range os.Args[1:] {
		if err := read(path); err != nil {
			fmt.Fprintf(os.Stderr, "manifest: %s: %v\n", path, err)
			os.Exit(1)
		}
	}
}

func read(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		var head struct {
			meta.TypeMeta `json:",inline"`
			Metadata      meta.ObjectMeta `json:"metadata"`
		}
		if err := yaml.Unmarshal(doc, &head); err != nil {
			return err
		}
		into, known := map[string]any{
			"v1 Namespace": new(core.Namespace), "v1 ConfigMap": new(core.ConfigMap), "apps/v1 DaemonSet": new(apps.DaemonSet),
		}[head.APIVersion+" "+head.Kind]
		if !known {
			return fmt.Errorf("a document of kind %q in %q: add its type to tools/manifest", head.Kind, head.APIVersion)
		}
		if err := yaml.UnmarshalStrict(doc, into); err != nil {
			return fmt.Errorf("%s %s: %w", head.Kind, head.Metadata.Name, err)
		}
		fmt.Println(head.Kind, head.Metadata.Name)
	}
	return nil
}

// Package multicall lets one binary carry several Kubernetes components and be the one that its first argument names.
package multicall

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Component is the main function of one component; it finds its own arguments in os.Args and returns an exit code.
type Component func() int

// Run becomes the component that os.Args names: `controlplane-up etcd --data-dir d` runs etcd with `--data-dir d`.
// A link to the binary that bears a component's name is that component, so that a folder of links serves
// programs that look for `kubectl` or `etcd` on a path.
func Run(components map[string]Component) {
	if run, ok := components[filepath.Base(os.Args[0])]; ok {
		os.Exit(run())
	}
	if len(os.Args) > 1 {
		if run, ok := components[os.Args[1]]; ok {
			os.Args = os.Args[1:]
			os.Exit(run())
		}
	}
	fmt.Fprintf(os.Stderr, "usage: %s COMPONENT [ARGUMENT ...]\ncomponents: %s\n", filepath.Base(os.Args[0]), names(components))
	os.Exit(2)
}

func names(components map[string]Component) string {
	var list []string
	for name := range components {
		list = append(list, name)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// Answers, for one cluster per line of JSON, which nodes pass the filters of kube-scheduler for one pod.
//
// The plugins are kube-scheduler's own, with their default configuration, on a snapshot made of the cluster.
// The answer is a JSON object: node name to an empty string, or to the plugin and reasons that block the node.
// tests/unit/test_kube_scheduler.py builds it inside the module of controlplane/.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	snapshots "k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/nodevolumelimits"
	"k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
)

var filters = []string{
	"NodeUnschedulable", "TaintToleration", "NodeAffinity", "NodePorts", "NodeResourcesFit", "VolumeRestrictions",
	"NodeVolumeLimits", "VolumeBinding", "VolumeZone", "PodTopologySpread", "InterPodAffinity",
}

type cluster struct {
	Nodes          []*v1.Node
	Pods           []*v1.Pod
	Incoming       *v1.Pod
	Namespaces     []*v1.Namespace
	Claims         []*v1.PersistentVolumeClaim
	Volumes        []*v1.PersistentVolume
	StorageClasses []*storagev1.StorageClass
	CSIDrivers     []*storagev1.CSIDriver
	CSINodes       []*storagev1.CSINode
	Capacities     []*storagev1.CSIStorageCapacity
}

func main() {
	metrics.Register()
	in, out := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for in.More() {
		var one cluster
		must(in.Decode(&one))
		must(out.Encode(answer(&one)))
	}
}

func answer(c *cluster) map[string]string {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client := fake.NewClientset()
	factory := informers.NewSharedInformerFactory(client, 0)
	core, storage := factory.Core().V1(), factory.Storage().V1()
	fill(core.Nodes().Informer(), c.Nodes)
	fill(core.Namespaces().Informer(), c.Namespaces)
	fill(core.PersistentVolumeClaims().Informer(), c.Claims)
	fill(core.PersistentVolumes().Informer(), c.Volumes)
	fill(storage.StorageClasses().Informer(), c.StorageClasses)
	fill(storage.CSIDrivers().Informer(), c.CSIDrivers)
	fill(storage.CSINodes().Informer(), c.CSINodes)
	fill(storage.CSIStorageCapacities().Informer(), c.Capacities)

	snapshot := snapshots.NewSnapshot(c.Pods, c.Nodes)
	profile := filterProfile()
	scheduler, err := runtime.NewFramework(ctx, plugins.NewInTreeRegistry(), &profile,
		runtime.WithClientSet(client), runtime.WithInformerFactory(factory),
		runtime.WithSnapshotSharedLister(snapshot), runtime.WithParallelism(1),
		runtime.WithSharedCSIManager(nodevolumelimits.NewCSIManager(storage.CSINodes().Lister())))
	must(err)

	verdicts := map[string]string{}
	state := framework.NewCycleState()
	some, status, _ := scheduler.RunPreFilterPlugins(ctx, state, c.Incoming)
	for _, node := range c.Nodes {
		if status.IsSuccess() && some != nil && !some.AllNodes() && !some.NodeNames.Has(node.Name) {
			verdicts[node.Name] = "left out by the node names in the pod's affinity"
			continue
		}
		verdict := status
		if status.IsSuccess() {
			info, err := snapshot.NodeInfos().Get(node.Name)
			must(err)
			verdict = scheduler.RunFilterPlugins(ctx, state, c.Incoming, info)
		}
		verdicts[node.Name] = ""
		if !verdict.IsSuccess() {
			verdicts[node.Name] = verdict.Plugin() + ": " + strings.Join(verdict.Reasons(), "; ")
		}
	}
	return verdicts
}

// filterProfile is the default profile with nothing but the filters (and what a profile must have).
func filterProfile() config.KubeSchedulerProfile {
	defaults, err := latest.Default()
	must(err)
	profile := defaults.Profiles[0]
	profile.SchedulerName = "default-scheduler"
	profile.Plugins = &config.Plugins{}
	arguments := profile.PluginConfig
	profile.PluginConfig = nil
	for _, name := range append([]string{"PrioritySort", "DefaultBinder"}, filters...) {
		enabled := &profile.Plugins.MultiPoint.Enabled
		*enabled = append(*enabled, config.Plugin{Name: name, Weight: 1})
		for _, argument := range arguments {
			if argument.Name == name {
				profile.PluginConfig = append(profile.PluginConfig, argument)
			}
		}
	}
	return profile
}

func fill[T any](informer cache.SharedIndexInformer, objects []T) {
	for _, object := range objects {
		must(informer.GetIndexer().Add(object))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

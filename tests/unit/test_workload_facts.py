"""What is read out of manifests: purpose, needs and GPUs, by their signs; no manifest breaks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpufleet.fleet.sharing import WorkloadFacts
from gpufleet.kube.conventions.gpu_products import named_product, product_of
from gpufleet.kube.conventions.model_sizes import model_memory_mib
from gpufleet.kube.conventions.pod_templates import pod_templates
from gpufleet.kube.conventions.workload_facts import workload_parts

Object = dict[str, Any]
ONE: Object = {"limits": {"nvidia.com/gpu": 1}}


def workload(
    kind: str = "Deployment",
    name: str = "w",
    namespace: str = "default",
    labels: Mapping[str, str] | None = None,
    spec: Object | None = None,
    **container: Any,
) -> Object:
    pods = {"containers": [{"name": "c", "resources": ONE, **container}]}
    return {
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {})},
        "spec": {"template": {"spec": pods}, **(spec or {})},
    }


def facts(manifest: Object) -> WorkloadFacts:
    (part,) = workload_parts(manifest)
    return part.facts


PORTS = [{"containerPort": 80}]


@pytest.mark.parametrize(
    ("manifest", "purpose"),
    [
        (workload(image="vllm/vllm-openai"), "inference"),
        (workload(image="nvcr.io/nvidia/tritonserver:25.01-py3"), "inference"),
        (workload(command=["sh", "-c", "text-generation-launcher --port 80"]), "inference"),
        (workload(ports=PORTS), "inference"),
        (workload("Job", image="vllm/vllm-openai", command=["python", "bench.py"]), "batch"),
        (workload("InferenceService"), "inference"),
        (workload("Notebook"), "notebook"),
        (workload("StatefulSet", image="jupyter/base-notebook"), "notebook"),
        (workload(image="codercom/code-server:4"), "notebook"),
        (workload("Job", command=["torchrun", "--nnodes=2", "x.py"]), "training"),
        (workload("Job", command=["bash", "-c", "accelerate launch fine_tune.py"]), "training"),
        (workload("PyTorchJob"), "training"),
        (workload("Job", command=["python", "embed.py"]), "batch"),
        (workload(image="vllm/vllm-openai", args=["--model", "org/llama-7b-fine-tuned"]), "inference"),
        (workload(image="vllm/vllm-openai", args=["--model", "org/pretrained-7b"]), "inference"),
        (workload(command=["sleep", "infinity"]), "dev"),
        (workload(namespace="team-dev"), "dev"),
        (workload(), "unknown"),
    ],
)
def test_the_purpose_is_what_the_most_exact_sign_says(manifest: Object, purpose: str) -> None:
    assert facts(manifest).purpose == purpose


@pytest.mark.parametrize(
    ("manifest", "production"),
    [
        (workload(ports=PORTS), None),
        (workload(ports=PORTS, namespace="prod-chat"), True),
        (workload(ports=PORTS, namespace="production"), True),
        (workload(ports=PORTS, labels={"env": "Production"}), True),
        (workload(ports=PORTS, labels={"gpufleet.dev/env": "dev"}), False),
        (workload(ports=PORTS, namespace="staging"), False),
        (workload(ports=PORTS, namespace="products"), None),
        (workload("Notebook"), False),
    ],
)
def test_labels_and_namespaces_tell_production(manifest: Object, production: bool | None) -> None:
    assert facts(manifest).production is production


@pytest.mark.parametrize(
    ("manifest", "memory_mib", "percent"),
    [
        (workload(image="vllm", args=["--model", "meta-llama/Llama-3.1-8B-Instruct"]), 20358, None),
        (workload(image="vllm", args=["--model=meta-llama/Llama-3.1-8B-Instruct"]), 20358, None),
        (workload(image="vllm", command=["sh", "-c", "vllm serve meta-llama/Llama-3.1-8B"]), 20358, None),
        (workload(image="vllm", args=["--model", "a/b-8B", "--quantization", "fp8"]), 11203, None),
        (workload(ports=PORTS, env=[{"name": "MODEL_ID", "value": "google/gemma-2b"}]), 6625, None),
        (workload(image="vllm", args=["--gpu-memory-utilization", "0.4"]), None, 40),
        (workload(image="vllm", args=["--gpu-memory-utilization=0.9"]), None, None),
        (workload(resources={"limits": {"nvidia.com/mig-1g.10gb": 1}}), 9216, None),
        (workload(resources={"limits": {"nvidia.com/gpu": 2, "nvidia.com/gpumem": 1000}}), 2000, None),
    ],
)  # fmt: skip
def test_the_memory_that_is_needed_is_what_the_request_the_engine_or_the_model_says(
    manifest: Object, memory_mib: int | None, percent: int | None
) -> None:
    found = facts(manifest)
    assert (found.memory_mib, found.memory_percent) == (memory_mib, percent)


def test_a_fraction_by_annotation_is_a_gpu_without_a_resource() -> None:
    pod = {"kind": "Pod", "metadata": {"annotations": {"gpu-fraction": "0.25"}}, "spec": {}}
    pod["spec"] = {"containers": [{"name": "c"}]}
    found = facts(pod)
    assert (found.gpus, found.memory_percent) == (1, 25)


def test_an_amount_that_is_yet_to_be_filled_in_is_unknown() -> None:
    found = facts(workload("PyTorchJob", resources={"limits": {"nvidia.com/gpu": "$GPUS"}}))
    assert found.gpus == 0


def test_a_quantity_of_zero_asks_for_no_gpu() -> None:
    assert workload_parts(workload(resources={"limits": {"nvidia.com/gpu": 0}})) == []


@pytest.mark.parametrize(
    ("manifest", "together"),
    [
        (workload(image="vllm", args=["--tensor-parallel-size", "2"]), True),
        (workload(image="vllm", args=["--tensor-parallel-size", "1"]), False),
        (workload("PyTorchJob", spec={"replicas": 4}), True),
        (workload("Job", spec={"parallelism": 4}, command=["torchrun", "t.py"]), True),
        (workload("Job", spec={"parallelism": 4}, command=["python", "train.py"]), False),
        (workload(spec={"replicas": 4}, ports=PORTS), False),
    ],
)
def test_pods_that_exchange_data_are_known_by_their_options_kinds_and_launchers(
    manifest: Object, together: bool
) -> None:
    assert facts(manifest).together is together


def test_a_group_of_a_leader_worker_set_works_as_one() -> None:
    pod = {"spec": {"containers": [{"name": "c", "image": "vllm", "resources": ONE}]}}
    groups = {"size": 3, "leaderTemplate": pod, "workerTemplate": pod}
    parts = workload_parts(
        {"kind": "LeaderWorkerSet", "spec": {"replicas": 2, "leaderWorkerTemplate": groups}}
    )
    assert [(part.facts.together, part.facts.pods) for part in parts] == [(True, 6), (True, 6)]


def test_debuggers_and_graphics_do_not_run_under_mps() -> None:
    assert not facts(workload(command=["nsys", "profile", "x"])).mps
    assert not facts(workload(env=[{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "graphics,compute"}])).mps
    assert facts(workload(env=[{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "all"}])).mps


@pytest.mark.parametrize(
    ("label", "value", "product"),
    [
        ("nvidia.com/gpu.product", "NVIDIA-L4-SHARED", "NVIDIA-L4"),
        ("nvidia.com/gpu.product", "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "NVIDIA-A100-SXM4-40GB"),
        ("cloud.google.com/gke-accelerator", "nvidia-tesla-t4", "Tesla-T4"),
        ("cloud.google.com/gke-accelerator", "nvidia-h100-80gb", "NVIDIA-H100-80GB-HBM3"),
        ("node.kubernetes.io/instance-type", "p4d.24xlarge", "NVIDIA-A100-SXM4-40GB"),
        ("node.kubernetes.io/instance-type", "ml.g5.8xlarge", "NVIDIA-A10G"),
        ("node.kubernetes.io/instance-type", "m5.large", None),
        ("app", "nvidia-l4", None),
    ],
)
def test_labels_of_nodes_tell_the_product(label: str, value: str, product: str | None) -> None:
    found = product_of([(label, value)])
    assert (found and found.name) == product


def test_a_profile_that_one_kind_of_gpu_has_tells_the_product() -> None:
    found = product_of((), ["nvidia.com/mig-3g.20gb"])
    assert found is not None
    assert found.name == "NVIDIA-A100-SXM4-40GB"
    assert product_of((), ["nvidia.com/mig-1g.10gb"]) is None
    assert named_product("no such thing") is None


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", 158),
        ("mistralai/Mixtral-8x7B-v0.1", 127),
        ("Qwen/Qwen2.5-0.5B", 3),
        ("deepseek-r1-671b", 1501),
        ("TheBloke/Llama-2-13B-GPTQ", 9),
        ("gpt2", None),
        ("random/model", None),
        ("org/1bit-thing", None),
    ],
)
def test_a_models_name_tells_its_size(name: str, gib: int | None) -> None:
    found = model_memory_mib(name)
    assert (found and found // 1024) == gib


words = st.sampled_from([
    "containers", "resources", "limits", "spec", "template", "replicas", "metadata", "labels", "env", "args",
    "size", "leaderTemplate", "nodeSelector", "affinity", "kind", "name", "image", "nvidia.com/gpu",
])  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=5),
    max_leaves=30,
)


@given(manifest=st.dictionaries(words, trees, max_size=6))
def test_no_manifest_is_too_odd(manifest: Object) -> None:
    for part in workload_parts(manifest):
        assert part.facts.gpus >= 0
    assert len(pod_templates(manifest)) >= len(workload_parts(manifest))

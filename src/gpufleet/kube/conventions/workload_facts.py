"""What a manifest says of its workload: what it is for, how it uses a GPU, and how much of one it needs.

Words decide: of the kind, of images, of commands, of labels and of namespaces. Of two signs the more exact
one counts: a command that trains says more than a kind that may run anything, and an engine says more than a
port. What nothing says stays unknown (`fleet.sharing` takes unknown production as production).
Source: manifests of the projects named in the tables, and research on public ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from gpufleet.fleet.pods import is_gpu_resource
from gpufleet.fleet.products import Product
from gpufleet.fleet.sharing import Purpose, Tenants, WorkloadFacts
from gpufleet.kube.conventions.gpu_products import named_product, product_of
from gpufleet.kube.conventions.model_sizes import model_memory_mib
from gpufleet.kube.conventions.pod_templates import Object, PodTemplate, pod_templates

_NOTEBOOKS = (
    "jupyter", "notebook", "rstudio", "code-server", "vscode", "jupyterlab", "marimo",
)  # fmt: skip
_TRAINERS = re.compile(
    r"torchrun|torch\.distributed|deepspeed|accelerate launch|horovodrun|mpirun|mpiexec|torchtune|axolotl"
    r"|llamafactory|megatron|nemo-run|train\.py|fine[-_]?tun(?:e|ing)\b"
)
_ENGINES = (
    # in image, command or name                                        takes most of the memory it sees
    ("vllm", True), ("sglang", True), ("text-generation-inference", True), ("text-generation-launcher", True),
    ("tensorrt_llm", True), ("tensorrt-llm", True), ("trtllm-serve", True), ("nvcr.io/nim", True),
    ("nvidia-nim", True), ("lmdeploy", True), ("ray-llm", True), ("aphrodite", True),
    ("tritonserver", False), ("triton", False), ("tensorflow_model_server", False),
    ("tensorflow/serving", False), ("torchserve", False), ("ollama", False), ("llama.cpp", False),
    ("llama-server", False), ("text-embeddings-inference", False), ("infinity_emb", False),
    ("whisper", False), ("bentoml", False),
)  # fmt: skip
_DISTRIBUTED = ("torchrun", "torch.distributed", "deepspeed", "horovodrun", "mpirun", "mpiexec")
_NOT_UNDER_MPS = ("cuda-gdb", "compute-sanitizer", "ncu", "nsys", "cuda-memcheck")

_KINDS: Mapping[str, Purpose] = {
    "Notebook": "notebook",
    "InferenceService": "inference",
    "LLMInferenceService": "inference",
    "NIMService": "inference",
    "RayService": "inference",
    "RayClusterFleet": "inference",
    "VLLMRuntime": "inference",
    "Workspace": "inference",
    "DynamoGraphDeployment": "inference",
    "PyTorchJob": "training",
    "HyperPodPyTorchJob": "training",
    "TFJob": "training",
    "MPIJob": "training",
    "JAXJob": "training",
    "XGBoostJob": "training",
    "PaddleJob": "training",
    "TrainJob": "training",
    "TrainingRuntime": "training",
    "ClusterTrainingRuntime": "training",
    "Job": "batch",
    "CronJob": "batch",
    "JobSet": "batch",
    "RayJob": "batch",
    "Workflow": "batch",
}
_SERVERS = ("Deployment", "StatefulSet", "LeaderWorkerSet", "ReplicaSet", "Rollout", "RoleBasedGroup")

ENVIRONMENT_LABELS = ("gpufleet.dev/env", "env", "environment", "app.kubernetes.io/environment", "stage")
_PRODUCTION = frozenset({"prod", "production", "live", "prd"})
_NOT_PRODUCTION = frozenset({
    "dev", "development", "test", "testing", "staging", "sandbox", "playground", "demo", "qa", "research",
})  # fmt: skip

_MODEL_OPTIONS = ("--model", "--model-path", "--model-id", "--model_name_or_path", "--model-name", "serve")
_MODEL_VARIABLES = ("MODEL_ID", "MODEL_NAME", "MODEL", "HF_MODEL_ID", "NIM_MODEL_NAME", "VLLM_MODEL")
_FRACTION_OPTIONS = (
    "--gpu-memory-utilization", "--gpu_memory_utilization", "--mem-fraction-static",
    "--cuda-memory-fraction", "gpu_memory_utilization:",
)  # fmt: skip
_FRACTION_VARIABLES = ("CUDA_MEMORY_FRACTION", "VLLM_GPU_MEMORY_UTILIZATION")
_PARALLEL_OPTIONS = ("--tensor-parallel-size", "--tp-size", "--tp", "-tp", "--num-shard", "--pp")
_FRACTION = re.compile(r"0?\.\d+|1(?:\.0*)?")


class Part(msgspec.Struct, frozen=True):
    """Pods of a manifest that ask for GPUs, or might (`reason`: why nothing can be advised for them).

    `product` is what they select, None when they select none.
    """

    path: str
    facts: WorkloadFacts
    product: Product | None = None
    reason: str = ""


def workload_parts(manifest: Object, tenants: Tenants = "unknown") -> list[Part]:
    """The pods of an object with what is known of them; those without a GPU are left out, except that one
    whose devices come by claims is kept with the reason DynamicResources.
    """
    templates = pod_templates(manifest)
    found = [(one, asked) for one in templates if (asked := _asked(one)) is not None]
    if not found:
        claims = [one for one in templates if any(container.claims for container in one.containers)]
        return [Part(one.path, WorkloadFacts(gpus=0), None, "DynamicResources") for one in claims]
    return [
        Part(
            one.path,
            _facts(manifest, one, asked, tenants),
            product_of((*one.selectors, *one.annotations.items()), _resources(one)) or _ray_product(manifest),
        )
        for one, asked in found
    ]


def has_pods(manifest: Object) -> bool:
    """Whether an object makes pods at all."""
    return bool(pod_templates(manifest))


def tenants_of(manifests: Iterable[Object]) -> Tenants:
    """Whether workloads with GPUs that are given together belong to several tenants: they lie in several
    namespaces, or name several teams by a label.
    """
    owners = set()
    for one in manifests:
        if any(not part.reason for part in workload_parts(one)):
            meta = _mapping(one.get("metadata"))
            labels = _mapping(meta.get("labels"))
            team = next(
                (labels[key] for key in ("tenant", "gpufleet.dev/tenant", "team") if key in labels), ""
            )
            owners.add((str(meta.get("namespace") or ""), str(team)))
    return "several" if len(owners) > 1 else "unknown"


class _Asked(msgspec.Struct, frozen=True):
    """GPUs that a pod asks for (0: unknown), and memory of them that the request itself names."""

    gpus: int
    memory_mib: int | None = None
    memory_percent: int | None = None


def _asked(pod: PodTemplate) -> _Asked | None:
    """What a pod asks for; None without any GPU. KAI writes a fraction as an annotation, HAMi memory as a
    resource, and then the number of GPUs is one of shares.
    """
    fraction, memory = pod.annotations.get("gpu-fraction", ""), pod.annotations.get("gpu-memory", "")
    if _FRACTION.fullmatch(fraction):
        return _Asked(1, memory_percent=int(float(fraction) * 100))
    if memory.isdecimal() and len(memory) < 9:
        return _Asked(1, memory_mib=int(memory))
    amounts = [
        (name, amount)
        for container in pod.containers
        for name, amount in container.resources.items()
        if _counts(name) and amount != 0
    ]
    if not amounts:
        return None
    gpus = 0 if any(amount is None for _, amount in amounts) else sum(amount or 0 for _, amount in amounts)
    share = next((one.resources["nvidia.com/gpumem"] for one in pod.containers if _hami(one.resources)), None)
    if share is not None:
        return _Asked(1, memory_mib=share * max(1, gpus))
    profile = next((name.partition("mig-")[2] for name, _ in amounts if "/mig-" in name), "")
    size = re.search(r"(\d+)gb", profile)
    if size and gpus == 1:
        return _Asked(1, memory_mib=int(size[1]) * 1024 * 9 // 10)
    return _Asked(gpus)


def _counts(resource: str) -> bool:
    """Whether an amount of a resource is a number of GPUs or shares."""
    return is_gpu_resource(resource) and resource not in ("nvidia.com/gpumem", "nvidia.com/gpucores")


def _hami(resources: Mapping[str, int | None]) -> bool:
    return bool(resources.get("nvidia.com/gpumem"))


def _resources(pod: PodTemplate) -> list[str]:
    return [name for container in pod.containers for name in container.resources]


def _facts(manifest: Object, pod: PodTemplate, asked: _Asked, tenants: Tenants) -> WorkloadFacts:
    words = [*_words(pod), *_ray_words(manifest)]
    text = " ".join(words).lower()
    purpose = _purpose(manifest, pod, text)
    fraction = asked.memory_percent or _fraction(words, pod)
    small = fraction is not None and fraction <= 50
    memory = asked.memory_mib
    if memory is None and not small and purpose in ("inference", "dev"):
        model = _model_memory(words, pod)
        memory = model // pod.group if model else None
    kind = str(manifest.get("kind") or "")
    return WorkloadFacts(
        purpose=purpose,
        production=_production(manifest, pod, purpose),
        gpus=asked.gpus,
        pods=max(1, pod.pods * pod.group),
        together=_together(kind, pod, text, purpose, words),
        memory_mib=memory,
        memory_percent=fraction if small else None,
        takes_all=purpose in ("inference", "dev") and any(name in text for name, all_ in _ENGINES if all_),
        tenants=tenants,
        latency=purpose == "inference",
        bursty=True if purpose == "notebook" else None,
        mps=not any(word in _NOT_UNDER_MPS for word in words) and not _draws(pod),
    )


def _purpose(manifest: Object, pod: PodTemplate, text: str) -> Purpose:
    kind, name = str(manifest.get("kind") or ""), str(_mapping(manifest.get("metadata")).get("name") or "")
    kinds: Purpose | None = _KINDS.get(kind)
    if kinds == "notebook" or any(word in f"{text} {name}".lower() for word in _NOTEBOOKS):
        return "notebook"
    if _TRAINERS.search(text):
        return "training"
    if any(engine in text for engine, _ in _ENGINES):
        return "batch" if kinds == "batch" else "inference"
    if kinds in ("inference", "training"):
        return kinds
    if "training" in pod.labels.values() or re.search(r"\btrain", f"{text} {name}"):
        return "training"
    if kinds == "batch" or pod.restart in ("Never", "OnFailure"):
        return "batch"
    if kind in _SERVERS and any(container.ports for container in pod.containers):
        return "inference"
    if "sleep infinity" in text or set(_environments(manifest, pod)) & {"dev", "sandbox", "playground"}:
        return "dev"
    return "unknown"


def _production(manifest: Object, pod: PodTemplate, purpose: Purpose) -> bool | None:
    said = set(_environments(manifest, pod))
    if said & _PRODUCTION:
        return True
    if said & _NOT_PRODUCTION or purpose in ("notebook", "dev"):
        return False
    return None


def _environments(manifest: Object, pod: PodTemplate) -> Iterator[str]:
    """Words that say where a workload stands between development and production."""
    meta = _mapping(manifest.get("metadata"))
    for labels in (pod.labels, _mapping(meta.get("labels"))):
        yield from (str(labels[key]).lower() for key in ENVIRONMENT_LABELS if key in labels)
    yield from re.split(r"[-_.]", str(meta.get("namespace") or "").lower())


def _together(kind: str, pod: PodTemplate, text: str, purpose: Purpose, words: list[str]) -> bool:
    """Whether pods or processes of the workload exchange data between GPUs."""
    parallel = (value for option in _PARALLEL_OPTIONS if (value := _option(words, (option,))))
    if pod.group > 1 or any(value.isdecimal() and int(value) > 1 for value in parallel):
        return True
    if purpose != "training":
        return False
    return pod.pods > 1 and (_KINDS.get(kind) == "training" or any(one in text for one in _DISTRIBUTED))


def _words(pod: PodTemplate) -> list[str]:
    texts = [word for one in pod.containers for word in (one.image, one.name, *one.words)]
    return [word.strip("\"';,()") for word in texts if word]


def _ray_words(manifest: Object) -> list[str]:
    """The words of what a RayService serves, which is YAML inside a text."""
    text = _mapping(manifest.get("spec")).get("serveConfigV2")
    return [word.strip("\"'") for word in text.split()] if isinstance(text, str) else []


def _ray_product(manifest: Object) -> Product | None:
    name = _option(_ray_words(manifest), ("accelerator_type:",))
    return named_product(name) if name else None


def _option(words: list[str], options: Iterable[str]) -> str:
    """The value of the first of these options, as `--option value` or `--option=value`; or nothing."""
    for option in options:
        for place, word in enumerate(words):
            if word.startswith(f"{option}="):
                return word.partition("=")[2].strip("\"'")
            if word == option and place + 1 < len(words):
                return words[place + 1]
    return ""


def _variable(pod: PodTemplate, names: Iterable[str]) -> str:
    return next(
        (one.variables[name] for name in names for one in pod.containers if one.variables.get(name)), ""
    )


def _fraction(words: list[str], pod: PodTemplate) -> int | None:
    """How much of a GPU's memory an engine is told to take, in percent."""
    text = _option(words, _FRACTION_OPTIONS) or _variable(pod, _FRACTION_VARIABLES)
    return int(float(text) * 100) if _FRACTION.fullmatch(text) else None


def _model_memory(words: list[str], pod: PodTemplate) -> int | None:
    named = (
        _option(words, ("model_source:",)),
        _option(words, _MODEL_OPTIONS),
        _variable(pod, _MODEL_VARIABLES),
    )
    return next((size for name in named if name and (size := model_memory_mib(name, words))), None)


def _draws(pod: PodTemplate) -> bool:
    """Whether a container asks for graphics, which MPS does not serve."""
    capabilities = _variable(pod, ("NVIDIA_DRIVER_CAPABILITIES",)).lower()
    return "graphics" in capabilities or "display" in capabilities


def _mapping(value: Any) -> Object:
    return value if isinstance(value, Mapping) else {}

"""`gpufleet share advise`: an answer with reasons for every object of a manifest, or a clear error."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpufleet.cli.app import invoke
from gpufleet.fleet.reasons import CODES

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("GPUFLEET_SHARED", ROOT.parent / "shared")) / "manifests"
PRIMER = ROOT / "examples" / "primer"
CHOICES = {"whole", "mig", "mps", "time-slicing", "none"}

Share = Callable[..., tuple[int, str, str]]


@pytest.fixture
def share(capsys: pytest.CaptureFixture[str]) -> Share:
    """Run `gpufleet share advise`: exit code, stdout, stderr."""

    def running(*arguments: str) -> tuple[int, str, str]:
        code = invoke("gpufleet", ["share", "advise", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return running


@pytest.fixture
def advice(share: Share, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The answers for a text of YAML."""

    def answering(text: str, *options: str) -> list[dict[str, Any]]:
        path = tmp_path / "m.yaml"
        path.write_text(text)
        code, out, err = share("-f", str(path), "-o", "json", *options)
        assert (code, err) == (0, "")
        answers: list[dict[str, Any]] = json.loads(out)["advice"]
        return answers

    return answering


SERVICE = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: chat, namespace: prod-chat}
spec:
  replicas: 2
  template:
    spec:
      nodeSelector: {nvidia.com/gpu.product: NVIDIA-A100-SXM4-40GB}
      containers:
        - name: engine
          image: vllm/vllm-openai:v0.11.0
          args: [--model, Qwen/Qwen2.5-7B-Instruct-AWQ]
          ports: [{containerPort: 8000}]
          resources: {limits: {nvidia.com/gpu: 1}}
"""
NOTEBOOK = """
apiVersion: kubeflow.org/v1
kind: Notebook
metadata: {name: ann}
spec:
  template:
    spec:
      containers:
        - {name: main, image: "jupyter/tensorflow-notebook:1", resources: {limits: {nvidia.com/gpu: 1}}}
"""
BIG_JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: pretrain}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: worker
          image: pytorch
          command: [torchrun, --nproc-per-node=1, train.py]
          resources: {limits: {nvidia.com/gpu: 1}}
"""


def test_the_primers_three_cases(advice: Callable[..., list[dict[str, Any]]]) -> None:
    service, notebook, job = advice(f"{SERVICE}\n---\n{NOTEBOOK}\n---\n{BIG_JOB}")
    assert (service["choice"], service["resource"]) == ("mig", "nvidia.com/mig-2g.10gb")
    assert service["product"] == "NVIDIA-A100-SXM4-40GB"
    assert service["facts"]["production"] is True
    assert (notebook["choice"], notebook["resource"]) == ("time-slicing", "nvidia.com/gpu.shared")
    assert (job["choice"], job["resource"], job["count"]) == ("whole", "nvidia.com/gpu", 1)
    assert [one["document"] for one in (service, notebook, job)] == [1, 2, 3]


def test_a_product_that_nothing_names_is_assumed_and_that_is_said(
    advice: Callable[..., list[dict[str, Any]]],
) -> None:
    (found,) = advice(NOTEBOOK)
    assert "ProductAssumed" in {one["code"] for one in found["reasons"]}
    (found,) = advice(NOTEBOOK, "--product", "l4")
    assert "ProductAssumed" not in {one["code"] for one in found["reasons"]}
    assert found["product"] == "NVIDIA-L4"


def test_the_user_knows_the_memory_and_the_tenants_better(
    advice: Callable[..., list[dict[str, Any]]],
) -> None:
    (found,) = advice(SERVICE, "--product", "l4", "--memory", "5Gi", "--tenants", "one")
    assert (found["choice"], found["replicas"]) == ("mps", 4)
    (found,) = advice(SERVICE, "--product", "l4", "--memory", "5Gi", "--tenants", "several")
    assert found["choice"] == "whole"
    assert {one["choice"]: one["code"] for one in found["weighed"]}["mps"] == "FaultsAreShared"


def test_workloads_of_two_namespaces_are_two_tenants(advice: Callable[..., list[dict[str, Any]]]) -> None:
    other = SERVICE.replace("prod-chat", "prod-search")
    assert {one["facts"]["tenants"] for one in advice(f"{SERVICE}\n---\n{other}")} == {"several"}
    assert {one["facts"]["tenants"] for one in advice(f"{SERVICE}\n---\n{SERVICE}")} == {"unknown"}


def test_items_of_a_list_are_answered_one_by_one(advice: Callable[..., list[dict[str, Any]]]) -> None:
    listed = yaml.safe_dump({"kind": "List", "items": [yaml.safe_load(SERVICE), yaml.safe_load(NOTEBOOK)]})
    assert [one["choice"] for one in advice(listed)] == ["mig", "time-slicing"]


def test_what_is_no_workload_or_has_no_gpu_says_so(advice: Callable[..., list[dict[str, Any]]]) -> None:
    pod = "kind: Pod\nspec: {containers: [{name: a}]}"
    found = advice(f"kind: Namespace\n---\n{pod}\n---\njust text")
    assert [one["choice"] for one in found] == ["none"] * 3
    assert [one["reasons"][0]["code"] for one in found] == ["NoWorkload", "NoGpuRequested", "NoWorkload"]


def test_a_manifest_may_come_from_stdin(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(NOTEBOOK.encode())))
    code, out, _ = share("-f", "-", "-o", "yaml")
    assert (code, yaml.safe_load(out)["advice"][0]["choice"]) == (0, "time-slicing")


def test_the_text_for_people_has_the_advice_its_reasons_and_what_was_weighed(
    share: Share, tmp_path: Path
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(SERVICE)
    code, out, _ = share("-f", str(path))
    assert code == 0
    assert out.splitlines()[0] == "Deployment/chat  MIG: 2g.10gb, 3 of them on each NVIDIA-A100-SXM4-40GB"
    assert "  IsolationForService  production inference needs memory" in out
    assert "  NoMemoryLimit        not time-slicing: " in out


def test_names_from_a_manifest_cannot_write_to_the_terminal(share: Share, tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(SERVICE.replace("name: chat", 'name: "a\\u001b[2Jb"'))
    assert "\x1b" not in share("-f", str(path))[1]


@pytest.mark.parametrize(
    ("content", "options", "code", "says"),
    [
        ("a: [", (), 1, "error[InvalidYaml]"),
        ("{{ if .Values.x }}\na: b\n{{ end }}", (), 1, "error[InvalidYaml]"),
        ("", (), 1, "error[InvalidManifest]"),
        (SERVICE, ("--product", "h1000"), 1, "did you mean 'h100'"),
        (SERVICE, ("--memory", "much"), 1, "error[BadQuantity]"),
        (SERVICE, ("--memory", "5"), 1, "less than 1 MiB"),
        (SERVICE, ("--tenants", "three"), 2, "error[Usage]"),
    ],
)
def test_a_mistake_is_told_with_a_remedy(
    share: Share, tmp_path: Path, content: str, options: tuple[str, ...], code: int, says: str
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(content)
    found, out, err = share("-f", str(path), *options)
    assert (found, out) == (code, "")
    assert says in err
    assert "hint:" in err


def test_a_file_that_is_not_there_is_an_error(share: Share, tmp_path: Path) -> None:
    code, _, err = share("-f", str(tmp_path / "none.yaml"))
    assert code == 1
    assert "error[FileUnreadable]" in err


def files() -> list[Path]:
    public = [*SHARED.rglob("*.yaml"), *SHARED.rglob("*.yml")] if SHARED.is_dir() else []
    return sorted(PRIMER.glob("[0-9]*.yaml")) + sorted(public)


@pytest.mark.parametrize("path", files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_public_manifest_is_answered_object_by_object(share: Share, path: Path) -> None:
    code, out, err = share("-f", str(path), "-o", "json")
    assert (code, err) == (0, "")
    answers = json.loads(out)["advice"]
    objects = [one for one in yaml.safe_load_all(path.read_text()) if one is not None]
    assert {one["document"] for one in answers} == set(range(1, len(objects) + 1))
    for one in answers:
        assert one["choice"] in CHOICES
        assert one["reasons"]
        assert {reason["code"] for reason in (*one["reasons"], *one["weighed"])} <= set(CODES)
    assert share("-f", str(path))[0] == 0


@pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"no public manifests in {SHARED}; name their parent: GPUFLEET_SHARED"
)
@pytest.mark.parametrize(
    ("file", "purpose", "choice"),
    [
        ("GoogleCloudPlatform_kubernetes-engine-samples/tgi-2b-it-a100-80gb.yaml", "inference", "mig"),
        ("GoogleCloudPlatform_kubernetes-engine-samples/fine-tune-l4.yaml", "training", "whole"),
        ("GoogleCloudPlatform_kubernetes-engine-samples/deepseek-r1-job.yaml", "", "none"),
        ("NVIDIA_dcgm-exporter/dcgm-exporter.yaml", "", "none"),
        ("NVIDIA_dcgm-exporter/gpu-pod.yaml", "batch", "whole"),
        ("NVIDIA_gpu-operator/values.yaml", "", "none"),
        ("NVIDIA_k8s-dra-driver-gpu/channel-injection-all.yaml", "", "none"),
        ("NVIDIA_nim-deploy/llama3-70b-instruct_4xh100_1.0.0.yaml", "inference", "whole"),
        ("aws-samples_awsome-distributed-training/llama3_1_8b-fsdp.yaml", "training", "whole"),
        ("aws-samples_awsome-distributed-training/nccl-tests.yaml", "training", "whole"),
        ("awslabs_data-on-eks/03-rayservice-deepseek-r1-8b.yaml", "inference", "whole"),
        ("kai-scheduler_KAI-Scheduler/jobs.yaml", "training", "whole"),
        ("kserve_kserve/tensorflow-gpu.yaml", "inference", "whole"),
        ("kubeflow_trainer/llama3_2_1B.yaml", "training", "whole"),
        ("kubernetes-sigs_lws/GPU-lws.yaml", "inference", "whole"),
        ("openshift_instaslice-operator/tf-notebook.yaml", "notebook", "time-slicing"),
        ("ray-project_kuberay/ray-service.deepseek.yaml", "inference", "whole"),
        ("sgl-project_rbg/volcano-gang.yaml", "inference", "mig"),
        ("vllm-project_aibrix/base.yaml", "inference", "mig"),
        ("volcano-sh_volcano/mindspore-gpu.yaml", "batch", "whole"),
    ],
)  # fmt: skip
def test_a_public_manifest_is_understood(share: Share, file: str, purpose: str, choice: str) -> None:
    answers = json.loads(share("-f", str(SHARED / file), "-o", "json")[1])["advice"]
    told = [one for one in answers if one["choice"] != "none"]
    assert {one["facts"]["purpose"] for one in told} == ({purpose} if purpose else set())
    assert {one["choice"] for one in told or answers} == {choice}

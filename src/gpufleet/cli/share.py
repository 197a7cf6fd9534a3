"""`gpufleet share`: how a GPU should be shared for a workload."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpufleet.cli.options import everywhere, output_option
from gpufleet.cli.output import print_data, printable, styled
from gpufleet.fleet.errors import GpufleetError

if TYPE_CHECKING:
    from gpufleet.fleet.products import Product
    from gpufleet.fleet.sharing import Tenants, WorkloadFacts
    from gpufleet.kube.conventions.workload_facts import Part

ASSUMED = "h100"
"""The product where neither the manifest nor the user names one."""

STYLES = {"whole": "cyan", "mig": "green", "mps": "green", "time-slicing": "green", "none": "dim"}

_NONE_SAYS = {
    "DynamicResources": "its devices come by ResourceClaims; say how to share them in the claim's config",
    "NoGpuRequested": "its pods ask for no GPU",
    "NoWorkload": "it has no pods",
}


@click.group("share", short_help="How a GPU should be shared for a workload, and why")
@everywhere
def command() -> None:
    """How a GPU should be shared: whole, cut by MIG, by MPS, or by time-slicing."""


@command.command("advise", short_help="The best way to share a GPU for the workloads of a manifest")
@click.option(
    "-f", "--filename", "filename", required=True, metavar="MANIFEST", help="A YAML file, or - for stdin."
)
@click.option("--product", metavar="NAME", help="The GPU (default: what the manifest selects, else h100).")
@click.option("--memory", metavar="QUANTITY", help="The GPU memory that one pod needs, as 20Gi.")
@click.option(
    "--tenants",
    type=click.Choice(["one", "several"]),
    help="Whether those who share a GPU are of one team (default: what the manifest says).",
)
@output_option("json", "yaml")
@everywhere
def advise_command(
    filename: str, product: str | None, memory: str | None, tenants: str | None, output: str | None
) -> None:
    """Say for each object of MANIFEST how to share GPUs for it, why, and why not otherwise.

    What a workload is for and how much memory it needs is read from its kind, image, command, labels and
    requests. Nothing is changed, and no cluster is asked.

    \b
    gpufleet share advise -f deployment.yaml --product a100-40gb
    helm template . | gpufleet share advise -f - -o json
    """
    from gpufleet.fleet.products import find_product

    given = find_product(product) if product else None
    need = _mebibytes(memory) if memory else None
    answers = list(_answers(_documents(filename), given, need, tenants))
    if output:
        print_data({"manifest": filename, "advice": answers}, output)
    else:
        sys.stdout.write("\n".join(map(_text, answers)))


def _documents(filename: str) -> list[Any]:
    """The objects of a file or of stdin, items of a List one by one. Raises GpufleetError."""
    from gpufleet.kube.manifests import parse_documents, read_documents

    if filename == "-":
        documents = parse_documents(sys.stdin.buffer.read(), "stdin")
    else:
        documents = read_documents(Path(filename))
    found = [
        item
        for document in documents
        if document is not None
        for item in (_items(document) if isinstance(document, Mapping) else [document])
    ]
    if not found:
        raise GpufleetError(
            reason="InvalidManifest", message=f"{filename} has no objects", hint="name a file with a workload"
        )
    return found


def _items(document: Mapping[str, Any]) -> list[Any]:
    items = document.get("items")
    return items if document.get("kind") == "List" and isinstance(items, list) else [document]


def _mebibytes(text: str) -> int:
    from gpufleet.fleet.quantities import resource_amount

    amount = resource_amount("memory", text)
    if amount < 2**20:
        raise GpufleetError(
            reason="BadQuantity", message=f"--memory {text} is less than 1 MiB", hint="write it as 20Gi"
        )
    return -(-amount // 2**20)


def _answers(
    documents: list[Any], given: Product | None, need_mib: int | None, tenants: str | None
) -> Iterator[dict[str, Any]]:
    """One answer for each group of pods, or one that says why an object has none."""
    from gpufleet.kube.conventions.workload_facts import has_pods, tenants_of, workload_parts

    manifests = [one for one in documents if isinstance(one, Mapping)]
    told: Tenants = "one" if tenants == "one" else "several" if tenants else tenants_of(manifests)
    for number, one in enumerate(documents, 1):
        if not isinstance(one, Mapping):
            yield _none({"document": number, "kind": "", "name": ""}, "NoWorkload", "it is no object")
            continue
        about = _about(number, one)
        parts = workload_parts(one, told)
        for part in parts:
            at = {**about, "part": part.path} if len(parts) > 1 else about
            yield _none(at, part.reason) if part.reason else _advice(at, part, given, need_mib)
        if not parts:
            yield _none(about, "NoGpuRequested" if has_pods(one) else "NoWorkload")


def _about(number: int, manifest: Mapping[str, Any]) -> dict[str, Any]:
    metadata = manifest.get("metadata")
    meta = metadata if isinstance(metadata, Mapping) else {}
    about = {
        "document": number,
        "kind": str(manifest.get("kind") or ""),
        "name": str(meta.get("name") or meta.get("generateName") or ""),
    }
    return {**about, "namespace": str(meta["namespace"])} if meta.get("namespace") else about


def _none(about: dict[str, Any], code: str, message: str = "") -> dict[str, Any]:
    reason = {"code": code, "message": message or _NONE_SAYS[code]}
    return {**about, "choice": "none", "reasons": [reason], "weighed": []}


def _advice(about: dict[str, Any], part: Part, given: Product | None, need_mib: int | None) -> dict[str, Any]:
    import msgspec

    from gpufleet.fleet.products import find_product
    from gpufleet.fleet.reasons import Reason
    from gpufleet.fleet.sharing import advise

    facts: WorkloadFacts = part.facts
    if need_mib is not None:
        facts = msgspec.structs.replace(facts, memory_mib=need_mib, memory_percent=None)
    product = given or part.product or find_product(ASSUMED)
    found = advise(facts, product)
    reasons = list(found.reasons)
    if not (given or part.product):
        text = f"nothing says which GPU it runs on, so {product.name} is assumed; choose by --product"
        reasons.append(Reason("ProductAssumed", text))
    return {
        **about,
        "choice": found.choice,
        "profile": found.profile,
        "replicas": found.replicas,
        "resource": found.resource,
        "count": found.gpus,
        "product": product.name,
        "reasons": msgspec.to_builtins(reasons),
        "weighed": [{"choice": one.choice, **msgspec.to_builtins(one.reason)} for one in found.weighed],
        "facts": msgspec.to_builtins(facts),
    }


def _text(answer: Mapping[str, Any]) -> str:
    """One answer for people."""
    who = f"{answer['kind'] or 'document'}/{answer['name'] or answer['document']}"
    where = f" ({answer['part']})" if answer.get("part") else ""
    lines = [f"{printable(who + where)}  {styled(_verdict(answer), STYLES[answer['choice']])}"]
    rows = [("", one) for one in answer["reasons"]]
    rows += [(f"not {one['choice']}: ", one) for one in answer["weighed"]]
    width = max(len(one["code"]) for _, one in rows)
    lines += [f"  {one['code']:{width}}  {printable(lead + one['message'])}" for lead, one in rows]
    return "\n".join(lines) + "\n"


def _verdict(answer: Mapping[str, Any]) -> str:
    gpu = answer.get("product", "")
    match answer["choice"]:
        case "none":
            return "no advice"
        case "whole":
            count = answer["count"]
            return f"whole: {count} x {gpu}" if count > 1 else f"whole: one {gpu}"
        case "mig":
            return f"MIG: {answer['profile']}, {answer['replicas']} of them on each {gpu}"
        case choice:
            name = "MPS" if choice == "mps" else "time-slicing"
            return f"{name}: {answer['replicas']} replicas of each {gpu}"

"""`gpufleet agent`: the agent of this node, or one look at it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpufleet.cli.app import everywhere
from gpufleet.cli.output import print_data, styled
from gpufleet.fleet.errors import GpufleetError

if TYPE_CHECKING:
    from gpufleet.devices.inventory import Inventory
    from gpufleet.devices.ownership import Ownership


@click.command("agent", short_help="The agent of this GPU node, or one look at it")
@click.option("--node", metavar="NAME", help="The node's name; $NODE_NAME or the host's name by default.")
@click.option(
    "--host-root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/"),
    show_default=True,
    metavar="DIR",
    help="Where the host's file system is seen.",
)
@click.option(
    "--kubelet-root",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The kubelet's folder; /var/lib/kubelet below the host root by default.",
)
@click.option("--once", is_flag=True, help="Print what the node is and who owns its parts, and end.")
@click.option(
    "--kubeconfig", metavar="FILE", help="How to reach the API server; in a cluster none is needed."
)
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
@click.option(
    "--config-file",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Config of the NVIDIA device plugin (v1): a file, or a folder with one file per config.",
)
@click.option(
    "--mig-config-file",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Configs for the label nvidia.com/mig.config (mig-parted, v1); by default those that fit the GPUs.",
)
@click.option("--default-config", default="", metavar="NAME", help="Config of nodes without a label.")
@click.option(
    "--labels-to",
    type=click.Choice(["node", "nodefeature", "file"]),
    default="node",
    show_default=True,
    help="Where feature labels go.",
)
@click.option(
    "--names",
    type=click.Choice(["classic", "new", "both"]),
    default="classic",
    show_default=True,
    help="Names of the exporter's DCGM metrics.",
)
@click.option(
    "--exporter-port", type=click.IntRange(0, 65535), default=9400, show_default=True, help="Its port."
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=9402,
    show_default=True,
    help="Port of the agent's own metrics, probes and /parts.",
)
@click.option(
    "-o", "--output", type=click.Choice(["json", "yaml"]), help="The form of the output (with --once)."
)
@everywhere
def command(
    node: str | None,
    host_root: Path,
    kubelet_root: Path | None,
    once: bool,
    kubeconfig: str | None,
    context: str | None,
    config_file: Path | None,
    mig_config_file: Path | None,
    default_config: str,
    labels_to: str,
    names: str,
    exporter_port: int,
    metrics_port: int,
    output: str | None,
) -> None:
    """Label this node, offer its GPUs to the kubelet, watch their health, export their metrics.

    Only parts that nobody else runs on the node are started. With --once nothing is changed: what the GPUs
    are, the labels they would get and the owner of each part are printed.

    \b
    gpufleet agent --once -o json
    gpufleet agent --once --host-root /host
    """
    name = node or os.environ.get("NODE_NAME") or os.uname().nodename
    if once:
        _once(name, host_root, kubeconfig, context, config_file, default_config, output)
        return
    if output:
        raise click.UsageError("--output goes with --once")
    from gpufleet import agent_process
    from gpufleet.agent import Options
    from gpufleet.devices.exporter_text import Options as ExporterOptions
    from gpufleet.devices.plugin_config_source import ConfigSource

    options = Options(
        node=name,
        host_root=host_root,
        kubelet_root=kubelet_root or host_root / "var/lib/kubelet",
        config=ConfigSource(config_file, default_config, environment=os.environ),
        mig_configs=mig_config_file,
        labels_to=labels_to,  # type: ignore[arg-type]
        exporter=ExporterOptions(names=names),  # type: ignore[arg-type]
        exporter_port=exporter_port,
        metrics_port=metrics_port,
    )
    agent_process.run(options, kubeconfig, context)


def _once(
    node: str,
    host_root: Path,
    kubeconfig: str | None,
    context: str | None,
    config_file: Path | None,
    default_config: str,
    output: str | None,
) -> None:
    import asyncio

    import msgspec

    from gpufleet.devices.feature_labels import feature_labels
    from gpufleet.devices.host_facts import host_facts
    from gpufleet.devices.ownership import ownership
    from gpufleet.devices.ownership_facts import ClusterObjects, node_facts
    from gpufleet.devices.plugin_config_source import ConfigSource
    from gpufleet.devices.resources import gpu_resources, offer

    if not host_root.is_dir():
        raise GpufleetError(
            reason="HostRootNotFound",
            message=f"there is no folder {host_root}",
            hint="--host-root is where the host's file system is mounted, / on the host itself",
        )
    cluster = ClusterObjects()
    if kubeconfig:
        cluster = asyncio.run(_cluster(node, kubeconfig, context))
    labels = cluster.node.metadata.labels if cluster.node else {}
    config = ConfigSource(config_file, default_config, environment=os.environ).read(
        labels.get("nvidia.com/device-plugin.config", "")
    )
    inventory, problem = _inventory(host_root)
    capable = any(gpu.mig != "unsupported" for gpu in inventory.gpus) if not problem else None
    owners = ownership(node_facts(cluster, host_facts(host_root), mig_capable=capable))
    answer: dict[str, Any] = {
        "node": node,
        "driver": inventory.driver,
        "problem": problem,
        "devices": msgspec.to_builtins(inventory.gpus),
        "resources": msgspec.to_builtins(gpu_resources(offer(inventory, config))),
        "labels": feature_labels(inventory, config),
        "provider": owners.provider,
        "parts": msgspec.to_builtins(owners.parts),
    }
    if output:
        print_data(answer, output)
    else:
        click.echo(_text(node, inventory, problem, owners))
        if not kubeconfig:
            click.echo("\nOnly the host was looked at; with --kubeconfig also who else runs parts of it.")


def _inventory(host_root: Path) -> tuple[Inventory, str]:
    """What the driver says, or why it says nothing."""
    from gpufleet.devices.backend import BackendError
    from gpufleet.devices.inventory import Inventory
    from gpufleet.devices.nvml import NvmlBackend

    try:
        backend = NvmlBackend(host_root)
    except BackendError as error:
        return Inventory(), error.message
    try:
        return backend.inventory(), ""
    except BackendError as error:
        return Inventory(), error.message
    finally:
        backend.close()


async def _cluster(node: str, kubeconfig: str, context: str | None) -> Any:
    from gpufleet.devices.cluster_reading import read_cluster
    from gpufleet.kube.client import Client
    from gpufleet.kube.config import load_config

    async with Client(load_config(kubeconfig, context)) as client:
        return await read_cluster(client, node)


def _text(node: str, inventory: Inventory, problem: str, owners: Ownership) -> str:
    lines = [f"node {node}" + (f" ({owners.provider})" if owners.provider else "")]
    lines.append(f"driver {inventory.driver}" if inventory.driver else styled(problem, "yellow"))
    for gpu in inventory.gpus:
        cut = ", ".join(one.placement.text for one in gpu.instances)
        lines.append(f"  GPU {gpu.index}  {gpu.name}  {gpu.uuid}" + (f"  [{cut}]" if cut else ""))
    lines.append("")
    for part in owners.parts:
        why = part.reasons[0].message if part.reasons else ""
        lines.append(f"{part.component:<14} {part.owner:<24} {part.does:<11} {why}")
    return "\n".join(lines)

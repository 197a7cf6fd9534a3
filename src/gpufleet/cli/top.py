"""`gpufleet top`: who uses which GPU, by GPU, node or pod."""

from __future__ import annotations

import click

from gpufleet.cli.cluster import choose_cluster
from gpufleet.cli.options import cluster_options, everywhere, namespace_option, output_option, watch_options
from gpufleet.cli.watching import show
from gpufleet.fleet.errors import GpufleetError

SORTED_BY = ("name", "util", "memory", "gpus")


@click.command(short_help="Who uses which GPU, and how much")
@click.argument("what", type=click.Choice(["gpus", "nodes", "pods"]), default="gpus")
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="Pods of all namespaces.")
@output_option("wide", "json", "yaml", "name")
@click.option(
    "--sort-by", type=click.Choice(SORTED_BY), default="name", help="Largest first, except for names."
)
@click.option("--no-headers", is_flag=True, help="Leave out the line of titles.")
@watch_options
@cluster_options
@everywhere
def command(
    what: str,
    namespace: str | None,
    all_namespaces: bool,
    output: str | None,
    sort_by: str,
    no_headers: bool,
    watch: bool,
    interval: float,
    kubeconfig: str | None,
    context: str | None,
    name: str | None,
) -> None:
    """Show GPUs (the default), nodes or pods with what they use.

    GPUs and nodes are those of the whole cluster; with -n only GPUs that pods of the namespace hold. Pods are
    those of one namespace, or of all with -A. In a pipe the columns are separated by tabs.
    """
    from gpufleet.cli import usage_tables

    if namespace and (all_namespaces or what == "nodes"):
        other = "-A names all of them" if all_namespaces else "nodes belong to none"
        raise GpufleetError(
            reason="Usage", message=f"-n {namespace} names one namespace, and {other}", hint="leave out -n"
        )
    config = choose_cluster(kubeconfig, context, name)
    chosen = None if all_namespaces else namespace or (config.namespace if what == "pods" else None)

    def render() -> str:
        rows = usage_tables.rows(config, what, chosen, sort_by)
        return usage_tables.text(what, rows, output, headers=not no_headers, watch=watch)

    show(render, watch=watch, interval_s=interval)

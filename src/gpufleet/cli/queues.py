"""`gpufleet queues`: the tree of queues with what each may have, holds and waits for."""

from __future__ import annotations

import sys

import click

from gpufleet.cli.cluster import choose_cluster
from gpufleet.cli.options import cluster_options, everywhere, output_option
from gpufleet.cli.output import print_data
from gpufleet.cli.queue_tables import queues_text, report_of, resource_option


@click.command("queues")
@resource_option
@output_option("json", "yaml")
@cluster_options
@everywhere
def command(
    resource: str,
    output: str | None,
    kubeconfig: str | None,
    context: str | None,
    name: str | None,
) -> None:
    """Show the tree of queues: guarantee, limit, what pods hold and ask for, and the fair share now.

    Queues are those of gpufleet, KAI, Volcano and Kueue, whichever the cluster has; gpufleet need not be
    installed there. Amounts and pods of a queue include the queues below it. With -o json amounts are
    integers.
    """
    report = report_of(choose_cluster(kubeconfig, context, name), "queues")
    if output:
        print_data(report.as_json(), output)
    else:
        sys.stdout.write(queues_text(report, resource))

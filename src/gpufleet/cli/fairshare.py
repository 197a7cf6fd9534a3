"""`gpufleet fairshare`: how the fair share of each queue comes about."""

from __future__ import annotations

import sys

import click

from gpufleet.cli.cluster import choose_cluster
from gpufleet.cli.options import cluster_options, everywhere, output_option
from gpufleet.cli.output import print_data
from gpufleet.cli.queue_tables import report_of, resource_option, shares_text


@click.command("fairshare")
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
    """Show how the fair share of each queue comes about: what of it is guaranteed, what is borrowed, and
    how much of it is used.

    The rule is in docs/concepts/fair-share.md. With -o json amounts are integers, for all resources.
    """
    report = report_of(choose_cluster(kubeconfig, context, name), "fairshare")
    if output:
        print_data(report.as_json(), output)
    else:
        sys.stdout.write(shares_text(report, resource))

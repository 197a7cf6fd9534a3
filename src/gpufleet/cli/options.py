"""Options that several commands share, so that they are spelled and explained the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from gpufleet.cli.app import everywhere
from gpufleet.local.layout import check_fleet_name

_A_DAY_S = 86_400.0

F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "Seconds",
    "cluster_options",
    "everywhere",
    "fleet_name",
    "namespace_option",
    "output_option",
    "watch_options",
]


class Seconds(click.ParamType[float]):
    """A number of seconds, at least so many and at most a day. Ranges of click let nan through."""

    name = "seconds"

    def __init__(self, least: float) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds; raises a usage error."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not self.least <= seconds <= _A_DAY_S:
            self.fail(f"{value!r} is not a number of seconds from {self.least:g} to {_A_DAY_S:g}", param, ctx)
        return seconds


def _named(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A name that was given, checked before a command looks at it: an empty one (`--name "$UNSET"`) means no
    fleet, least of all the default one.
    """
    if value is not None:
        check_fleet_name(value)
    return value


def fleet_name(function: F) -> F:
    """--name: a fleet of this machine (`cluster.chosen_fleet` is the rule)."""
    which = "The local fleet (default: the one whose kubeconfig $KUBECONFIG names, else the fleet `default`)."
    return click.option("--name", metavar="FLEET", callback=_named, help=which)(function)


def cluster_options(function: F) -> F:
    """--kubeconfig, --context and --name: which cluster is meant."""
    kubeconfig = click.option("--kubeconfig", metavar="FILE", help="The kubeconfig to use.")
    context = click.option("--context", metavar="NAME", help="The context of the kubeconfig.")
    return kubeconfig(context(fleet_name(function)))


def namespace_option(function: F) -> F:
    """-n: the namespace."""
    return click.option(
        "-n", "--namespace", metavar="NAMESPACE", help="The namespace (default: that of the context)."
    )(function)


def output_option(*forms: str) -> Callable[[F], F]:
    """-o: the form of the output."""
    return click.option("-o", "--output", type=click.Choice(forms), help="The form of the output.")


def watch_options(function: F) -> F:
    """--watch and --interval: show it again and again."""
    watch = click.option(
        "-w", "--watch", is_flag=True, help="Show it again whenever the interval has passed."
    )
    interval = click.option(
        "--interval",
        type=Seconds(0.2),
        default=2.0,
        metavar="SECONDS",
        show_default=True,
        help="How often --watch looks, at least 0.2.",
    )
    return watch(interval(function))

"""The table of commands: where each one lives and what it is for. The text of `gpufleet --help` is made from
it.

A command is the attribute `command` of its module. Nothing may be imported here.
"""

from __future__ import annotations

COMMANDS = {
    "up": ("gpufleet.cli.up", "Start a local fleet, or take up what changed"),
    "down": ("gpufleet.cli.down", "Stop a local fleet; its state stays"),
    "status": ("gpufleet.cli.status", "What runs, how many GPUs are free, what is pending"),
    "kubeconfig": ("gpufleet.cli.kubeconfig", "Where the kubeconfig is, what is in it, merge it into yours"),
    "top": ("gpufleet.cli.top", "Who uses which GPU, and how much"),
    "why": ("gpufleet.cli.why", "Why a pod is pending or where it runs, who holds the GPUs, what would help"),
    "queues": ("gpufleet.cli.queues", "The tree of queues: what each may have, holds and waits for"),
    "fairshare": ("gpufleet.cli.fairshare", "How the fair share of each queue comes about"),
    "plan": ("gpufleet.cli.plan", "What if: other nodes or a manifest on a copy of the fleet"),
    "snapshot": ("gpufleet.cli.snapshot", "A cluster as a file, to decide and explain elsewhere"),
    "decide": ("gpufleet.cli.decide", "What the scheduler would do with a saved snapshot, and why"),
    "logs": ("gpufleet.cli.logs", "The output of a pod's container"),
    "agent": ("gpufleet.cli.agent", "The agent of this GPU node, or one look at it"),
    "mig": ("gpufleet.cli.mig", "What GPUs can be cut into, and how to get there"),
    "share": ("gpufleet.cli.share", "How a GPU should be shared for a workload, and why"),
    "simulate": (
        "gpufleet.cli.simulate",
        "Scheduling policies on public traces, and a month of a fleet in a minute",
    ),
    "version": ("gpufleet.cli.version", "Versions of gpufleet, Python and the control plane"),
    "completion": ("gpufleet.cli.completion", "Tab completion for bash, zsh and fish"),
}
"""Module and one line of help by command, in the order of the help text."""

SECTIONS = {
    "A fleet on this machine": ("up", "down", "status", "kubeconfig"),
    "Any cluster": ("top", "why", "queues", "fairshare", "plan", "snapshot", "decide", "logs"),
    "GPUs": ("agent", "mig", "share"),
    "Planning": ("simulate",),
    "Other": ("version", "completion"),
}

EXIT_CODES = {
    0: "ok",
    1: "failed",
    2: "wrong usage",
    3: "a defect of gpufleet",
    4: "no access",
    5: "not found",
    6: "not in time",
    130: "Ctrl-C",
    141: "whoever read the output is gone",
    143: "SIGTERM",
}


def overview(program: str) -> str:
    """The help text of the whole program."""
    lines = [
        f"Usage: {program} COMMAND [ARGUMENT ...] [OPTION ...]",
        "",
        "gpufleet is the GPU layer for Kubernetes: it places GPU workloads, explains why they wait, and",
        "runs a whole fleet with simulated GPUs on one machine.",
    ]
    for title, names in SECTIONS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<12}{COMMANDS[name][1]}" for name in names]
    lines += [
        "",
        "Options:",
        "  --color auto|always|never   Colour (default: on a terminal, unless NO_COLOR is set)",
        "  --debug                     Show the traceback of an error",
        "  --version                   Show the version",
        "  -h, --help                  Show this help; `"
        + program
        + " COMMAND --help` for a command's options",
        "",
        "Exit codes:",
        *(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items()),
    ]
    return "\n".join(lines) + "\n"

"""`import gpufleet.cli` stays light: help answers in the time that Python itself needs to start."""

from __future__ import annotations

import subprocess
import sys

import pytest

ALLOWED_FOR_HELP = {"__future__", "gpufleet", "gpufleet.cli", "gpufleet.cli.commands"}
FOR_RUNNING_ONLY = {"aiohttp", "rich", "cryptography", "psutil", "prometheus_client"}
SHOW_MODULES = "; import sys; print('\\n'.join(sys.modules), file=sys.stderr)"


def modules_after(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after running `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code + SHOW_MODULES], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.split())


def test_help_imports_nothing_but_the_table_of_commands() -> None:
    code = "import sys; sys.argv = ['gpufleet', '--help']; from gpufleet.cli import main; main()"
    assert modules_after(code) - modules_after("pass") == ALLOWED_FOR_HELP


@pytest.mark.parametrize(
    "command",
    ["up", "down", "status", "top", "logs", "why", "snapshot", "decide", "plan", "kubeconfig", "version"],
)
def test_the_help_of_a_command_imports_nothing_that_talks_to_a_cluster(command: str) -> None:
    code = (
        f"import sys; sys.argv = ['gpufleet', '{command}', '--help']; "
        "from gpufleet.cli import main; assert main() == 0"
    )
    loaded = {name.partition(".")[0] for name in modules_after(code)}
    assert not loaded & FOR_RUNNING_ONLY


def test_completing_a_command_name_imports_no_command() -> None:
    code = (
        "import os, sys; os.environ |= {'_GPUFLEET_COMPLETE': 'bash_complete', 'COMP_WORDS': 'gpufleet st', "
        "'COMP_CWORD': '1'}; sys.argv = ['gpufleet']; from gpufleet.cli import main; main()"
    )
    assert "gpufleet.cli.status" not in modules_after(code)

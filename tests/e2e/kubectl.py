"""kubectl as a user types it: the real one, with the fleet's kubeconfig and our plugin on PATH.

A session is a transcript (sessions/*.txt): commands and what they print, played on the fleet and compared.
Output depends on the moment (ages, generated names, uids, addresses), so `plain` output is compared. A line
`...` in a transcript stands for any lines, `[...]` for anything within its line.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from tests.e2e.local_fleet import LocalFleet

from gpufleet.local.controlplane import locate

SESSIONS = Path(__file__).parent / "sessions"
_PLUGIN = """\
#!{python}
import sys
from gpufleet.cli import kubectl_main
sys.exit(kubectl_main())
"""
_CHANGING = (
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "UID"),
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r"\b[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", "TIME"),
    (r"\b10\.64\.\d+\.\d+\b", "ADDRESS"),
    (r"(?<=[a-z0-9]-)[0-9a-f]{6,10}-[bcdfghjklmnpqrstvwxz2456789]{5}\b", "HASH-XXXXX"),
    (r"(?<=[a-z0-9]-)(?=[a-f0-9]*\d)[0-9a-f]{8,10}\b", "HASH"),
    (r"\((x\d+ over )?\d+[smhd](\d+[smhd])? ago\)", "(AGO)"),
    (r"(?<=\s)(\d+d)?(\d+h)?(\d+m)?(\d+s)?(?<=[dhms])(?=\s|$)", "AGE"),
)


class Kubectl(msgspec.Struct, frozen=True):
    """kubectl on one fleet. `namespace` is where commands that name none work."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    namespace: str

    @classmethod
    def on(cls, fleet: LocalFleet, folder: Path, namespace: str = "default") -> Kubectl:
        """kubectl of the version that the control plane has; the plugin is put into `folder`."""
        plugin = folder / "kubectl-gpufleet"
        plugin.write_text(_PLUGIN.format(python=sys.executable))
        plugin.chmod(0o755)
        environ = {
            **fleet.environ,
            "KUBECONFIG": str(fleet.kubeconfig),
            "PATH": f"{folder}{os.pathsep}{fleet.environ.get('PATH', '')}",
        }
        return cls(locate(["kubectl"], progress=lambda _: None)["kubectl"], environ, namespace)

    def run(self, *arguments: str, given: str = "", seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """The outcome of a command, whatever its exit code; `given` is its standard input."""
        return subprocess.run(
            [*self.argv, *self._where(arguments), *arguments],
            env=dict(self.environ), input=given, capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip

    def __call__(self, *arguments: str, given: str = "", seconds: float = 60) -> str:
        """What a command prints, which must succeed."""
        done = self.run(*arguments, given=given, seconds=seconds)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command that goes on; whoever starts it ends it."""
        return subprocess.Popen(
            [*self.argv, *self._where(arguments), *arguments],
            env=dict(self.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def session(self, name: str, *, given: str = "") -> None:
        """Play a transcript: lines of `$ kubectl ...`, each followed by what it must print.

        What a command says on stderr comes after its output, then its exit status if it is not 0. `given` is
        the standard input of commands with `-f -`.
        """
        for command, expected in _steps((SESSIONS / f"{name}.txt").read_text()):
            arguments = shlex.split(command)[1:]
            done = self.run(*arguments, given=given if "-" in arguments else "")
            status = [f"exit status {done.returncode}"] if done.returncode else []
            printed = "\n".join([done.stdout, done.stderr, *status])
            assert matches(plain(printed), expected), (
                f"$ {command}\n{plain(printed)}\n--- not as:\n{expected}"
            )

    def _where(self, arguments: Sequence[str]) -> list[str]:
        """The namespace as a flag; plugins take theirs after their name."""
        named = {"-n", "-A", "--namespace", "--all-namespaces"} & set(arguments)
        return [] if named or arguments[0] == "gpufleet" else ["--namespace", self.namespace]


def plain(text: str) -> str:
    """Output without what changes from run to run, columns separated by one run of two spaces."""
    for pattern, word in _CHANGING:
        text = re.sub(pattern, word, text)
    lines = (re.sub(r"[ \t]{2,}|\t", "  ", line.strip()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def matches(printed: str, expected: str) -> bool:
    """Whether plain output is as a transcript has it."""
    pattern = ""
    for line in expected.splitlines():
        words = ".*".join(re.escape(part) for part in line.split("[...]"))
        pattern += "(?:.*\n)*?" if line == "..." else words + "\n"
    return re.fullmatch(pattern, printed + "\n" if printed else "") is not None


def _steps(transcript: str) -> Iterator[tuple[str, str]]:
    lines = transcript.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("$ kubectl")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[start].removeprefix("$ "), "\n".join(line for line in lines[start + 1 : end] if line)

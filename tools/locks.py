"""The locks in requirements/: written by `make lock`, and checked (offline) to follow from pyproject.toml.

runtime.txt is what a user's environment gets, build.txt what the editable install of the project needs,
dev.txt everything that checks and tests need. The check proves that each direct requirement is pinned to a
version that satisfies it, that what an installed package requires is pinned too, that the locks agree with
each other, and that each pin has a hash.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==(\S+)(?:\s*;\s*(.*?))?\s*\\?$", re.MULTILINE)
Pins = dict[str, Version]


def project() -> dict[str, list[Requirement]]:
    """The direct requirements of pyproject.toml for each lock, those of other platforms left out."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = content["project"]["dependencies"]
    wanted = {
        "runtime": runtime,
        "build": content["build-system"]["requires"],
        "dev": runtime + content["dependency-groups"]["dev"],
    }
    return {lock: [r for r in map(Requirement, lines) if applies(r)] for lock, lines in wanted.items()}


def applies(requirement: Requirement) -> bool:
    """Whether a requirement holds on this machine, without extras."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def lock_path(lock: str) -> Path:
    """The file of a lock."""
    return ROOT / "requirements" / f"{lock}.txt"


def read_pins(lock: str) -> Pins:
    """What a lock pins, by canonical name; for packages pinned per platform, the pin of this one."""
    found: Pins = {}
    for name, version, marker in PIN.findall(lock_path(lock).read_text()):
        if not marker or applies(Requirement(f"{name}; {marker}")):
            found[canonicalize_name(name)] = Version(version)
    return found


def unhashed(lock: str) -> list[str]:
    """Names of the pins of a lock without a hash."""
    entries = re.split(r"\n(?=\S)", lock_path(lock).read_text())
    return [match[1] for entry in entries if (match := PIN.match(entry)) and "--hash=" not in entry]


def unsatisfied(requirements: list[Requirement], pins: Pins, owner: str) -> list[str]:
    """Sentences for the requirements of `owner` that a lock does not pin, or pins to a wrong version."""
    problems = []
    for requirement in requirements:
        version = pins.get(canonicalize_name(requirement.name))
        if version is None:
            problems.append(f"{owner} needs {requirement}, which is not pinned")
        elif not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{owner} needs {requirement}, but {version} is pinned")
    return problems


def requirements_of(name: str) -> list[Requirement]:
    """What an installed package requires here; empty when it is not installed."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    return [requirement for requirement in map(Requirement, lines) if applies(requirement)]


def problems() -> list[str]:
    """Everything that is wrong with the locks, as sentences."""
    found: list[str] = []
    locks = {lock: read_pins(lock) for lock in project()}
    for lock, direct in project().items():
        pins = locks[lock]
        where = f"requirements/{lock}.txt: "
        found += [where + text for text in unsatisfied(direct, pins, "pyproject.toml")]
        for name in pins:
            found += [where + text for text in unsatisfied(requirements_of(name), pins, name)]
        found += [f"{where}{name} has no hash" for name in unhashed(lock)]
        found += [
            f"{where}{name} is {version} here and {locks['dev'][name]} in dev.txt"
            for name, version in pins.items()
            if locks["dev"].get(name, version) != version
        ]
    return found


def write() -> None:
    """Resolve pyproject.toml anew; pins that still satisfy it are kept."""
    build = "\n".join(map(str, project()["build"]))
    sources = {
        "dev": ["pyproject.toml", "--group", "dev"],
        "runtime": ["pyproject.toml", "-c", "requirements/dev.txt"],
        "build": ["-", "-c", "requirements/dev.txt"],
    }
    for lock, source in sources.items():
        print(f"locking requirements/{lock}.txt", file=sys.stderr)
        options = ["--generate-hashes", "--no-annotate", "--universal", "--python-version", "3.11", "--quiet"]
        target = ["--custom-compile-command", "make lock", "-o", str(lock_path(lock).relative_to(ROOT))]
        command = ["uv", "pip", "compile", *source, *options, *target]
        subprocess.run(command, cwd=ROOT, check=True, text=True, input=build, stdout=subprocess.DEVNULL)


def main() -> None:
    """Check the locks, or write them with `--write`."""
    parser = argparse.ArgumentParser(description="Check that requirements/ follows from pyproject.toml.")
    parser.add_argument("--write", action="store_true", help="resolve again and write the locks")
    if parser.parse_args().write:
        write()
    if found := problems():
        sys.exit("\n".join([*found, "hint: make lock"]))


if __name__ == "__main__":
    main()

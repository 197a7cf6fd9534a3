"""The virtual environment of a checkout: `.venv` with exactly the locked packages, and gpufleet, editable.

`environment.py run` prepares what a fleet needs, `environment.py dev` what checks and tests need on top.
Packages come only from the hash-checked locks in requirements/, so a build never depends on what a registry
serves today. A stamp inside `.venv` remembers the inputs and the checkout's path: when they are unchanged
nothing is done. A half-made environment (a killed run) has no stamp and is completed or made again. Only the
standard library is used here, because nothing else exists yet.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCKS = {"run": ("runtime.txt", "build.txt"), "dev": ("dev.txt",)}
DIAGNOSES = (
    ("No space left on device", "the disk is full", "free some space, then run make again"),
    ("DO NOT MATCH THE HASHES", "a package differs from its locked hash", "do not install it; report this"),
    ("Permission denied", "a file cannot be written", f"make {ROOT} writable for you"),
    (
        "connection broken|NewConnectionError|NameResolution|timed out|Could not find a version",
        "the package registry was not reached, or it lacks a locked package",
        "check the network, a proxy (HTTPS_PROXY) or your registry (PIP_INDEX_URL), then run make again",
    ),
)


def fail(reason: str, message: str, hint: str) -> None:
    """End with one clear error."""
    sys.exit(f"error[{reason}]: {message}\n  hint: {hint}")


def fingerprint(level: str) -> dict[str, str]:
    """What the environment of `level` is made from; equal fingerprints need no work."""
    digest = hashlib.sha256()
    for path in [ROOT / "pyproject.toml", *(ROOT / "requirements" / name for name in LOCKS[level])]:
        digest.update(path.read_bytes())
    return {"inputs": digest.hexdigest(), "root": str(ROOT)}


def stamp(level: str) -> Path:
    """The file that says that `level` is complete."""
    return VENV / f".gpufleet-{level}.json"


def recorded(level: str) -> dict[str, str]:
    """The fingerprint of the last complete install of `level`, empty when there was none."""
    try:
        loaded: dict[str, str] = json.loads(stamp(level).read_text())
    except (OSError, ValueError):
        return {}
    return loaded


def runs(*arguments: str) -> bool:
    """Whether the environment's Python runs with `arguments` and succeeds."""
    try:
        return subprocess.run([PYTHON, *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def usable() -> bool:
    """Whether `.venv` can be completed in place: its Python runs, has pip, and was made at this path."""
    moved = any(recorded(level).get("root", str(ROOT)) != str(ROOT) for level in LOCKS)
    return not moved and runs("-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))")


def create() -> None:
    """Make `.venv` anew."""
    if VENV.exists() or VENV.is_symlink():
        print(f"replacing the unusable {VENV}", file=sys.stderr)
        VENV.unlink() if VENV.is_symlink() else shutil.rmtree(VENV)
    print(f"creating .venv with Python {sys.version.split()[0]}", file=sys.stderr)
    made = subprocess.run(
        [sys.executable, "-m", "venv", VENV], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if made.returncode == 0:
        return
    said = (made.stdout + made.stderr).strip()
    shutil.rmtree(VENV, ignore_errors=True)
    if "ensurepip" in said or "No module named venv" in said:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        fail(
            "VenvMissing",
            f"{sys.executable} cannot make virtual environments (ensurepip is not installed)",
            f"apt-get install {package} (Debian, Ubuntu), then run make again",
        )
    last = said.splitlines()[-1] if said else f"exit status {made.returncode}"
    fail(
        "VenvFailed", f"python -m venv failed: {last}", f"check that {ROOT} is writable and the disk has room"
    )


def pins(lock: Path) -> int:
    """How many packages a lock names, those for other platforms included."""
    return len(re.findall(r"^[A-Za-z0-9]\S*==", lock.read_text(), re.MULTILINE))


def pip(arguments: list[str | Path], total: int = 0) -> None:
    """Run pip, one line for each package that it fetches; on failure show what it said and why."""
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
    said: list[str] = []
    count = 0
    with subprocess.Popen(
        [*command, "--progress-bar=off"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.rstrip())
            if match := re.match(r"Collecting (\S+?)==([^\s;]+)", line):
                count += 1
                print(f"  [{count}/{total}] {match[1]} {match[2]}", file=sys.stderr, flush=True)
            elif line.startswith("Installing collected packages"):
                print("  unpacking", file=sys.stderr, flush=True)
    if process.returncode:
        explain("\n".join(said))


def explain(said: str) -> None:
    """End with the most likely cause of a pip failure, after pip's own last lines."""
    print("\n".join(f"  | {line}" for line in said.splitlines()[-12:]), file=sys.stderr)
    for pattern, message, hint in DIAGNOSES:
        if re.search(pattern, said):
            fail("InstallFailed", message, hint)
    fail("InstallFailed", "pip failed, its last lines stand above", "rm -r .venv and run make again")


def install(level: str) -> None:
    """Install the locks of `level` and the project itself; the stamp is written last."""
    before = fingerprint(level)
    stamp(level).unlink(missing_ok=True)
    for name in LOCKS[level]:
        lock = ROOT / "requirements" / name
        print(f"installing requirements/{name} ({pins(lock)} pinned packages)", file=sys.stderr)
        pip(["--require-hashes", "-r", lock], pins(lock))
    pip(["--no-index", "--no-deps", "--no-build-isolation", "--editable", ROOT])
    stamp(level).write_text(json.dumps(before))


def prepare(level: str) -> None:
    """Bring `.venv` to `level` unless it is there already."""
    with one_at_a_time():
        levels = (level, "dev") if level == "run" else (level,)
        if runs("-c", "pass") and any(recorded(name) == fingerprint(name) for name in levels):
            return
        started = time.monotonic()
        if not usable():
            create()
        install(level)
        print(f"environment ready in {time.monotonic() - started:.0f} s", file=sys.stderr)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the lock of the checkout: of two makes at once, the second finds the work done."""
    checkout = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(checkout, fcntl.LOCK_EX)
        yield
    finally:
        os.close(checkout)


def main() -> None:
    """Parse the level and prepare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "level", choices=sorted(LOCKS), help="run: what a fleet needs; dev: checks and tests too"
    )
    try:
        prepare(parser.parse_args().level)
    except OSError as error:
        fail("EnvironmentFailed", str(error), f"check that {ROOT} is writable and the disk has room")


if __name__ == "__main__":
    main()

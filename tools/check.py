"""`make check`: everything that can be judged without running the product, each check with its time.

All checks run even when one fails, and only a failing one shows its output.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("src", "tests", "tools", "benchmarks")
CHECKS = {
    "strict types": ("mypy",),
    "format": ("ruff", "format", "--check", *SOURCES),
    "lint": ("ruff", "check", *SOURCES),
    "import contracts": ("lint-imports",),
    "reference is generated": ("python", "-m", "tools.reference", "--check"),
    "protocols are generated": ("python", "-m", "tools.protocols", "--check"),
    "monitoring is generated": ("python", "-m", "tools.monitoring", "--check"),
    "everything public is documented": ("python", "-m", "tools.public"),
    "links in docs": ("python", "-m", "tools.links"),
    "locks follow pyproject": ("python", "-m", "tools.locks"),
}


def run(name: str) -> tuple[str, float, str]:
    """Run one check: its name, its seconds, and its output when it failed (else nothing)."""
    tool, *arguments = CHECKS[name]
    command = [str(Path(sys.executable).parent / tool), *arguments]
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )
    problem = (done.stdout + done.stderr).strip() or f"exit status {done.returncode}"
    return name, time.monotonic() - started, problem if done.returncode else ""


def main() -> None:
    """Run every check, two at a time on two cores, and end with 1 when one failed."""
    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, seconds, problem in pool.map(run, CHECKS):
            print(f"{'FAILED' if problem else 'ok':<8}{name:<34}{seconds:>6.1f} s", flush=True)
            if problem:
                failed.append(name)
                print("\n".join(f"    {line}" for line in problem.splitlines()), flush=True)
    if failed:
        sys.exit(f"make check failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

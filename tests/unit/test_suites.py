"""`make test` runs the suites from small to real and says how long each of them took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTENING = """\
import signal


def test_it():
    assert signal.SIG_IGN not in (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP))
"""
TEST = "def test_one():\n    pass\n\n\ndef test_two():\n    pass\n"


def test_suites_run_from_small_to_real_and_are_timed(tmp_path: Path) -> None:
    for suite in ("e2e", "contract", "unit"):
        folder = tmp_path / "tests" / suite
        folder.mkdir(parents=True)
        (folder / f"test_{suite}.py").write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tools.suites", "-v", "--rootdir", tmp_path, "tests"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    ran = [line.split("::")[0] for line in lines if "PASSED" in line]
    assert ran == [
        f"tests/{suite}/test_{suite}.py" for suite in ("unit", "contract", "e2e") for _ in range(2)
    ]
    timed = [line.split()[:3] for line in lines if line.endswith(" s") and " tests " in line]
    assert timed == [[suite, "2", "tests"] for suite in ("unit", "contract", "e2e")]
    assert "6 passed" in lines[-1]


def test_what_tests_start_hears_signals_that_the_starter_of_the_run_ignores(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(LISTENING)
    pytest = f"{sys.executable} -m pytest -p tools.suites --rootdir {tmp_path} {tmp_path}"
    done = subprocess.run(
        ["sh", "-c", f"trap '' INT HUP; exec {pytest}"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "1 passed" in done.stdout.splitlines()[-1], done.stdout

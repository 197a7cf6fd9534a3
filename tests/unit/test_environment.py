"""`make` prepares `.venv` from the locks once, and says what is missing when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tools import environment

FIND_PYTHON = Path(environment.__file__).with_name("find-python")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with locks, whose environment has this Python."""
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "requirements").mkdir()
    for name in ("runtime.txt", "build.txt", "dev.txt"):
        (tmp_path / "requirements" / name).write_text("a==1 \\\n    --hash=sha256:00\n")
    return tmp_path


@pytest.fixture
def calls(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been done: `create`, and each pip install by its last argument."""
    done: list[str] = []

    def create() -> None:
        done.append("create")
        environment.PYTHON.parent.mkdir(parents=True)
        environment.PYTHON.symlink_to(sys.executable)

    def pip(arguments: list[str | Path], total: int = 0) -> None:
        done.append(Path(arguments[-1]).name)

    monkeypatch.setattr(environment, "create", create)
    monkeypatch.setattr(environment, "pip", pip)
    return done


def fake_program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_an_environment_is_made_once(checkout: Path, calls: list[str]) -> None:
    environment.prepare("run")
    assert calls == ["create", "runtime.txt", "build.txt", checkout.name]
    environment.prepare("run")
    assert len(calls) == 4


def test_a_development_environment_can_run_a_fleet(checkout: Path, calls: list[str]) -> None:
    environment.prepare("dev")
    assert calls == ["create", "dev.txt", checkout.name]
    environment.prepare("run")
    assert len(calls) == 3


def test_a_changed_lock_is_installed_into_the_environment_that_exists(
    checkout: Path, calls: list[str]
) -> None:
    environment.prepare("dev")
    (checkout / "requirements" / "dev.txt").write_text("a==2 \\\n    --hash=sha256:00\n")
    calls.clear()
    environment.prepare("dev")
    assert calls == ["dev.txt", checkout.name]


def test_an_install_that_was_killed_is_done_again(
    checkout: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.prepare("dev")
    (checkout / "requirements" / "dev.txt").write_text("a==2 \\\n    --hash=sha256:00\n")

    def killed(arguments: list[str | Path], total: int = 0) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environment, "pip", killed)
        with pytest.raises(KeyboardInterrupt):
            environment.prepare("dev")
    calls.clear()
    environment.prepare("dev")
    assert calls == ["dev.txt", checkout.name]


def test_an_environment_that_came_from_another_path_is_made_again(checkout: Path, calls: list[str]) -> None:
    environment.prepare("dev")
    environment.stamp("dev").write_text('{"inputs": "", "root": "/elsewhere"}')
    assert not environment.usable()


def test_a_python_without_ensurepip_is_told_apart(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = fake_program(tmp_path / "python3", "echo 'ensurepip is not available'; exit 1")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(SystemExit, match=r"error\[VenvMissing\].*\n.*apt-get install python3\.\d+-venv"):
        environment.create()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES FROM", "differs from its locked hash"),
        ("ERROR: Could not find a version that satisfies the requirement a==1", "registry was not reached"),
    ],
)
def test_a_failure_of_pip_is_explained(said: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        environment.explain(said)


def find_python(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", FIND_PYTHON], env={"PATH": str(path)}, capture_output=True, text=True, check=False
    )


def test_the_first_python_that_is_new_enough_is_taken(tmp_path: Path) -> None:
    fake_program(tmp_path / "python3", 'case "$2" in *print*) echo 3.9;; *) exit 1;; esac')
    new = fake_program(tmp_path / "python3.12", 'case "$2" in *print*) echo 3.12;; *) exit 0;; esac')
    assert find_python(tmp_path).stdout.strip() == str(new)


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    fake_program(tmp_path / "python3", 'case "$2" in *print*) echo 3.9;; *) exit 1;; esac')
    found = find_python(tmp_path)
    assert (found.returncode, found.stdout) == (1, "")
    assert "error[PythonMissing]: gpufleet needs Python 3.11 or newer; python3 is 3.9" in found.stderr

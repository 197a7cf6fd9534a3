"""`make check` proves that requirements/ follows from pyproject.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from tools import locks


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(locks, "ROOT", tmp_path)
    (tmp_path / "requirements").mkdir()
    return tmp_path / "requirements"


def test_pins_are_read_by_canonical_name_and_only_for_this_platform(requirements: Path) -> None:
    (requirements / "dev.txt").write_text(
        "# by make lock\nPy_YAML==6.0.3 \\\n    --hash=sha256:00\n"
        "colorama==0.4 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
        "uvloop==0.23 ; sys_platform != 'win32' \\\n    --hash=sha256:00\n"
    )
    assert locks.read_pins("dev") == {"py-yaml": Version("6.0.3"), "uvloop": Version("0.23")}


def test_a_pin_without_a_hash_is_found(requirements: Path) -> None:
    (requirements / "dev.txt").write_text(
        "a==1 \\\n    --hash=sha256:00\nb==2\nc==3 \\\n    --hash=sha256:00\n"
    )
    assert locks.unhashed("dev") == ["b"]


def test_a_requirement_must_be_pinned_to_a_version_that_satisfies_it() -> None:
    wanted = [Requirement("a>=2,<3"), Requirement("b"), Requirement("c>=1")]
    pins = {"a": Version("3.1"), "c": Version("1.0")}
    assert locks.unsatisfied(wanted, pins, "pyproject.toml") == [
        "pyproject.toml needs a<3,>=2, but 3.1 is pinned",
        "pyproject.toml needs b, which is not pinned",
    ]


def test_the_locks_of_this_checkout_follow_from_its_pyproject() -> None:
    assert locks.problems() == []

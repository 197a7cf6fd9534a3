"""`make check` finds links in the documentation that lead nowhere, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import links


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(links, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "there.md").write_text("# There\n\n## What's *new*?\n\n## Twice\n\n## Twice\n")
    return tmp_path


def dead(repository: Path, text: str) -> list[str]:
    source = repository / "docs" / "page.md"
    source.write_text(text)
    return [line.removeprefix("docs/page.md:") for line in links.dead_links(source)]


@pytest.mark.parametrize(
    "text",
    [
        "[a](there.md) and [b](../docs/there.md#whats-new)",
        "[twice](there.md#twice-1)",
        "[here](#title)\n\n# Title",
        '[titled](there.md "a title"), ![image](there.md), [angled](<there.md>)',
        "[outside](https://example.org/nowhere) [mail](mailto:a@example.org)",
        "```\n[in code](nowhere.md)\n```\nand `[in code](nowhere.md)`",
        "[folder](../docs)",
    ],
)
def test_links_that_lead_somewhere_are_not_reported(repository: Path, text: str) -> None:
    assert dead(repository, text) == []


def test_a_missing_file_is_reported_with_its_line(repository: Path) -> None:
    assert dead(repository, "one\n\n[two](nowhere.md)\n") == ["3: nowhere.md: no such file"]


def test_line_numbers_count_the_lines_of_code_blocks(repository: Path) -> None:
    assert dead(repository, "```\na\nb\n```\n[c](nowhere.md)") == ["5: nowhere.md: no such file"]


def test_a_missing_heading_is_reported(repository: Path) -> None:
    assert dead(repository, "[a](there.md#old)") == ["1: there.md#old: docs/there.md has no heading for #old"]


def test_a_reference_definition_is_a_link(repository: Path) -> None:
    assert dead(repository, "see [the page][1]\n\n[1]: nowhere.md\n") == ["3: nowhere.md: no such file"]


def test_a_link_must_not_leave_the_repository(repository: Path) -> None:
    assert dead(repository, "[a](../../secret.md)") == ["1: ../../secret.md: points outside the repository"]

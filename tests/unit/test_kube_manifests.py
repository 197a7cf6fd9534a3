"""Manifests are read from YAML, and a mistake in them is told with its place and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.manifests import read_manifests

NAMED = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "m.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_documents_and_items_of_lists_are_objects(tmp_path: Path) -> None:
    listed = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: q}}\n"
    empty = "apiVersion: v1\nkind: List\nitems: []\n"
    found = read_manifests(write(tmp_path, f"---\n{NAMED}---\n---\n{listed}---\n{empty}"))
    assert [manifest["metadata"]["name"] for manifest in found] == ["p", "q"]


@pytest.mark.parametrize(
    ("content", "reason", "says"),
    [
        (b"apiVersion: \xff", "InvalidYaml", "byte 12 is not UTF-8"),
        ("a: [", "InvalidYaml", ", line 2"),
        ("[" * 200_000, "InvalidYaml", "nested deeper than 100 levels"),
        ("a: 2026-13-45", "InvalidYaml", "month"),
        ("just text", "InvalidManifest", "document 1: what has no apiVersion and kind"),
        (f"{NAMED}---\nkind: Pod\n", "InvalidManifest", "document 2: what has no apiVersion and kind"),
        ("apiVersion: 1\nkind: Pod\n", "InvalidManifest", "no apiVersion and kind"),
        ("apiVersion: v1\nkind: List\nitems:\n", "InvalidManifest", "the items of a List are not a list"),
        ("apiVersion: v1\nkind: List\n", "InvalidManifest", "the items of a List are not a list"),
        ("apiVersion: v1\nkind: List\nitems: [1]\n", "InvalidManifest", "item 1: what has no apiVersion"),
        ("apiVersion: v1\nkind: Pod\nmetadata:\n", "InvalidManifest", "the Pod has no name"),
        ("apiVersion: v1\nkind: Pod\n", "InvalidManifest", "the Pod has no name"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: 7}\n", "InvalidManifest", "the Pod has no name"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_a_remedy(
    tmp_path: Path, content: str | bytes, reason: str, says: str
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(GpufleetError) as wrong:
        read_manifests(path)
    assert wrong.value.reason == reason
    assert str(path) in wrong.value.message
    assert says in wrong.value.message
    assert wrong.value.hint


def test_a_file_that_is_not_there_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(GpufleetError, match="FileUnreadable"):
        read_manifests(tmp_path / "nowhere.yaml")

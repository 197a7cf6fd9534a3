"""How deep YAML may nest: files that people write nest a dozen levels, hostile or broken ones without end.

PyYAML builds nodes by recursion: its Python loader raises RecursionError for a few hundred levels, its C
loader ends the process. The events of a document come without recursion, so they are counted first.
"""

from __future__ import annotations

from typing import cast

import yaml

DEEPEST = 100
"""Levels of lists and mappings."""


def check_nesting(text: str) -> None:
    """Raise MarkedYAMLError, with the place, for a text that nests deeper than DEEPEST or is no YAML."""
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise yaml.MarkedYAMLError(
                    problem=f"lists and mappings are nested deeper than {DEEPEST} levels",
                    problem_mark=cast(yaml.Mark, event.start_mark),
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1

"""Dead links in the documentation: relative files and heading anchors that Markdown files point to.

Only links inside the repository are judged; an address with a scheme is left alone, so the check needs no
network. Anchors follow the rule that code hosts use for headings: lower case, punctuation dropped, spaces to
hyphens, a repeated heading numbered.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
LINK = re.compile(
    r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE
)
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
EXPLICIT = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")


def prose(text: str) -> str:
    """A document without its code, line breaks kept so that line numbers stay true."""
    without_blocks = FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    return CODE.sub(lambda span: " " * len(span[0]), without_blocks)


def slug(heading: str) -> str:
    """The anchor of a heading: `## What's *new*?` has `whats-new`."""
    shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Every anchor of a document."""
    text = FENCE.sub("", path.read_text())
    found = set(EXPLICIT.findall(text))
    for heading in HEADING.findall(text):
        base = name = slug(heading)
        repeat = 0
        while name in found:
            repeat += 1
            name = f"{base}-{repeat}"
        found.add(name)
    return frozenset(found)


def problem_of(source: Path, target: str) -> str:
    """Why a link of `source` is dead, empty when it is not."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return ""
    address, _, anchor = target.partition("#")
    path = (source.parent / unquote(address)).resolve() if address else source
    if not path.is_relative_to(ROOT):
        return "points outside the repository"
    if not path.exists():
        return "no such file"
    if anchor and path.suffix == ".md" and unquote(anchor) not in anchors(path):
        return f"{path.relative_to(ROOT)} has no heading for #{anchor}"
    return ""


def dead_links(source: Path) -> list[str]:
    """The dead links of one document, as `file:line: link: why`."""
    text = prose(source.read_text())
    found = []
    for match in LINK.finditer(text):
        target = match[1] or match[2]
        if why := problem_of(source, target):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{source.relative_to(ROOT)}:{line}: {target}: {why}")
    return found


def documents() -> list[Path]:
    """Every Markdown file of the repository that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for line in listed.splitlines() if (path := ROOT / line).is_file()]


def main() -> None:
    """Check every document and end with 1 when a link is dead."""
    if found := [line for document in documents() for line in dead_links(document)]:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()

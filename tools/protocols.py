"""Protocol buffers, compiled by `python -m tools.protocols`; `--check` fails when the modules are stale.

Only messages are generated, with their types; the services are declared by hand next to them, because
generated ones have no types.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src"
SUFFIXES = ("_pb2.py", "_pb2.pyi")


def render() -> dict[Path, str]:
    """Every generated module by its path below src."""
    protocols = sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"-I{SOURCES}", f"--python_out={folder}", f"--pyi_out={folder}", *protocols]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True)
        written = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {path.relative_to(folder): path.read_text() for path in sorted(written)}


def stale(modules: dict[Path, str]) -> list[str]:
    """Modules that differ from what the protocols say, and modules without a protocol."""
    present = {path.relative_to(SOURCES) for suffix in SUFFIXES for path in SOURCES.rglob(f"*{suffix}")}
    problems = [f"src/{path} has no .proto" for path in sorted(present - modules.keys())]
    for path, content in modules.items():
        if path not in present or (SOURCES / path).read_text() != content:
            problems.append(f"src/{path} is not what its .proto says")
    return problems


def main() -> None:
    """Write the modules, or check them with `--check`."""
    parser = argparse.ArgumentParser(description="Compile the .proto files of src.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a module is stale")
    check = parser.parse_args().check
    modules = render()
    if check:
        if problems := stale(modules):
            sys.exit("\n".join([*problems, "hint: make gen"]))
        return
    for path, content in modules.items():
        (SOURCES / path).write_text(content)
        print(f"wrote src/{path}")


if __name__ == "__main__":
    main()

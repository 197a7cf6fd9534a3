"""deploy/monitoring, written from the code by `python -m tools.monitoring`; `--check` fails when stale."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

from gpufleet.devices.monitoring import dashboard, service_monitor

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "monitoring"
NOTE = "# Written by `make gen` from the code; change it there.\n"


def render() -> dict[str, str]:
    """Every generated file, by name."""
    return {
        "servicemonitor.yaml": NOTE + yaml.safe_dump(service_monitor(), sort_keys=False),
        "grafana-dashboard.json": json.dumps(dashboard(), indent=2) + "\n",
    }


def stale(files: dict[str, str], folder: Path) -> list[str]:
    """Files that differ from what the code says, and files that no code writes."""
    present = {path.name for path in folder.iterdir()} if folder.exists() else set()
    problems = [f"deploy/monitoring/{name} is not generated" for name in sorted(present - files.keys())]
    for name, content in files.items():
        if name not in present or (folder / name).read_text() != content:
            problems.append(f"deploy/monitoring/{name} is not what the code says")
    return problems


def main() -> None:
    """Write the files, or check them with `--check`."""
    parser = argparse.ArgumentParser(description="Write deploy/monitoring from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is stale")
    check = parser.parse_args().check
    files = render()
    if check:
        if problems := stale(files, FOLDER):
            sys.exit("\n".join([*problems, "hint: make gen"]))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (FOLDER / name).write_text(content)
        print(f"wrote deploy/monitoring/{name}")


if __name__ == "__main__":
    main()

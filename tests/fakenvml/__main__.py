"""`python -m tests.fakenvml FOLDER --product h100 --gpus 8`: a fake NVML in a folder, for any client."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tests.fakenvml.library import STATE, build
from tests.fakenvml.products import machine
from tests.fakenvml.statefile import MachineFile

from gpufleet.fleet.products import find_product


def main() -> None:
    """Build the library and write the state file; prints what to put into the environment."""
    parser = argparse.ArgumentParser(prog="python -m tests.fakenvml", description="make a fake NVML")
    parser.add_argument("folder", type=Path, help="where the library and the state file go")
    parser.add_argument("--product", default="h100", help="a GPU product of gpufleet's table (default: h100)")
    parser.add_argument("--gpus", type=int, default=8, help="how many of them (default: 8)")
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    library = build(folder)
    state = folder / "machine"
    MachineFile(state).update(lambda _: machine(find_product(given.product), given.gpus, now_s=time.time()))
    print(f"export LD_LIBRARY_PATH={library.parent} {STATE}={state}")


if __name__ == "__main__":
    main()

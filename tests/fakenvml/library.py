"""Building `libnvidia-ml.so.1` from its sources with the machine's C compiler."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

NAME = "libnvidia-ml.so.1"
STATE = "GPUFLEET_FAKE_NVML"
"""The environment variable that names the state file; read when a process initialises NVML."""

SOURCES = Path(__file__).parent / "native"
_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
_LINK = ("-shared", f"-Wl,-soname,{NAME}", "-pthread")


def compiler() -> str | None:
    """The C compiler: `$CC`, `cc`, `gcc` or `clang`, whichever is there first; None without any."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """The library, built in `folder` unless it is there already from the same sources.

    Raises RuntimeError, with what the compiler says, when it cannot be built.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("there is no C compiler: install gcc or clang, or set CC")
    sources = sorted(SOURCES.glob("*.[ch]"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    library = folder / digest / NAME
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        draft = library.with_name(f"{NAME}.{os.getpid()}")
        code = [str(path) for path in sources if path.suffix == ".c"]
        done = subprocess.run(
            [command, *_FLAGS, *_LINK, *code, "-o", str(draft)], capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise RuntimeError(f"{command} cannot build {NAME}:\n{done.stderr}")
        draft.replace(library)
    return library

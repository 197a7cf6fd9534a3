"""Finding and building the control plane, against a `go` that is a small script: no network, no compiler."""

from __future__ import annotations

import fcntl
import re
import signal
import threading
from pathlib import Path

import pytest
from tests.unit.go_machines import Machine, assets, wait_for

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local import controlplane
from gpufleet.local.controlplane import COMPONENTS, KUBERNETES_VERSION
from gpufleet.local.gobinary import source_hash

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
    seen = [source_hash(source, "-s")]
    for name in ("go.mod", "go.sum", "up/main.go", "up/more.go"):
        with (source / name).open("a") as file:
            file.write("changed\n")
        seen.append(source_hash(source, "-s"))
    (source / "up/more.go").rename(source / "up/other.go")
    seen.append(source_hash(source, "-s"))
    assert len(set(seen)) == len(seen)
    (source / "README.md").write_text("words")
    assert source_hash(source, "-s") == seen[-1]
    assert source_hash(source, "-s -w") not in seen
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

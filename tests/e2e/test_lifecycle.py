"""The life of a local fleet: up, down, kills of every kind, and nothing ever left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
from pathlib import Path

import psutil
import pytest
import yaml
from tests.e2e.conftest import NewFleet
from tests.e2e.kubectl import Kubectl
from tests.e2e.local_fleet import COMPONENTS, TINY, LocalFleet, wait_until

from gpufleet.kube.client import Client
from gpufleet.kube.config import load_config
from gpufleet.kube.kinds import CONFIG_MAPS, NODES, PODS
from gpufleet.kube.objects import Node

pytestmark = pytest.mark.timeout(1800)


def keep(fleet: LocalFleet, key: str) -> None:
    """Write a ConfigMap into the fleet."""

    async def write() -> None:
        async with Client(load_config(str(fleet.kubeconfig))) as client:
            await client.create(CONFIG_MAPS, {"metadata": {"name": key}, "data": {"kept": key}}, "default")

    asyncio.run(write())


def kept(fleet: LocalFleet, key: str) -> bool:
    """Whether the ConfigMap is there, with its content."""

    async def read() -> bool:
        async with Client(load_config(str(fleet.kubeconfig))) as client:
            found = await client.get(CONFIG_MAPS, key, "default")
            return bool(found["data"] == {"kept": key})

    return asyncio.run(read())


def test_up_says_how_to_reach_the_fleet_and_status_knows_it(fleet: LocalFleet) -> None:
    said = fleet.up()
    assert f"export KUBECONFIG={fleet.kubeconfig}" in said
    status = fleet.status()
    assert status["ready"] is True
    assert status["fleet"] == fleet.name
    assert status["kubeconfig"] == str(fleet.kubeconfig)
    assert status["nodes"] == 3
    assert status["gpus"] == {"total": 20, "allocated": 0, "free": 20, "unhealthy": 0}
    assert status["pods"] == {"running": 0, "pending": 0}
    assert {one["name"] for one in status["components"]} == {*COMPONENTS, "supervisor"}
    assert all(one["state"] == "running" and psutil.pid_exists(one["pid"]) for one in status["components"])


def test_up_on_a_running_fleet_changes_nothing(fleet: LocalFleet) -> None:
    before = fleet.status()["components"]
    assert "already running" in fleet.up()
    assert fleet.status()["components"] == before


def test_status_names_a_deleted_node_and_up_brings_it_back_with_its_gpus(fleet: LocalFleet) -> None:
    async def delete_one() -> str:
        async with Client(load_config(str(fleet.kubeconfig))) as client:
            name = (await client.list(NODES, type=Node)).items[0].metadata.name
            await client.delete(NODES, name)
            return name

    name = asyncio.run(delete_one())
    assert fleet.status()["ready"] is False
    said = fleet.run("status").stdout
    assert "2 of 3" in said
    assert f"deleted: {name}; gpufleet up" in said
    fleet.up()
    assert fleet.status()["nodes"] == 3
    wait_until(lambda: fleet.status()["ready"], "the fleet is ready again")
    wait_until(lambda: fleet.status()["gpus"]["total"] == 20, "all GPUs are reported again")


def test_secrets_are_private(fleet: LocalFleet) -> None:
    for path in [fleet.root, *fleet.root.rglob("*")]:
        if not path.is_symlink() and (fleet.root / "etcd") not in path.parents:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_everything_listens_on_loopback_only(fleet: LocalFleet) -> None:
    ours = set(fleet.processes())
    addresses = {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.laddr and connection.pid in ours and connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_kubeconfig_is_told_printed_and_merged(fleet: LocalFleet, tmp_path: Path) -> None:
    assert fleet.run("kubeconfig").stdout == f"{fleet.kubeconfig}\n"
    printed = yaml.safe_load(fleet.run("kubeconfig", "print").stdout)
    assert printed["current-context"] == f"gpufleet-{fleet.name}"
    target = tmp_path / "config"
    assert fleet.run("kubeconfig", "--merge", "--into", str(target)).returncode == 0
    assert Kubectl.on(fleet, tmp_path)("--kubeconfig", str(target), "get", "--raw", "/readyz") == "ok"


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_that_is_killed_comes_back_and_status_says_so(fleet: LocalFleet, component: str) -> None:
    restarts = fleet.component(component)["restarts"]
    killed = fleet.kill(component)
    wait_until(
        lambda: fleet.component(component)["restarts"] > restarts and fleet.status()["ready"],
        f"{component} is back",
        seconds=90,
    )
    found = fleet.component(component)
    assert found["pid"] != killed
    assert found["restarts"] == restarts + 1
    assert found["last_exit"] == -signal.SIGKILL


def test_a_silent_api_server_is_told_quickly(fleet: LocalFleet) -> None:
    pid = fleet.kill("kube-apiserver", signal.SIGSTOP)
    try:
        status = fleet.status()
        assert status["ready"] is False
        assert status["nodes"] is None
        assert {one["name"] for one in status["components"]} == {*COMPONENTS, "supervisor"}
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: fleet.status()["ready"], "the fleet is ready again")


def test_a_new_supervisor_adopts_what_a_killed_one_left(fleet: LocalFleet) -> None:
    before = {one["name"]: one["pid"] for one in fleet.status()["components"]}
    fleet.kill("supervisor")
    wait_until(lambda: not psutil.pid_exists(before["supervisor"]), "the supervisor is gone")
    orphaned = fleet.status()
    assert orphaned["ready"] is False
    assert all(one["state"] == "running" for one in orphaned["components"] if one["name"] != "supervisor")
    fleet.up()
    after = {one["name"]: one["pid"] for one in fleet.status()["components"]}
    assert {name: after[name] for name in COMPONENTS} == {name: before[name] for name in COMPONENTS}
    assert after["supervisor"] != before["supervisor"]


def test_a_changed_fleet_file_is_taken_up_while_the_fleet_runs(fleet: LocalFleet, tmp_path: Path) -> None:
    keep(fleet, "before-the-change")
    larger = tmp_path / "larger.yaml"
    larger.write_text(TINY.replace("count: 1", "count: 2"))
    api_server = fleet.component("kube-apiserver")["pid"]
    fleet.up("--fleet", str(larger))
    status = fleet.status()
    assert (status["nodes"], status["gpus"]["total"]) == (4, 24)
    assert fleet.component("kube-apiserver")["pid"] == api_server
    assert kept(fleet, "before-the-change")


def test_a_wrong_fleet_file_is_refused_before_anything_changes(fleet: LocalFleet, tmp_path: Path) -> None:
    before = fleet.status()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("groups:\n  - name: a\n    gpu: h1000\n")
    done = fleet.run("up", "--fleet", str(wrong))
    assert done.returncode == 1
    assert f"{wrong}:3:" in done.stderr
    assert fleet.status() == before


def test_a_change_that_fails_is_taken_back(fleet: LocalFleet) -> None:
    done = fleet.run("up", "--component-arg", "kube-controller-manager=--no-such-flag")
    assert done.returncode == 1
    assert "no-such-flag" in done.stderr
    wait_until(lambda: fleet.status()["ready"], "the fleet works as before")
    assert "already running" in fleet.up()


def run_as_process(fleet: LocalFleet, name: str, script: str) -> None:
    """Run a shell script as a pod that is a real process, and wait until it runs."""
    pod = {
        "metadata": {"name": name, "annotations": {"gpufleet.dev/runtime": "process"}},
        "spec": {
            "nodeName": "train-0",
            "restartPolicy": "Never",
            "containers": [{"name": "main", "image": "none", "command": ["sh", "-c", script]}],
        },
    }

    async def run() -> None:
        async with Client(load_config(str(fleet.kubeconfig))) as client:
            await client.create(PODS, pod, "default")
            async with asyncio.timeout(60):
                while (await client.get(PODS, name, "default"))["status"]["phase"] == "Pending":
                    await asyncio.sleep(0.1)

    asyncio.run(run())


def test_logs_are_read_through_the_api_server_and_followed_to_their_end(fleet: LocalFleet) -> None:
    run_as_process(fleet, "speaker", "echo first; sleep 3; echo last")
    following = fleet.start("logs", "speaker", "--follow")
    said, errors = following.communicate(timeout=60)
    assert (said, errors, following.returncode) == ("first\nlast\n", "", 0)
    assert fleet.run("logs", "speaker", "--tail", "1").stdout == "last\n"
    assert fleet.run("logs", "nobody").returncode == 5


def test_a_pod_that_nobody_places_is_told_so_by_logs_and_why(fleet: LocalFleet) -> None:
    manifest = {
        "metadata": {"name": "dynamic"},
        "spec": {
            "containers": [{"name": "main", "image": "none"}],
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "nowhere"}],
        },
    }

    async def create() -> None:
        async with Client(load_config(str(fleet.kubeconfig))) as client:
            await client.create(PODS, manifest, "default")

    asyncio.run(create())
    silent = fleet.run("logs", "dynamic")
    assert (silent.returncode, silent.stdout) == (1, "")
    assert "gpufleet why dynamic" in silent.stderr
    told = fleet.run("why", "dynamic").stdout
    assert "kube-scheduler" in told
    assert "ResourceClaim default/nowhere does not exist" in told


def test_workloads_that_are_processes_end_with_the_fleet_whoever_was_killed(fleet: LocalFleet) -> None:
    run_as_process(fleet, "sleeper", "exec sleep 98765")
    assert any("sleep 98765" in line for line in fleet.processes().values())
    fleet.kill("supervisor")
    fleet.kill("simulated-nodes")
    assert any("sleep 98765" in line for line in fleet.processes().values())
    fleet.down()
    assert fleet.processes() == {}
    fleet.up()


def test_down_leaves_no_process_and_no_port_and_up_brings_everything_back(fleet: LocalFleet) -> None:
    keep(fleet, "survivor")
    kubeconfig, ports, nodes = fleet.kubeconfig.read_bytes(), fleet.ports(), fleet.status()["nodes"]
    said = fleet.down()
    assert all(f"stopped {name}" in said for name in (*COMPONENTS, "supervisor"))
    assert fleet.processes() == {}
    assert fleet.listening() == []
    stopped = fleet.status()
    assert stopped["ready"] is False
    assert {(one["state"], one["pid"]) for one in stopped["components"]} == {("stopped", None)}
    assert "not running" in fleet.down()

    fleet.up()
    assert kept(fleet, "survivor")
    assert fleet.kubeconfig.read_bytes() == kubeconfig
    assert fleet.ports() == ports
    assert fleet.status()["nodes"] == nodes


def test_down_works_without_a_supervisor(fleet: LocalFleet) -> None:
    fleet.kill("supervisor")
    said = fleet.down()
    assert "stopped etcd" in said
    assert fleet.processes() == {}
    assert fleet.listening() == []


def test_a_port_that_another_program_took_is_replaced_and_said(fleet: LocalFleet) -> None:
    port = fleet.ports()["api-server"]
    with socket.create_server(("127.0.0.1", port)):
        done = fleet.run("up", "--unsafe-no-fsync")
        assert done.returncode == 0, done.stderr
        assert "another program uses the port of api-server" in done.stderr
        assert fleet.ports()["api-server"] != port
        assert fleet.status()["ready"] is True


def test_two_fleets_live_side_by_side(fleet: LocalFleet, new_fleet: NewFleet, tiny: Path) -> None:
    other = new_fleet("side-by-side")
    other.up("--fleet", str(tiny))
    assert set(fleet.ports().values()).isdisjoint(other.ports().values())
    keep(other, "only-here")
    with pytest.raises(Exception, match="not found"):
        kept(fleet, "only-here")
    other.down("--purge")
    assert not other.root.exists()
    assert other.run("status").returncode == 5
    assert fleet.status()["ready"] is True


def test_ctrl_c_during_up_leaves_nothing(new_fleet: NewFleet, tiny: Path) -> None:
    interrupted = new_fleet("interrupted")
    starting = interrupted.start("up", "--unsafe-no-fsync", "--fleet", str(tiny))
    wait_until(lambda: "etcd" in str(interrupted.processes()), "etcd has started")
    starting.send_signal(signal.SIGINT)
    _, said = starting.communicate(timeout=90)
    assert starting.returncode == 130
    assert "Traceback" not in said
    assert interrupted.processes() == {}


def test_a_component_that_cannot_start_is_told_with_its_last_words(new_fleet: NewFleet, tiny: Path) -> None:
    broken = new_fleet("broken")
    done = broken.run("up", "--fleet", str(tiny), "--component-arg", "kube-apiserver=--no-such-flag")
    assert done.returncode == 1
    assert "error[ComponentFailed]: kube-apiserver keeps ending" in done.stderr
    assert "unknown flag: --no-such-flag" in done.stderr
    assert str(broken.root / "logs" / "kube-apiserver.log") in done.stderr
    assert broken.processes() == {}


def test_up_and_down_at_once_take_turns(new_fleet: NewFleet, tiny: Path) -> None:
    busy = new_fleet("busy")
    first = busy.start("up", "--unsafe-no-fsync", "--fleet", str(tiny))
    wait_until(lambda: "etcd" in str(busy.processes()), "etcd has started")
    second = busy.start("down")
    assert first.communicate(timeout=240)
    assert second.communicate(timeout=240)
    assert (first.returncode, second.returncode) == (0, 0)
    assert busy.processes() == {}


def test_json_of_status_has_the_names_that_scripts_rely_on(fleet: LocalFleet) -> None:
    status = json.loads(json.dumps(fleet.status()))
    assert set(status) == {"fleet", "ready", "kubeconfig", "metrics", "nodes", "gpus", "pods", "components"}
    assert set(status["gpus"]) == {"total", "allocated", "free", "unhealthy"}
    assert set(status["pods"]) == {"running", "pending"}
    assert all({"name", "pid", "state"} <= set(one) for one in status["components"])


def test_top_lists_every_gpu_with_the_names_that_scripts_rely_on(fleet: LocalFleet) -> None:
    gpus = json.loads(fleet.run("top", "gpus", "-o", "json").stdout)
    assert len(gpus) == fleet.status()["gpus"]["total"]
    names = {"node", "index", "uuid", "product", "memory_mib", "util_percent", "pods", "healthy"}
    assert all(names <= set(gpu) for gpu in gpus)
    nodes = fleet.run("top", "nodes", "--no-headers").stdout.splitlines()
    assert [line.split("\t")[0] for line in nodes] == sorted({gpu["node"] for gpu in gpus})
    watching = fleet.start("top", "nodes", "--watch", "--interval", "0.2")
    assert watching.stdout is not None
    assert watching.stdout.readline().startswith("NODE\t")
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=30)
    assert watching.returncode == 130

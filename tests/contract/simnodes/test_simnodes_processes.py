"""Pods with `gpufleet.dev/runtime: process`: real processes, probes and logs through the real API server."""

from __future__ import annotations

import asyncio
import signal
import ssl
import textwrap
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.contract.servers import free_port
from tests.contract.simnodes.fleet import FLEET, Cluster, Opening, is_ready, manifest, until

from gpufleet.kube.kinds import CONFIG_MAPS, NODES, PODS, SECRETS
from gpufleet.kube.objects import Node, Pod, PodStatus

PROCESS = {"gpufleet.dev/runtime": "process"}


def process(name: str, script: str, gpus: int = 0, **rest: Any) -> dict[str, Any]:
    """A pod whose container runs a shell script as a process."""
    container = {"command": ["/bin/sh", "-c", textwrap.dedent(script)], **rest.pop("container", {})}
    return manifest(name, gpus, container=container, metadata={"annotations": PROCESS}, **rest)


def server(name: str, port: int, **container: Any) -> dict[str, Any]:
    """A pod whose container answers HTTP on a port; /fail switches it to answer 500."""
    code = f"""
        import http.server, sys
        class Handler(http.server.BaseHTTPRequestHandler):
            broken = False
            def do_GET(self):
                if self.path == "/fail":
                    Handler.broken = True
                self.send_response(500 if Handler.broken and self.path != "/fail" else 200)
                self.end_headers()
            def log_message(self, *args): pass
        print("listening", flush=True)
        http.server.HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
    """
    body = {"command": ["python3", "-c", textwrap.dedent(code)], **container}
    return manifest(name, container=body, metadata={"annotations": PROCESS})


async def test_a_process_sees_its_environment_and_its_gpus(cluster: Opening) -> None:
    async with cluster as c:
        await c.client.create(
            CONFIG_MAPS, {"metadata": {"name": "m"}, "data": {"MODEL": "x", "K": "v"}}, c.namespace
        )
        secret = {"metadata": {"name": "s"}, "stringData": {"token": "t0k3n"}}
        await c.client.create(SECRETS, secret, c.namespace)
        env = [
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}},
            {"name": "BOTH", "value": "$(POD)-$(MODEL)-$$(K)"},
        ]
        script = """
            echo "$POD $NODE $CPUS $TOKEN $BOTH"
            echo "$CUDA_VISIBLE_DEVICES|$NVIDIA_VISIBLE_DEVICES"
            exit 7
        """
        body = process(
            "p",
            script,
            2,
            restartPolicy="Never",
            container={"env": env, "envFrom": [{"configMapRef": {"name": "m"}}]},
        )
        await c.bind(body, "gpu-0")
        pod = await c.phase("p", "Failed")
        terminated = pod.status.container_statuses[0].state.terminated
        assert terminated is not None
        assert (terminated.exit_code, terminated.reason) == (7, "Error")
        first, second = (await c.logs("p")).splitlines()
        assert first == "p gpu-0 32 t0k3n p-x-$(K)"
        cuda, nvidia = second.split("|")
        assert cuda == nvidia
        assert len(set(cuda.split(","))) == 2


async def test_what_cannot_be_created_waits_with_a_reason_and_starts_once_it_can(cluster: Opening) -> None:
    async with cluster as c:
        env = {"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "x"}}}]}
        await c.bind(process("p", "echo got $X; sleep 60", container=env), "cpu-0")
        await c.bind(manifest("q", metadata={"annotations": PROCESS}), "cpu-0")
        await c.bind(
            manifest("r", container={"command": ["no-such-program"]}, metadata={"annotations": PROCESS}),
            "cpu-0",
        )
        assert "late" in await until(lambda: _waiting(c, "p", "CreateContainerConfigError"))
        assert "needs a command" in await until(lambda: _waiting(c, "q", "CreateContainerError"))
        assert "no-such-program" in await until(lambda: _waiting(c, "r", "RunContainerError"))
        await c.client.create(CONFIG_MAPS, {"metadata": {"name": "late"}, "data": {"x": "it"}}, c.namespace)
        await c.ready("p")
        await until(lambda: _logged(c, "p", "got it"))


async def _waiting(cluster: Cluster, name: str, reason: str) -> str | None:
    statuses = (await cluster.pod(name)).status.container_statuses
    waiting = statuses[0].state.waiting if statuses else None
    return waiting.message if waiting is not None and waiting.reason == reason else None


async def _logged(cluster: Cluster, name: str, text: str, **query: str) -> str | None:
    logs = await cluster.logs(name, **query)
    return logs if text in logs else None


async def test_a_process_may_end_in_peace_within_its_grace_period(cluster: Opening, tmp_path: Path) -> None:
    async with cluster as c:
        script = f"""
            trap 'sleep 0.5; echo done > {tmp_path}/done; exit 0' TERM
            echo up
            while true; do sleep 0.1; done
        """
        await c.bind(process("p", script, terminationGracePeriodSeconds=20), "cpu-0")
        await until(lambda: _logged(c, "p", "up"))
        await c.delete("p")
        await c.gone("p")
        assert (tmp_path / "done").read_text() == "done\n"
        await until(lambda: _no_children(cluster))


@pytest.mark.parametrize(
    ("command", "failed"), [("echo hook >> {0}", False), ("echo hook >> {0}; exit 7", True)]
)
async def test_a_prestop_hook_runs_before_the_process_is_asked_to_end(
    cluster: Opening, tmp_path: Path, command: str, failed: bool
) -> None:
    async with cluster as c:
        said = tmp_path / "said"
        script = f"trap 'echo term >> {said}; exit 0' TERM; echo up; while true; do sleep 0.1; done"
        hook = {"exec": {"command": ["/bin/sh", "-c", f"sleep 0.3; {command.format(said)}"]}}
        await c.bind(process("p", script, container={"lifecycle": {"preStop": hook}}), "cpu-0")
        await until(lambda: _logged(c, "p", "up"))
        await c.delete("p", grace=20)
        await c.gone("p")
        assert said.read_text() == "hook\nterm\n"
        if failed:
            await until(lambda: c.events("FailedPreStopHook"))
        await until(lambda: _no_children(cluster))


async def test_a_prestop_hook_that_does_not_end_costs_no_more_than_the_grace_period(cluster: Opening) -> None:
    async with cluster as c:
        hook = {"exec": {"command": ["sleep", "300"]}}
        script = "echo up; while true; do sleep 0.1; done"
        await c.bind(process("p", script, container={"lifecycle": {"preStop": hook}}), "cpu-0")
        await until(lambda: _logged(c, "p", "up"))
        await c.delete("p", grace=1)
        await c.gone("p")
        await until(lambda: _no_children(cluster))


async def test_volumes_that_a_process_does_not_see_are_told(cluster: Opening) -> None:
    async with cluster as c:
        mounts = [{"name": "scratch", "mountPath": "/scratch"}]
        body = process("p", "sleep 300", container={"volumeMounts": mounts}, volumes=[{"name": "scratch"}])
        await c.bind(body, "cpu-0")
        [note] = await until(lambda: c.events("VolumesNotMounted"))
        assert "scratch not mounted" in note


async def _no_children(cluster: Opening) -> bool:
    process = cluster.fleet.process
    own = process.pid if process else 0
    return not [pid for pid in cluster.fleet.children() if pid != own]


async def test_a_process_that_does_not_listen_is_killed_with_all_its_children(cluster: Opening) -> None:
    async with cluster as c:
        script = "trap '' TERM; sleep 300 & sleep 300 & echo up; while true; do sleep 1; done"
        await c.bind(process("p", script, terminationGracePeriodSeconds=1), "cpu-0")
        await until(lambda: _logged(c, "p", "up"))
        await c.delete("p")
        await c.gone("p")
        await until(lambda: _no_children(cluster))


async def test_a_crashing_process_is_restarted_and_its_last_words_are_kept(
    cluster: Opening, tmp_path: Path
) -> None:
    async with cluster as c:
        script = f"""
            n=$(cat {tmp_path}/n 2>/dev/null || echo 0); echo $((n+1)) > {tmp_path}/n
            echo "attempt $n"
            [ $n -ge 2 ] && sleep 60
            exit 9
        """
        await c.bind(process("p", script), "cpu-0")

        async def third() -> Pod | None:
            pod = await c.pod("p")
            statuses = pod.status.container_statuses
            return pod if statuses and statuses[0].restart_count == 2 and statuses[0].ready else None

        pod = await until(third)
        last = pod.status.container_statuses[0].last_state.terminated
        assert last is not None
        assert last.exit_code == 9
        await until(lambda: _logged(c, "p", "attempt 2"))
        assert await c.logs("p", previous="true") == "attempt 1\n"


async def test_probes_are_really_executed(cluster: Opening) -> None:
    async with cluster as c:
        port = free_port()
        http = {"httpGet": {"port": "web", "path": "/health"}, "periodSeconds": 1, "failureThreshold": 2}
        probes = {
            "ports": [{"name": "web", "containerPort": port}],
            "startupProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 30},
            "readinessProbe": http,
            "livenessProbe": {**http, "exec": None, "failureThreshold": 3},
        }
        await c.bind(server("p", port, **probes), "cpu-0")
        await c.ready("p")
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/fail"):
            pass

        async def unready() -> bool:
            return not (await c.pod("p")).status.container_statuses[0].ready

        await until(unready)

        async def again() -> bool:
            status = (await c.pod("p")).status.container_statuses[0]
            return status.restart_count == 1 and status.ready

        await until(again)
        assert (await c.logs("p", previous="true")).startswith("listening")


async def test_an_exec_probe_decides_readiness(cluster: Opening, tmp_path: Path) -> None:
    async with cluster as c:
        flag = tmp_path / "flag"
        probe = {"readinessProbe": {"exec": {"command": ["test", "-e", str(flag)]}, "periodSeconds": 1}}
        await c.bind(process("p", "sleep 60", container=probe), "cpu-0")
        await c.phase("p", "Running")
        assert not (await c.pod("p")).status.container_statuses[0].ready
        flag.touch()
        await c.ready("p")


async def test_logs_can_be_followed_cut_and_dated(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(
            process("p", "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.4; done", restartPolicy="Never"),
            "cpu-0",
        )
        await c.phase("p", "Running")
        followed = await c.logs("p", follow="true")
        assert followed == "".join(f"line {n}\n" for n in range(1, 7))
        await c.phase("p", "Succeeded")
        assert await c.logs("p", tailLines="2") == "line 5\nline 6\n"
        assert await c.logs("p", limitBytes="10") == "line 1\nlin"
        dated = await c.logs("p", timestamps="true", tailLines="1")
        assert dated.endswith("Z line 6\n")
        await asyncio.sleep(1.5)
        assert await c.logs("p", sinceSeconds="1") == ""


async def test_simulated_containers_tell_the_truth_and_execute_nothing(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(manifest("p", 1), "gpu-0")
        await c.ready("p")
        text = await c.logs("p")
        assert "it is not run" in text
        assert (await c.devices("gpu-0"))["p"][0] in text
        status, text = await _ask(cluster, f"exec/{c.namespace}/p/main", _context(cluster, "system:masters"))
        assert (status, "cannot run a command in a simulated container" in text) == (501, True)


async def _ask(cluster: Opening, path: str, context: ssl.SSLContext) -> tuple[int, str]:
    url = f"https://127.0.0.1:{cluster.fleet.kubelet_port}/{path}"
    async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as answer:
        return answer.status, await answer.text()


def _context(cluster: Opening, group: str | None) -> ssl.SSLContext:
    """A client of the kubelet endpoint with a certificate for `group`; None: without any."""
    folder = cluster.fleet.plane.folder
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    if group is not None:
        certificate, key = cluster.fleet.plane.authority.issue("asker", group)
        (folder / "asker.crt").write_bytes(certificate)
        (folder / "asker.key").write_bytes(key)
        context.load_cert_chain(folder / "asker.crt", folder / "asker.key")
    return context


async def test_only_the_control_plane_may_read_from_the_kubelet_endpoint(cluster: Opening) -> None:
    with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
        await _ask(cluster, "pods", _context(cluster, None))
    assert (await _ask(cluster, "pods", _context(cluster, "")))[0] == 403
    for path in ("pods", "healthz", "metrics"):
        assert (await _ask(cluster, path, _context(cluster, "system:masters")))[0] == 200


async def test_containers_are_taken_over_after_a_crash_and_never_run_twice(
    cluster: Opening, tmp_path: Path
) -> None:
    async with cluster as c:
        steady = f"echo $$ >> {tmp_path}/steady; while true; do echo tick; sleep 0.2; done"
        ending = f"echo $$ >> {tmp_path}/ending; sleep 2; exit 5"
        await c.bind(process("steady", steady, 1), "gpu-0")
        await c.bind(process("ending", ending, restartPolicy="Never"), "cpu-0")
        for name in ("steady", "ending"):
            await c.phase(name, "Running")
            await until(lambda name=name: _exists(tmp_path / name))  # type: ignore[misc]
        before, held = await c.pod("steady"), await c.devices("gpu-0")
        cluster.fleet.stop(signal.SIGKILL)
        await asyncio.sleep(2.5)
        await asyncio.to_thread(cluster.fleet.start)
        ended = (await c.phase("ending", "Failed")).status.container_statuses[0].state.terminated
        assert ended is not None
        assert ended.exit_code == 5, "the exit code of a process that ended while nobody looked is not lost"
        after = await c.pod("steady")
        assert after.status == before.status
        assert await c.devices("gpu-0") == held
        assert len((tmp_path / "steady").read_text().split()) == 1
        await c.delete("steady", grace=1)
        await c.gone("steady")
        await until(lambda: _no_children(cluster))


async def _exists(path: Path) -> bool:
    return path.exists()


async def test_containers_go_on_when_a_changed_fleet_file_makes_us_hand_over(
    cluster: Opening, tmp_path: Path
) -> None:
    async with cluster as c:
        await c.bind(process("p", f"echo $$ >> {tmp_path}/pids; sleep 300", 1), "gpu-0")
        await c.ready("p")
        await until(lambda: _exists(tmp_path / "pids"))
        before, running = await c.pod("p"), set(cluster.fleet.children())
        added = FLEET.replace("groups:\n", "groups:\n  - {name: added, cpu: 2}\n")
        try:
            await _handed_over(cluster, added)
            nodes = (await c.client.list(NODES, type=Node)).items
            assert "added-0" in {node.metadata.name for node in nodes if is_ready(node)}
            assert len({node.spec.pod_cidr for node in nodes}) == len(nodes), "addresses of pods are unique"
        finally:
            await _handed_over(cluster, FLEET)
        assert (await c.pod("p")).status == before.status
        assert running <= set(cluster.fleet.children())
        assert len((tmp_path / "pids").read_text().split()) == 1
        await asyncio.to_thread(cluster.fleet.stop)
        assert not cluster.fleet.children()


async def _handed_over(cluster: Opening, fleet: str) -> None:
    await asyncio.to_thread(cluster.fleet.stop, signal.SIGUSR1)
    cluster.fleet.fleet_file.write_text(fleet)
    await asyncio.to_thread(cluster.fleet.start)


async def test_a_container_whose_pod_went_while_nobody_looked_is_ended(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(process("p", "echo up; sleep 300"), "cpu-0")
        await until(lambda: _logged(c, "p", "up"))
        cluster.fleet.stop(signal.SIGKILL)
        assert cluster.fleet.children()
        await c.delete("p", grace=0)
        await asyncio.to_thread(cluster.fleet.start)
        await until(lambda: _no_children(cluster))


async def test_a_regular_stop_ends_all_processes_and_the_next_start_restarts_them(cluster: Opening) -> None:
    async with cluster as c:
        await c.bind(process("p", "echo up; sleep 300"), "cpu-0")
        await until(lambda: _logged(c, "p", "up"))
        await asyncio.to_thread(cluster.fleet.stop)
        assert not cluster.fleet.children()
        await asyncio.to_thread(cluster.fleet.start)

        async def restarted() -> bool:
            status = (await c.pod("p")).status.container_statuses[0]
            return status.restart_count == 1 and status.ready

        await until(restarted)


async def _stopped_before_it_was_told(
    cluster: Opening, c: Cluster, command: str, policy: str
) -> tuple[Pod, PodStatus]:
    """A pod whose process has run, of which the API server does not know yet that it ended: from an end that
    it knows there is no way back. On a busy machine that takes more than one try.
    """
    for number in range(5):
        name = f"p{number}"
        pod = await c.bind(process(name, command, restartPolicy=policy), "cpu-0")
        await until(lambda name=name: _logged(c, name, "up"))  # type: ignore[misc]
        await asyncio.to_thread(cluster.fleet.stop)
        status = (await c.pod(name)).status
        if all(one.state.terminated is None for one in status.container_statuses):
            return pod, status
        await asyncio.to_thread(cluster.fleet.start)
    raise AssertionError("the end was always told first")


@pytest.mark.parametrize(("policy", "command", "restarts", "runs"), [
    ("Never", "echo up; exit 3", 0, 1), ("Always", "echo up; sleep 300", 1, 2),
])  # fmt: skip
async def test_an_attempt_that_ran_before_its_status_was_written_is_not_run_again(
    cluster: Opening, policy: str, command: str, restarts: int, runs: int
) -> None:
    async with cluster as c:
        pod, status = await _stopped_before_it_was_told(cluster, c, command, policy)
        name = pod.metadata.name
        unwritten = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        unwritten["state"] = {"waiting": {"reason": "ContainerCreating"}}
        patch = {"phase": "Pending", "startTime": status.start_time, "containerStatuses": [unwritten]}
        await c.client.patch(PODS, name, {"status": patch}, c.namespace, subresource="status", type=Pod)
        await asyncio.to_thread(cluster.fleet.start)

        async def told() -> bool:
            status = (await c.pod(name)).status.container_statuses[0]
            ended = status.state.terminated
            return status.restart_count == restarts and (
                status.ready or (ended is not None and ended.exit_code == 3)
            )

        await until(told)
        logs = cluster.fleet.state.glob(f"pods/*_{pod.metadata.uid}/main/*.log")
        assert sum(log.read_text().count("up") for log in logs) == runs

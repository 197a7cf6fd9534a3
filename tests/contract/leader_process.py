"""A process that applies for a lease and writes when told to; the tests stop and continue it.

`leader_process.py KUBECONFIG NAMESPACE LEASE IDENTITY`. It prints `leading` once it leads. For each line
on stdin it writes its identity into the ConfigMap `written` and prints `wrote`, or prints `refused
NotLeader`; all in one thread that waits for nothing else, so that the first thing that it does after a
pause is to handle the next line.
"""

from __future__ import annotations

import asyncio
import sys
import threading

from gpufleet.kube.client import Client
from gpufleet.kube.config import load_config
from gpufleet.kube.errors import NotLeader
from gpufleet.kube.kinds import CONFIG_MAPS
from gpufleet.kube.leases import LeaderElector


async def main(kubeconfig: str, namespace: str, lease: str, identity: str) -> None:
    config = load_config(kubeconfig)
    elector = LeaderElector(
        config,
        namespace=namespace,
        name=lease,
        identity=identity,
        lease_seconds=3,
        renew_seconds=2,
        retry_seconds=0.4,
    )
    elector.start()
    await elector.wait_leading()
    print("leading", flush=True)
    threading.Thread(target=tell_when_lost, args=(elector,), daemon=True).start()
    async with Client(config, guard=elector.guard, guarded_write_seconds=1.0) as client:
        for _ in sys.stdin:
            try:
                await client.patch(CONFIG_MAPS, "written", {"data": {"by": identity}}, namespace)
                print("wrote", flush=True)
            except NotLeader as refusal:
                print(f"refused {refusal.reason}", flush=True)
    elector.stop()


def tell_when_lost(elector: LeaderElector) -> None:
    asyncio.run(elector.wait_lost())
    print("lost", flush=True)


asyncio.run(main(*sys.argv[1:]))

"""What tests ask of a fleet's API server, from code that does not await."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.e2e.local_fleet import LocalFleet

from gpufleet.kube.client import Client
from gpufleet.kube.config import load_config
from gpufleet.kube.kinds import DEPLOYMENTS, EVENTS, NAMESPACES, PODS, Kind

Object = dict[str, Any]
T = TypeVar("T")


class Cluster:
    """A client of one fleet: `with Cluster(fleet) as cluster`."""

    def __init__(self, fleet: LocalFleet) -> None:
        self.fleet = fleet
        self._client = Client(load_config(str(fleet.kubeconfig)), user_agent="end-to-end-test")
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._client.__aexit__())
        self._runner.close()

    @property
    def client(self) -> Client:
        """The client, for `run`."""
        return self._client

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that uses `client`."""
        return self._runner.run(work)

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """One object."""
        return self.run(self._client.get(kind, name, namespace))

    def all(self, kind: Kind, namespace: str | None = None, **labels: str) -> list[Object]:
        """The objects with these labels, of a namespace or of all."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        return self.run(self._client.list(kind, namespace, labels=selector)).items

    def pods(self, namespace: str, **labels: str) -> list[Object]:
        """The pods of a namespace that are not being deleted, by name."""
        found = self.all(PODS, namespace, **labels)
        alive = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(alive, key=lambda pod: str(pod["metadata"]["name"]))

    def events(self, namespace: str, *, about: Object | None = None, reason: str = "") -> list[Object]:
        """Events of a namespace: about one object, of one reason, by default all."""
        found = self.all(EVENTS, namespace)
        if reason:
            found = [event for event in found if event["reason"] == reason]
        if about is not None:
            uid = about["metadata"]["uid"]
            found = [event for event in found if event["regarding"].get("uid") == uid]
        return found

    def create(self, kind: Kind, manifest: Mapping[str, Any], namespace: str | None = None) -> Object:
        """Create an object."""
        return self.run(self._client.create(kind, dict(manifest), namespace))

    def create_namespace(self, name: str) -> None:
        """Create a namespace."""
        self.create(NAMESPACES, {"metadata": {"name": name}})

    def scale(self, deployment: str, namespace: str, replicas: int) -> None:
        """Set the replicas of a Deployment."""
        patch = {"spec": {"replicas": replicas}}
        self.run(self._client.patch(DEPLOYMENTS, deployment, patch, namespace, subresource="scale"))


def condition(pod: Object, type_: str) -> Object:
    """The condition of a pod of that type; empty when there is none."""
    conditions = pod["status"].get("conditions", [])
    return next((one for one in conditions if one["type"] == type_), {})

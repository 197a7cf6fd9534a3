"""Bringing a node's GPUs to the cut that is asked for: plan, take the devices out of circulation, carry out.

Who asks: the controller in `spec.desired.mig` (a pool's layout, or the scheduler's cuts), and else the label
`nvidia.com/mig.config`. What is about to be destroyed is no longer offered before the first call to the
driver, so that no container can be given it meanwhile; a container that holds something keeps it, and what is
asked waits until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from gpufleet.devices.inventory import GPU, Inventory
from gpufleet.devices.mig_changes import DestroyCompute, MigChange, MigTarget, SwitchMode, plan_change
from gpufleet.devices.mig_config import MigConfigs, default_mig_configs, parse_mig_configs, resolve_mig_config
from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.mig import Placement
from gpufleet.fleet.reasons import Reason
from gpufleet.kube.gpunode import GPUNodeDesired, MigWish


class Work(msgspec.Struct, frozen=True):
    """What is to be done now, or why nothing can be."""

    change: MigChange = MigChange()
    problem: Reason | None = None

    @property
    def leaving(self) -> frozenset[str]:
        """Uuids of devices that the change takes away: they must not be given out any more."""
        found: set[str] = set()
        for step in self.change.steps:
            if isinstance(step, DestroyCompute):
                found.add(step.uuid)
            elif isinstance(step, SwitchMode) and not step.cancels:
                found.add(step.gpu)
        return frozenset(found)


def wished_targets(inventory: Inventory, wishes: Iterable[MigWish]) -> dict[str, MigTarget]:
    """The targets of what the controller asks for, by uuid. Raises GpufleetError (UnknownMigProfile)."""
    return {wish.uuid: _target(wish, inventory.gpu(wish.uuid)) for wish in wishes}


def _target(wish: MigWish, gpu: GPU | None) -> MigTarget:
    if not wish.enabled or gpu is None or gpu.geometry is None:
        return MigTarget(on=wish.enabled, profiles=wish.profiles)
    if wish.profiles:
        return MigTarget(on=True, profiles=wish.profiles)
    profiles = {one.profile: gpu.geometry.profile(one.profile) for one in wish.instances}
    placements = tuple(
        Placement(one.start, profiles[one.profile].size, profiles[one.profile].name) for one in wish.instances
    )
    return MigTarget(on=True, placements=tuple(sorted(placements)))


def wished_work(inventory: Inventory, desired: GPUNodeDesired, busy: frozenset[str]) -> tuple[Work, ...]:
    """What the controller's wishes ask to be done now: one piece of work for each GPU, so that one which must
    wait holds up no other.
    """
    found = []
    for wish in desired.mig:
        try:
            targets = wished_targets(inventory, (wish,))
            change = plan_change(inventory, targets, busy=busy, may_switch=desired.allow_mode_switch)
        except GpufleetError as error:
            found.append(Work(problem=Reason(error.reason, error.message, wish.uuid)))
        else:
            if not change.done:
                found.append(Work(change, change.blocked[0] if change.blocked else None))
    return tuple(found)


def labelled_work(inventory: Inventory, config: str, file: Path | None, busy: frozenset[str]) -> MigChange:
    """What a config of the file (None: of those made from the GPUs) asks to be done now; the label is an
    explicit order, so modes may be switched.

    Raises GpufleetError when it cannot be resolved.
    """
    known = default_mig_configs(inventory) if file is None else _read(file)
    targets: Mapping[str, MigTarget] = resolve_mig_config(config, known, inventory)
    return plan_change(inventory, targets, busy=busy, may_switch=True)


def _read(file: Path) -> MigConfigs:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GpufleetError(
            reason="MigConfigUnreadable",
            message=f"cannot read the MIG configs {file}: {error}",
            hint="give --mig-config-file a file in the format of mig-parted that the agent may read",
        ) from None
    return parse_mig_configs(text, str(file))

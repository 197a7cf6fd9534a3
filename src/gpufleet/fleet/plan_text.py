"""Plans as JSON, for files and scripts: the same plan always gives the same bytes.

An action is an object: `action` is its kind, a pod is `namespace/name` with its `uid` beside it, and all
other fields are those of `fleet.plans`, the reasons whole.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gpufleet.fleet.plans import Action, Plan
from gpufleet.fleet.reasons import Reason


def plan_bytes(plan: Plan) -> bytes:
    """The plan as indented JSON with a newline at the end: `{"actions": [...]}`."""
    data = {"actions": [action_data(action) for action in plan.actions]}
    return msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n"


def action_data(action: Action) -> dict[str, Any]:
    """One action as plain data."""
    data: dict[str, Any] = {"action": type(action).__name__, "pod": action.pod.key, "uid": action.pod.uid}
    for name, value in msgspec.structs.asdict(action).items():
        if name == "reasons":
            data[name] = [reason_data(reason) for reason in value]
        elif name != "pod":
            data[name] = msgspec.to_builtins(value)
    return data


def reason_data(reason: Reason) -> dict[str, Any]:
    """A reason as plain data, with every field."""
    return {
        "code": reason.code,
        "message": reason.message,
        "subject": reason.subject,
        "nodes": reason.nodes,
        "evidence": dict(sorted(reason.evidence.items())),
    }

"""Labels and taints as people write them, checked by the rules of Kubernetes.

Source: k8s.io/apimachinery/pkg/util/validation (qualified names, label values), kubectl taint.
"""

from __future__ import annotations

import re

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.selectors import Taint

_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_TAINT = re.compile(r"(?P<key>[^=:]+)(=(?P<value>[^:]*))?:(?P<effect>[^:]+)")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def label_problem(key: str, value: str) -> str:
    """What is wrong with a label, in words; empty when it is valid."""
    prefix, slash, name = key.rpartition("/")
    if not _NAME.fullmatch(name) or (slash and (len(prefix) > 253 or not _PREFIX.fullmatch(prefix))):
        return f"{key!r} is not a label key"
    if value and not _NAME.fullmatch(value):
        return f"{value!r} is not a label value"
    return ""


def object_problem(name: str) -> str:
    """What is wrong with the name of an object, in words; empty when it is valid."""
    return "" if _PREFIX.fullmatch(name) and len(name) <= 253 else f"{name!r} cannot name an object"


def parse_taint(text: str) -> Taint:
    """The taint of `key=value:Effect` or `key:Effect`; raises GpufleetError (InvalidTaint)."""
    match = _TAINT.fullmatch(text)
    if match is None or match["effect"] not in _EFFECTS or label_problem(match["key"], match["value"] or ""):
        raise GpufleetError(
            reason="InvalidTaint",
            message=f"{text!r} is not a taint",
            hint="write key=value:NoSchedule (or PreferNoSchedule, NoExecute)",
        )
    return Taint(match["key"], match["effect"], match["value"] or "")

"""Decide recorded snapshots again and compare: `replay.py FOLDER` prints a JSON object.

`decisions` are compared, of `distinct` snapshots; `different` names those whose plan is not the recorded one
byte by byte, `again` those whose snapshot is not the same bytes when it is written again, and `actions`
counts what the plans do. The tests start it as a process of its own, with another hash seed than that of the
scheduler.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

from gpufleet.fleet.plan_text import plan_bytes
from gpufleet.scheduling.recording import from_bytes, to_bytes
from gpufleet.scheduling.recordings import PLAN, SNAPSHOT

folder = Path(sys.argv[1])
different, again = [], []
seen: set[bytes] = set()
actions: Counter[str] = Counter()
recorded = sorted(folder.glob(f"*{SNAPSHOT}"))
for path in recorded:
    data = path.read_bytes()
    seen.add(data)
    recording = from_bytes(data, path.name)
    plan = recording.decide()
    if plan_bytes(plan) != path.with_name(path.name.replace(SNAPSHOT, PLAN)).read_bytes():
        different.append(path.name)
    if to_bytes(recording) != gzip.decompress(data):
        again.append(path.name)
    actions.update(type(action).__name__ for action in plan.actions)
    actions["paused"] += len(recording.paused)
told = {
    "decisions": len(recorded),
    "distinct": len(seen),
    "different": different,
    "again": again,
    "actions": dict(actions),
}
print(json.dumps(told))

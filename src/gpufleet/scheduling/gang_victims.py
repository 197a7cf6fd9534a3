"""Gangs as victims: a gang that falls below its minimum ends as a whole, as the rest would only hold GPUs.

A gang can spare as many pods as run above its minimum. For a set of victims that means:

- who takes more of a gang than it can spare takes all of it, as far as its priority is lower (`completed`)
- of a gang with subgroups as many can be spared as the smallest margin of a complete subgroup allows: a bound
  that holds for any choice of members
- a member that is put back while more of its gang than it can spare remain victims ends all the same
  (`ends_anyway`), so members come back together: all of the gang, else as many as keep it alive, else one by
  one (`groups`)

What a gang can spare is read from the trial, so the victims of this decision are counted already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from gpufleet.fleet.pods import Pod
from gpufleet.scheduling.gangs import described, gang_minimum, subgroup_of
from gpufleet.scheduling.trial import Trial


class GangVictims:
    """The rule, on one trial."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._spare: dict[str, tuple[int, int]] = {}

    def spare(self, gang: str) -> int:
        """How many pods of a gang may end before it falls below its minimum."""
        change = self._trial.gang_changes(gang)
        known = self._spare.get(gang, (-1, 0))
        if known[0] != change:
            known = self._spare[gang] = change, self._worked_out(gang)
        return known[1]

    def _worked_out(self, gang: str) -> int:
        mates = self._trial.mates(gang)
        if not mates:
            return 0
        gangs = self._trial.snapshot.gangs
        known = described(gang, mates, gangs)
        there = Counter(map(subgroup_of, mates))
        margins = (there[leaf.name] - leaf.minimum for leaf in known.leaves) if known is not None else ()
        return min([len(mates) - gang_minimum(gang, mates, gangs), *(m for m in margins if m >= 0)])

    def completed(self, victims: Iterable[Pod], below: int) -> tuple[Pod, ...]:
        """The victims and the rest of each gang that would fall below its minimum without them, by name.

        Only mates of a priority lower than `below` are added: preemption never reaches further up.
        """
        chosen = {victim.key: victim for victim in victims}
        taken = Counter(victim.gang_key for victim in chosen.values() if victim.gang is not None)
        for gang, count in taken.items():
            if count > self.spare(gang):
                mates = (mate for mate in self._trial.mates(gang) if mate.node)
                chosen.update((mate.key, mate) for mate in mates if mate.priority < below)
        return tuple(sorted(chosen.values(), key=lambda victim: victim.key))

    def groups(self, ordered: Sequence[Pod]) -> Iterator[Sequence[Pod]]:
        """In which groups victims are put back, in this order; a pod is in several of them."""
        gangs: dict[str, list[Pod]] = {}
        for victim in ordered:
            if victim.gang is not None:
                gangs.setdefault(victim.gang_key, []).append(victim)
        for victim in ordered:
            members = gangs.get(victim.gang_key, [])
            if members and members[0] is victim:
                yield members
                needed = len(members) - self.spare(victim.gang_key)
                if 1 < needed < len(members):
                    yield members[:needed]
            yield (victim,)

    def ends_anyway(self, group: Sequence[Pod], victims: Iterable[Pod]) -> bool:
        """Whether pods that are put back would end all the same, because too few of their gang remain."""
        gang = group[0].gang_key
        if not gang:
            return False
        others = sum(1 for victim in victims if victim.gang_key == gang) - len(group)
        return others > 0 and others > self.spare(gang)

    def own(self, pod: Pod) -> str:
        """The pod's own gang, which it never evicts from, where it has members that would be victims else."""
        if pod.gang is None:
            return ""
        mates = self._trial.mates(pod.gang_key)
        return pod.gang_key if any(mate.node and mate.priority < pod.priority for mate in mates) else ""

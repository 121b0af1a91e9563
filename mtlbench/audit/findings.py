"""What is wrong with what the losses reach, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from mtlbench.audit.reach import Known, Reach

SHOWN = 4  # names in one sentence


class Finding(NamedTuple):
    """One thing that was seen. An `error` is wrong; a `warning` may be meant; a `note` is good to know."""

    level: Literal["error", "warning", "note"]
    text: str


class Judge:
    """Says what is wrong.

    Args:
        tasks: T names, those that have a loss.
        absent: those that have none in this batch.
        known: N trainable parameters.
        reach: what the losses reach of them.
        still_zero: (T, N) gradients that are exactly 0 here, and also where all parameters are moved a little.
    """

    def __init__(
        self, tasks: Sequence[str], absent: Sequence[str], known: Sequence[Known], reach: Reach, still_zero: Tensor
    ) -> None:
        self.tasks, self.absent, self.known, self.reach, self.still_zero = tasks, absent, known, reach, still_zero
        self.shared = [i for i, one in enumerate(known) if one.role == "shared"]

    def findings(self) -> Iterator[Finding]:
        """All of them."""
        if self.absent:
            yield Finding("warning", f"No label in this batch of {_list(self.absent)}: not audited.")
        if not self.known:
            yield Finding("error", "No parameter trains: each has requires_grad=False.")
        elif not self.reach.reached.any():
            yield Finding(
                "error",
                "No parameter trains: no task's loss reaches any. Is the forward under no_grad, or detached?",
            )
        else:
            for look in (
                self._neither, self._detached, self._partly, self._of_one, self._private, self._zero, self._infinite,
            ):  # fmt: skip
                yield from look()

    def _neither(self) -> Iterator[Finding]:
        if lost := [one.name for one in self.known if one.role == "neither"]:
            yield Finding("error", f"Trainable, but given neither as shared nor as private: {self._names(lost)}.")

    def _detached(self) -> Iterator[Finding]:
        """Losses that reach nothing at all, or nothing that is shared."""
        for task, name in enumerate(self.tasks):
            if not self.reach.reached[task].any():
                yield Finding("error", f"The loss of {name} reaches no parameter: it is detached from the model.")
            elif self.shared and not self.reach.reached[task, self.shared].any():
                yield Finding(
                    "error",
                    f"The loss of {name} reaches no shared parameter: the representation that its head reads is "
                    "detached, and the encoder learns nothing from it.",
                )

    def _partly(self) -> Iterator[Finding]:
        """Shared parameters that no loss reaches, or not all losses that enter their module."""
        reached = self.reach.reached
        if lost := [self.known[i].name for i in self.shared if not reached[:, i].any()]:
            yield Finding(
                "error",
                f"No loss reaches {self._names(lost)}, given as shared: trainable, and stays as it was. Is something "
                "detached behind it, or is it not used? Then requires_grad_(False), or leave it out.",
            )
        missing: dict[tuple[str, ...], list[str]] = {}  # by task
        for index in self.shared:
            member = [i for i in self.shared if self.known[i].member == self.known[index].member]
            enters = reached[:, member].any(1)
            lacks = [name for t, name in enumerate(self.tasks) if enters[t] and not reached[t, index]]
            if lacks and reached[:, index].any():
                missing.setdefault(tuple(lacks), []).append(self.known[index].name)
        for lacking, names in missing.items():
            yield Finding(
                "error",
                f"{self._names(names)} is shared, and not reached by {_list(lacking)}, though it reaches other parts "
                "of the same module: is the representation between them detached?",
            )

    def _of_one(self) -> Iterator[Finding]:
        if len(self.tasks) < 2:
            return
        single: dict[str, list[str]] = {}
        for index in self.shared:
            by = self.reach.reached[:, index].nonzero().flatten().tolist()
            if len(by) == 1:
                single.setdefault(self.tasks[by[0]], []).append(self.known[index].name)
        for task, names in single.items():
            yield Finding("warning", f"{self._names(names)} is given as shared, and {task} alone reaches it: private.")

    def _private(self) -> Iterator[Finding]:
        mixed: dict[tuple[str, ...], list[str]] = {}
        foreign: dict[tuple[str, str], list[str]] = {}
        unreached = []
        for index, one in enumerate(self.known):
            if one.role != "private":
                continue
            by = [name for t, name in enumerate(self.tasks) if self.reach.reached[t, index]]
            others = [name for name in by if name != one.member]
            if not by and not (one.member in self.absent or (one.member is None and self.absent)):
                unreached.append(one.name)
            if one.member is not None:
                for other in others:
                    foreign.setdefault((str(one.member), other), []).append(one.name)
            elif len(by) > 1:
                mixed.setdefault(tuple(by), []).append(one.name)
        for (owner, other), names in foreign.items():
            text = f"{self._names(names)} is private to {owner}, and the loss of {other} reaches it too."
            yield Finding("error", f"{text} Its gradient would hold that of {other}.")
        for tasks, names in mixed.items():
            text = f"{self._names(names)} is private, and reached by the losses of {_list(tasks)}."
            yield Finding("error", f"{text} One task's gradient would hold another's: cut the path, or say shared.")
        if unreached:
            yield Finding("error", f"No loss reaches {self._names(unreached)}, given as private: stays as it was.")

    def _zero(self) -> Iterator[Finding]:
        """Modules whose every gradient from a task is exactly zero."""
        found: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
        for module in dict.fromkeys(one.module for one in self.known):
            own = [i for i, one in enumerate(self.known) if one.module == module]
            for still in (True, False):
                zero = self.still_zero if still else self.reach.zero
                dead = (self.reach.reached[:, own].any(1) & (zero | ~self.reach.reached)[:, own].all(1)).tolist()
                if by := tuple(name for name, is_dead in zip(self.tasks, dead, strict=True) if is_dead):
                    names = [self.known[i].name for i in own]
                    found.setdefault((still, by), []).extend(names)
                    break
        for (still, by), names in found.items():
            text = f"The gradient of {_list(by)} reaches {self._names(names)} and is exactly zero there"
            if still:
                yield Finding("error", f"{text}: it is wiped out, multiplied by zero, or its units are dead.")
            else:
                yield Finding("note", f"{text}, at these very weights alone (a factor beside it starts at zero).")

    def _infinite(self) -> Iterator[Finding]:
        for task, name in enumerate(self.tasks):
            finite = self.reach.norms[task].isfinite().tolist()
            bad = [one.name for one, good in zip(self.known, finite, strict=True) if not good]
            if bad:
                yield Finding("error", f"The gradient of {name} is not finite in {self._names(bad)}.")

    def _names(self, names: Sequence[str]) -> str:
        """The modules that these parameters make up, the largest that hold no other."""
        return _list(cover(names, [one.name for one in self.known]))


def cover(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The shortest prefixes under which all of the known names are among `names`."""
    left, found = set(names), []
    others = set(known) - left
    for name in known:
        if name not in left:
            continue
        parts = name.split(".")
        prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
        best = next(p for p in prefixes if not any(o == p or o.startswith(f"{p}.") for o in others))
        found.append(best)
        left -= {n for n in left if n == best or n.startswith(f"{best}.")}
    return found


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - SHOWN
    shown = names if more <= 1 else names[:SHOWN]
    return ", ".join(shown) + (f" and {more} more" if more > 1 else "")

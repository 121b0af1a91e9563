"""The audit of one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtlbench.audit import ways
from mtlbench.audit.findings import Finding, Judge
from mtlbench.audit.reach import Known, Reach, Replay, measure, nudged, parameters_of
from mtlbench.gradients.partition import Modules, members
from mtlbench.gradients.routes import ROUTES, RouteRefusedError


@dataclass(frozen=True)
class Audit:
    """What was seen.

    Attributes:
        tasks: T names, those that have a loss in this batch.
        known: N trainable parameters.
        reach: what the losses reach of them.
        cosines: (T, T) between the tasks' gradients of the shared parameters; NaN for one that is zero.
        pairs: each pair of the engine's routes, and of the plain gradients with each.
        refused: routes that do not fit these losses, and why.
        findings: what is wrong, or may be.
    """

    tasks: list[str]
    known: list[Known]
    reach: Reach
    cosines: Tensor
    pairs: list[ways.Pair]
    refused: dict[str, str]
    findings: list[Finding]

    @property
    def errors(self) -> list[str]:
        """What is wrong."""
        return [finding.text for finding in self.findings if finding.level == "error"]


def audit(
    losses: Callable[[], Mapping[str, Tensor]],
    *,
    shared: Modules,
    private: Modules | Mapping[str, Modules] = (),
    model: nn.Module | None = None,
    tasks: Sequence[str] | None = None,
) -> Audit:
    """Looks at which parameters each task's loss reaches, and at every way to the task gradients, on one batch.

    Each loss is differentiated in a forward of its own and all together by the engine, so that one task's gradient that
    holds another's shows. Weights, gradients, buffers and random numbers are left as they were; dropout is drawn alike
    in all forwards.

    Args:
        losses: makes a forward and gives the () loss of each task.
        shared: modules or parameters that two or more losses are to reach, as the engine is given them.
        private: those of single tasks; by task where their tasks are to be checked too.
        model: whose every trainable parameter must be one or the other, and where names and buffers are from.
        tasks: names that `losses` may give; None: those that it does.

    Returns:
        What was seen; `findings` says what is wrong in words.

    Raises:
        ValueError: `losses` gives no scalars, or a parameter is given as shared and as private.
    """
    known = parameters_of(shared, private, model)
    modules = [model, *members(shared)]
    for own in private.values() if isinstance(private, Mapping) else [private]:
        modules += members(own)
    buffers = {id(b): b for m in modules if isinstance(m, nn.Module) for b in m.buffers()}
    parameters = [one.parameter for one in known]
    replay = Replay(losses, buffers=list(buffers.values()), parameters=parameters)
    with replay.undisturbed():
        first = replay()
        for name, loss in first.items():
            if loss.ndim:
                raise ValueError(f"The loss of task {name!r} must be a scalar, got one of shape {tuple(loss.shape)}.")
        present = list(first)
        reach = measure(replay, present, known)
        still = reach.zero
        if still.any():
            with nudged(known):
                still = still & measure(replay, present, known).zero
        absent = [name for name in tasks or () if name not in present]
        findings = [*Judge(present, absent, known, reach, still).findings()]
        lost = [name for name, loss in first.items() if not loss.isfinite()]
        findings += [Finding("error", f"The loss of {name} is {float(first[name])}.") for name in lost]
        pairs, refused, wrong = ([], {}, []) if lost else _engines(replay, present, shared, known, reach)
    products = ways.gramian(reach.rows)
    norms = products.diagonal().sqrt()
    return Audit(present, known, reach, products / torch.outer(norms, norms), pairs, refused, findings + wrong)


def _engines(
    replay: Replay, tasks: list[str], shared: Modules, known: list[Known], reach: Reach
) -> tuple[list[ways.Pair], dict[str, str], list[Finding]]:
    """Compares what the engine makes of the losses that reach anything with what each has alone."""
    kept = [index for index in range(len(tasks)) if reach.reached[index].any()]
    names = [tasks[index] for index in kept]
    private = [one.parameter for one in known if one.role == "private"]
    if not reach.rows.any() or not reach.norms.isfinite().all():
        return [], {}, []

    def losses() -> dict[str, Tensor]:
        found = replay()
        return {name: found[name] for name in names}

    rows = reach.rows[kept]
    # Sums of a million numbers in float32, one way or another, differ by 1e-4.
    tolerance = 10 * torch.finfo(rows.dtype).eps ** 0.5
    engines = ways.Engines(losses, tasks=names, shared=shared, private=private)
    findings = []
    gaps = (engines.rows() - rows).norm(dim=1) / rows.norm(dim=1).clamp_min(torch.finfo(rows.dtype).tiny)
    for name, gap in zip(names, gaps.tolist(), strict=True):
        if not gap <= tolerance:
            text = f"The gradient of {name} beside the others' differs from that of its loss alone by {gap:.1%} of its"
            findings.append(Finding("error", f"{text} length: one task's gradient holds another's."))
    found: dict[str, ways.Way] = {ways.ALONE: ways.alone(rows)}
    refused: dict[str, str] = {}
    for route in ROUTES:
        try:
            found[route] = engines.way(route)
        except RouteRefusedError as error:
            refused[route] = str(error)
        except RuntimeError as error:
            findings.append(Finding("error", f"Route {route}: {error}"))
    pairs = ways.compare(found)
    for pair in pairs:
        worst = max(pair.gramian, pair.direction)
        if not worst <= tolerance:
            text = f"Routes disagree: {pair.first} and {pair.second} by {worst:.1e} of the gradients' lengths."
            findings.append(Finding("error", text))
    return pairs, refused, findings

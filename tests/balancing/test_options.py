"""Options, declared degenerate results, and refusals of the methods by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtlbench.balancing.base import Property, TaskSpec
from mtlbench.balancing.cagrad import CAGrad
from mtlbench.balancing.constant import Constant
from mtlbench.balancing.dwa import DWA
from mtlbench.balancing.equal import Equal
from mtlbench.balancing.gradnorm import GradNorm
from mtlbench.balancing.mgda import MGDA
from mtlbench.balancing.pcgrad import PCGrad
from mtlbench.balancing.uncertainty import Uncertainty

SPECS = [TaskSpec("intent", "classification"), TaskSpec("slots", "tagging")]
OPPOSITE = [[2.0, 0.0], [-2.0, 0.0]]


def gramian(rows: list[list[float]]) -> Tensor:
    jacobian = torch.tensor(rows, dtype=torch.float64)
    return (jacobian @ jacobian.T)[None]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("balancer", "options", "message"),
    [
        (Equal, {"reduction": "max"}, "reduction must be one of sum, mean; got 'max'"),
        (Constant, {"weights": {"slot": 1.0}}, "unknown task 'slot'.*Did you mean 'slots'"),
        (Constant, {"weights": {"slots": -1.0}}, "weights.slots must be a finite number of at least 0; got -1.0"),
        (Constant, {"weights": {"slots": "1"}}, "weights.slots must be a finite number"),
        (Uncertainty, {"form": "gal"}, "form must be one of half, sum, sigma, liebel"),
        (Uncertainty, {"init": float("nan")}, "init must be a finite number"),
        (DWA, {"temperature": 0}, "temperature must be a finite number above 0; got 0"),
        (DWA, {"window": 0}, "window must be a whole number of at least 1"),
        (DWA, {"window": 2.5}, "window must be a whole number"),
        (GradNorm, {"alpha": -1}, "alpha"),
        (GradNorm, {"lr": 0}, "lr"),
        (GradNorm, {"minimum": 0}, "minimum"),
        (GradNorm, {"parametrization": "exp"}, "parametrization must be one of weights, softmax"),
        (GradNorm, {"initial": "ln"}, "initial must be one of first_step, first_epoch"),
        (GradNorm, {"measure": "features"}, "measure must be one of last_layer, parameters"),
        (MGDA, {"normalize": "l1"}, "normalize must be one of"),
        (PCGrad, {"order": "ascending"}, "order must be one of random, fixed"),
        (PCGrad, {"groups": "matrix"}, "groups must be one of all, layer"),
        (CAGrad, {"c": -0.1}, "c must be a finite number of at least 0"),
        (CAGrad, {"rescale": "yes"}, "rescale must be one of True, False"),
        (CAGrad, {"scale": "max"}, "scale must be one of mean, sum"),
    ],
)
def test_wrong_options_are_refused(balancer: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        balancer(num_tasks=2, seed=0, tasks=SPECS, **options)


def test_names_and_kinds_need_specs() -> None:
    with pytest.raises(ValueError, match="needs tasks"):
        Constant(num_tasks=2, seed=0, weights={"slots": 2.0})
    with pytest.raises(ValueError, match="needs tasks"):
        Uncertainty(num_tasks=2, seed=0, by_kind=True)


def test_gradnorm_names_the_task_whose_loss_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="task 'slots' has 0, and 0 at first"):
        GradNorm(num_tasks=2, seed=0, tasks=SPECS)(gramian(OPPOSITE), tensor(1, 0))
    balancer = GradNorm(num_tasks=2, seed=0, tasks=SPECS)
    balancer(gramian(OPPOSITE), tensor(1, 1))
    with pytest.raises(ValueError, match="task 'slots' has -1, and 1 at first"):
        balancer(gramian([[1.0]]), tensor(-1), active=torch.tensor([1]))


def test_mgda_divides_by_no_negative_loss() -> None:
    balancer = MGDA(num_tasks=2, seed=0, tasks=SPECS, normalize="loss")
    with pytest.raises(ValueError, match="MGDA with normalize=loss needs losses of at least 0; task 'slots' has -1"):
        balancer(gramian(OPPOSITE), tensor(1, -1))


# ---------------------------------------------------------------- weights of some of the tasks


def test_constant_and_dwa_pick_the_active_tasks_weights() -> None:
    constant = Constant(num_tasks=2, seed=0, tasks=SPECS, weights={"slots": 3.0})
    assert float(constant(tensor(2), active=torch.tensor([1]))) == 6
    dwa = DWA(num_tasks=2, seed=0)
    dwa.end_epoch(tensor(1, 1))
    dwa.end_epoch(tensor(0.9, 1.1))
    assert float(dwa(tensor(1), active=torch.tensor([1]))) == pytest.approx(1.049958, abs=6e-7)


def test_dwa_of_iterations_depends_on_the_steps_losses() -> None:
    assert DWA(num_tasks=2, seed=0).linear
    assert not DWA(num_tasks=2, seed=0, window=3).linear


# ---------------------------------------------------------------- degenerate results


def test_mgda_of_a_zero_gradient_rests_on_it() -> None:
    balancer = MGDA(num_tasks=2, seed=0)
    assert balancer(gramian([[3.0, 1.0], [0.0, 0.0]]), tensor(1, 1)).tolist() == [[0, 1]]
    assert balancer.status == "degenerate"
    balancer(gramian([[3.0, 1.0], [0.0, 1.0]]), tensor(1, 1))
    assert balancer.status == "solved"


@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
def test_mgda_of_opposite_gradients(normalize: Any) -> None:
    balancer = MGDA(num_tasks=2, seed=0, normalize=normalize)
    weights = balancer(gramian(OPPOSITE), tensor(1, 1))
    assert weights[0].tolist() == pytest.approx([0.5, 0.5])
    assert balancer.status == "degenerate"


@pytest.mark.parametrize("normalize", ["l2", "loss+"])
def test_mgda_leaves_a_zero_gradient_as_it_is(normalize: Any) -> None:
    balancer = MGDA(num_tasks=2, seed=0, normalize=normalize)
    assert balancer(gramian([[3.0, 1.0], [0.0, 0.0]]), tensor(1, 0)).tolist() == [[0, 1]]
    assert balancer.status == "degenerate"


def test_mgda_claims_less_when_normalised() -> None:
    assert Property.NON_CONFLICTING in MGDA(num_tasks=2, seed=0).properties
    assert Property.NON_CONFLICTING not in MGDA(num_tasks=2, seed=0, normalize="l2").properties


def test_pcgrad_of_opposite_gradients_is_zero() -> None:
    balancer = PCGrad(num_tasks=2, seed=0)
    weights = balancer(gramian(OPPOSITE), tensor(1, 1))
    assert (weights[0] @ torch.tensor(OPPOSITE, dtype=torch.float64)).tolist() == [0, 0]
    assert balancer.status == "degenerate"


def test_pcgrad_passes_over_a_zero_gradient() -> None:
    balancer = PCGrad(num_tasks=3, seed=0)
    weights = balancer(gramian([[3.0, 0.0], [0.0, 0.0], [-1.0, 2.0]]), tensor(1, 1, 1))
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.0], [-1.0, 2.0]], dtype=torch.float64)
    assert (weights[0] @ rows).tolist() == pytest.approx([2.4, 3.2])
    assert balancer.status == "solved"


def test_pcgrad_of_a_gradient_whose_square_underflows() -> None:
    weights = PCGrad(num_tasks=2, seed=0)(gramian([[1.0], [-1e-170]]), tensor(1, 1))
    assert weights.isfinite().all()


def test_cagrad_without_a_mean_gradient_is_zero() -> None:
    balancer = CAGrad(num_tasks=2, seed=0)
    assert balancer(gramian(OPPOSITE), tensor(1, 1)).tolist() == [[0, 0]]
    assert balancer.status == "degenerate"


def test_cagrad_with_a_zero_gradient_harms_none() -> None:
    balancer = CAGrad(num_tasks=3, seed=0)
    rows = torch.tensor([[4.0, 1.0], [-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    direction = balancer((rows @ rows.T)[None], tensor(1, 1, 1))[0] @ rows
    assert balancer.status == "degenerate"
    # The mean (1, 2/3) would harm (-1, 1) by 1/3: it is projected off that.
    assert direction.tolist() == pytest.approx([5 / 6, 5 / 6])


def test_gradnorm_without_gradients_or_losses_stays() -> None:
    balancer = GradNorm(num_tasks=2, seed=0)
    balancer(gramian([[3.0, 0.0], [-1.0, 2.0]]), tensor(1, 1))
    assert balancer.status == "solved"
    weights = balancer.weights.tolist()
    for rows, losses in (([[0.0], [0.0]], tensor(1, 1)), ([[3.0, 0.0], [-1.0, 2.0]], tensor(0, 0))):
        balancer(gramian(rows), losses)
        assert balancer.status == "degenerate"
        assert balancer.weights.tolist() == weights


# ---------------------------------------------------------------- gradnorm's state


def test_gradnorm_weights_stay_positive_under_long_gradients() -> None:
    balancer = GradNorm(num_tasks=2, seed=0)
    for _ in range(20):
        weights = balancer(gramian([[1e5, 0.0], [0.0, 1.0]]), tensor(1, 1))
        assert (weights > 0).all()
        assert float(weights.sum()) == pytest.approx(2)


def test_gradnorm_compares_with_the_first_loss_of_each_task() -> None:
    balancer = GradNorm(num_tasks=3, seed=0)
    rows = [[3.0, 0.0, 0.0], [-1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
    balancer(gramian(rows[:2]), tensor(4, 5), active=torch.tensor([0, 1]))
    assert balancer.initial_losses[:2].tolist() == [4, 5]
    assert balancer.initial_losses[2].isnan()
    assert balancer.weights[2] == 1
    assert float(balancer.weights[:2].sum()) == pytest.approx(2)  # the active tasks keep their sum
    balancer(gramian(rows), tensor(2, 4, 7))
    assert balancer.initial_losses.tolist() == [4, 5, 7]
    # A step with some of the tasks uses their weights as they are.
    weights = balancer.weights.tolist()
    assert balancer(gramian(rows[1:]), tensor(3, 6), active=torch.tensor([1, 2])).tolist() == [weights[1:]]
    assert balancer.weights[0] == weights[0]


def test_gradnorm_of_the_first_epoch() -> None:
    balancer = GradNorm(num_tasks=2, seed=0, initial="first_epoch", measure="parameters")
    assert balancer.measure == "parameters"
    assert GradNorm(num_tasks=2, seed=0).measure == "last_layer"
    rows = gramian([[3.0, 0.0], [-1.0, 2.0]])
    for losses in (tensor(9, 9), tensor(1, 1)):
        assert balancer(rows, losses).tolist() == [[1, 1]]
    assert balancer.weights.tolist() == [1, 1]  # equal during the first epoch
    balancer.end_epoch(tensor(4, 5))
    balancer.end_epoch(tensor(1, 1))
    assert balancer.initial_losses.tolist() == [4, 5]
    balancer(rows, tensor(2, 4))
    assert balancer.weights.tolist() == pytest.approx([0.933918, 1.066082], abs=6e-7)

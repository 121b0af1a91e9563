"""Mixings that sample: their frequencies, their purity, their groups."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mtlbench.confdir import conf_dir
from mtlbench.data.mixing import Joint, Plan, lengths
from mtlbench.data.mixing.annealed import Annealed
from mtlbench.data.mixing.formula import Formula
from mtlbench.data.mixing.main_task import MainTask
from mtlbench.data.mixing.proportional import Proportional
from mtlbench.data.mixing.round_robin import RoundRobin
from mtlbench.data.mixing.sampled import Sampled
from mtlbench.data.mixing.size_capped import SizeCapped
from mtlbench.data.mixing.temperature import Temperature
from mtlbench.data.mixing.uniform import Uniform
from mtlbench.data.tables import Ragged, Split

SIZES = {"a": 600, "b": 60, "c": 6}
MAKERS = {
    "proportional": Proportional,
    "uniform": Uniform,
    "temperature": lambda **k: Temperature(temperature=2.0, **k),
    "annealed": lambda **k: Annealed(start=1.0, end=0.2, epochs=5, **k),
    "size_capped": lambda **k: SizeCapped(cap=100, **k),
    "main_task": lambda **k: MainTask(main="b", ratio=0.5, **k),
    "formula": lambda **k: Formula(
        formulas={name: f"size + {i} * step" for i, name in enumerate(k["sizes"])}, **k
    ),
    "round_robin": RoundRobin,
    "joint": lambda **k: Joint(**{key: value for key, value in k.items() if key != "group_steps"}),
}  # fmt: skip
SAMPLED = sorted(set(MAKERS) - {"round_robin", "joint"})


def make(name, **given):
    return MAKERS[name](**{"sizes": SIZES, "batch_size": 4, "seed": 0, **given})


def lists(draw):
    return {name: rows.tolist() for name, rows in draw.items()}


def epoch(mixing, number=0):
    return [lists(mixing.plan(number, step)) for step in range(mixing.steps_per_epoch)]


# ---------------------------------------------------------------- how often


def proportions(weights):
    return np.array([w / sum(weights) for w in weights])


# The formulas again, by hand: epoch -> probabilities of a, b, c.
EXPECTED = {
    "proportional": lambda e: proportions([600, 60, 6]),
    "uniform": lambda e: proportions([1, 1, 1]),
    "temperature": lambda e: proportions([600**0.5, 60**0.5, 6**0.5]),
    "annealed": lambda e: proportions([n ** (1 - 0.8 * min(e, 4) / 4) for n in (600, 60, 6)]),
    "size_capped": lambda e: proportions([100, 60, 6]),
    # 15 batches of b in a pass over it, so 7.5 of the others.
    "main_task": lambda e: np.array([7.5 / 22.5 * 600 / 606, 15 / 22.5, 7.5 / 22.5 * 6 / 606]),
}


@pytest.mark.parametrize("number", [0, 2, 4, 7])
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_datasets_come_as_often_as_the_formula_says(name, number):
    steps = 20_000
    counts = make(name, steps_per_epoch=steps).counts(number)
    assert counts.shape == (steps, 3)
    assert (counts.sum(1) == 1).all()
    expected = EXPECTED[name](number)
    error = np.sqrt(expected * (1 - expected) / steps)
    assert (np.abs(counts.mean(0) - expected) < 4 * error).all()


def test_a_formula_of_the_step_is_followed_step_by_step():
    formulas = {"a": 1, "b": "min(1, step / 10000)", "c": "epoch * exp(-size) + 0 * pi"}
    mixing = Formula(formulas=formulas, sizes=SIZES, batch_size=4, seed=0, steps_per_epoch=10_000)
    rising = np.arange(10_000) / 10_000
    np.testing.assert_allclose(mixing.probabilities(0)[:, 1], rising / (1 + rising))
    np.testing.assert_allclose(mixing.probabilities(1)[:, 2], math.exp(-6) / (2 + math.exp(-6)))
    tenths = mixing.counts(0)[:, 1].reshape(10, 1000).mean(1)
    np.testing.assert_allclose(tenths, (rising / (1 + rising)).reshape(10, 1000).mean(1), atol=0.06)
    assert mixing.counts(0)[:, 2].sum() == 0


def test_round_robin_takes_turns_across_epochs():
    mixing = make("round_robin", steps_per_epoch=4)
    assert [list(draw) for number in range(3) for draw in epoch(mixing, number)] == [[n] for n in "abcabcabcabc"]
    assert [list(draw) for draw in epoch(make("round_robin", steps_per_epoch=3, group_steps=2))] == [
        ["a", "b"], ["a", "c"], ["b", "c"]
    ]  # fmt: skip


def test_annealing_ends_where_the_paper_does_and_stays_there():
    exponents = {e: make("annealed").weights(e)["b"] for e in (0, 4, 9)}
    assert exponents[0] == pytest.approx(0.1)
    assert exponents[4] == exponents[9] == pytest.approx(0.1**0.2)


def test_the_main_task_gets_no_more_of_the_others_than_there_is():
    mixing = MainTask(main="a", ratio=10.0, sizes=SIZES, batch_size=4, seed=0)
    assert mixing.steps_per_epoch == 150 + 15 + 2
    np.testing.assert_allclose(mixing.probabilities(0)[0], [150 / 167, 17 / 167 * 60 / 66, 17 / 167 * 6 / 66])
    assert MainTask(main="a", ratio=0.0, sizes=SIZES, batch_size=4, seed=0).counts(0)[:, 0].all()


@pytest.mark.parametrize(
    ("name", "given", "steps"),
    [
        ("proportional", {}, 150 + 15 + 2),
        ("proportional", {"group_steps": 3}, 56),
        ("uniform", {"steps_per_epoch": 7, "group_steps": 3}, 7),
        ("size_capped", {}, 25 + 15 + 2),
        ("main_task", {}, 23),
        ("round_robin", {}, 167),
    ],
)
def test_the_length_of_an_epoch(name, given, steps):
    assert make(name, **given).steps_per_epoch == steps == len(epoch(make(name, **given)))


# ---------------------------------------------------------------- groups


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from([*SAMPLED, "round_robin"]),
    sizes=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 50), min_size=2),
    group=st.integers(1, 12),
)
def test_a_group_has_every_dataset_where_it_can(name, sizes, group):
    sizes.setdefault("b", 7)
    mixing = make(name, sizes=sizes, group_steps=group, steps_per_epoch=6)
    counts = mixing.counts(1)
    assert (counts.sum(1) == group).all()
    assert mixing.every_dataset == (group >= len(sizes))
    if mixing.every_dataset:
        assert counts.min() >= 1
    for draw, row in zip(epoch(mixing, 1), counts, strict=True):
        expected = {name: 4 * n for name, n in zip(sizes, row.tolist(), strict=True) if n}
        assert {name: len(rows) for name, rows in draw.items()} == expected


def test_groups_keep_the_proportions_where_each_has_a_batch_to_come():
    mixing = make("temperature", steps_per_epoch=4000, group_steps=15)
    expected = EXPECTED["temperature"](0)  # 0.70, 0.22, 0.07: at least 1 of 15 each
    np.testing.assert_allclose(mixing.counts(0).mean(0), 15 * expected, atol=0.1)
    rare = make("proportional", steps_per_epoch=4000, group_steps=15).counts(0)
    assert (rare[:, 2] == 1).all()  # 0.14 expected: gets its one, and the others share 14 as they did
    assert rare[:, 1].mean() == pytest.approx(1 + 12 * (15 * 60 / 666 - 1) / (15 * 660 / 666 - 2), abs=0.05)


# ---------------------------------------------------------------- purity


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(MAKERS)),
    seed=st.integers(0, 2**31),
    group=st.integers(1, 5),
    bucket=st.sampled_from([1, 3]),
    order=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10)), min_size=1, max_size=8),
)
def test_a_plan_is_a_function_of_seed_epoch_and_step_alone(name, seed, group, bucket, order):
    lengths = {key: torch.arange(size) % 7 for key, size in SIZES.items()}
    options = {"seed": seed, "group_steps": group, "steps_per_epoch": 11, "bucket": bucket, "lengths": lengths}
    used = make(name, **options)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for number, step in order:  # as another rank, or a restart, would see it
        assert lists(used.plan(number, step)) == lists(make(name, **options).plan(number, step))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_seeds_and_epochs_differ(name):
    first = epoch(make(name))
    assert first != epoch(make(name), 1)
    assert first != epoch(make(name, seed=1))


@settings(deadline=None, max_examples=30)
@given(name=st.sampled_from(sorted(MAKERS)), handed=st.integers(0, 20), number=st.integers(0, 3))
def test_a_plan_goes_on_from_its_state(name, handed, number):
    first, second = (Plan(make(name, steps_per_epoch=20)) for _ in range(2))
    first.set_epoch(number)
    whole = [lists(draw) for draw in first]
    first.handed = handed
    second.load_state_dict(first.state_dict())
    assert [lists(draw) for draw in second] == whole[handed:]


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(MAKERS)),
    sizes=st.dictionaries(st.sampled_from("abc"), st.integers(1, 30), min_size=1),
    batch=st.integers(1, 7),
    group=st.integers(1, 4),
    bucket=st.integers(1, 3),
)
def test_a_datasets_rows_are_all_seen_before_any_is_seen_again(name, sizes, batch, group, bucket):
    sizes.setdefault("b", 5)
    lengths = {key: torch.arange(size) * 5 % 11 for key, size in sizes.items()}
    mixing = make(name, sizes=sizes, batch_size=batch, group_steps=group, bucket=bucket, lengths=lengths)
    streams = {key: [] for key in sizes}
    for draw in epoch(mixing):
        for key, rows in draw.items():
            streams[key] += rows
    for key, stream in streams.items():
        for start in range(0, len(stream), sizes[key]):
            lap = stream[start : start + sizes[key]]
            assert len(set(lap)) == len(lap)
            assert set(lap) <= set(range(sizes[key]))


# ---------------------------------------------------------------- batches of similar length


def spread(mixing, lengths):
    """Mean difference between a batch's longest and shortest row."""
    return np.mean([float(np.ptp(lengths["a"][draw["a"]].numpy())) for draw in epoch(mixing) if "a" in draw])


@pytest.mark.parametrize("batch", [4, 7])  # 7 does not divide the size: batches go over from lap to lap
def test_buckets_make_batches_of_similar_length_in_a_random_order(batch):
    lengths = {name: torch.randint(1, 100, (n,), generator=torch.Generator()) for name, n in SIZES.items()}
    options = {"batch_size": batch, "lengths": lengths, "steps_per_epoch": 400}
    plain, sorted_ = make("proportional", **options), make("proportional", bucket=20, **options)
    assert spread(sorted_, lengths) < 0.25 * spread(plain, lengths)
    means = [lengths["a"][draw["a"]].float().mean() for draw in epoch(sorted_) if "a" in draw]
    rising = np.mean([later > earlier for earlier, later in pairwise(means)])
    assert 0.4 < rising < 0.6
    assert epoch(sorted_, 1) != epoch(sorted_)


# ---------------------------------------------------------------- refusals, and the files


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("proportional", {"group_steps": 0}, "group_steps must be at least 1, got 0"),
        ("proportional", {"bucket": 0}, "bucket must be at least 1"),
        ("proportional", {"bucket": 2, "lengths": {"a": torch.ones(600)}}, r"inputs of \['b', 'c'\] all have the same"),
        ("main_task", {"sizes": {"a": 5}}, "main='b' is no dataset of this run"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, given, message):
    with pytest.raises(ValueError, match=message):
        make(name, **given)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Temperature, {"temperature": 0}, "temperature must be above 0"),
        (SizeCapped, {"cap": 0}, "cap must be at least 1"),
        (MainTask, {"main": "a", "ratio": -1}, "ratio must be at least 0"),
        (Annealed, {"start": 1.0, "end": -0.1, "epochs": 3}, "exponents must be at least 0"),
        (Annealed, {"start": 1.0, "end": 0.1, "epochs": -1}, "needs a number of epochs"),
        (Annealed, {"start": 1.0, "end": 0.1, "epochs": None}, "needs a number of epochs"),
        (Formula, {"formulas": None}, "expected a formula for each"),
        (Formula, {"formulas": {"a": 1}}, r"datasets \['a', 'b', 'c'\], got \['a'\]"),
        (Formula, {"formulas": {"a": 1, "b": "1 +", "c": 1}}, "formula of 'b' can't be read"),
        (
            Formula,
            {"formulas": {"a": 1, "b": "steps", "c": 1}},
            "'b', 'steps', gives no number at step 0 of epoch 0",
        ),
        (Formula, {"formulas": {"a": 1, "b": "1 / step", "c": 1}}, "gives no number at step 0"),
        (Formula, {"formulas": {"a": 1, "b": "-1", "c": 1}}, "expected finite numbers from 0 on"),
        (Formula, {"formulas": {"a": 0, "b": 0, "c": 0}}, "one of them above 0"),
        (Formula, {"formulas": {"a": 1, "b": "1 - step", "c": 1}}, "at step 2 of epoch 0"),
    ],
)
def test_wrong_options_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(sizes=SIZES, batch_size=4, seed=0, **options)


@pytest.mark.parametrize(
    "formula", ["__import__('os').getpid()", "().__class__", "open('x')", "step.__class__", "9**9**9**9", "[1][0]"]
)
def test_a_formula_runs_no_code(formula):
    with pytest.raises(ValueError, match=r"can't be read|gives no number"):
        Formula(formulas={"a": formula}, sizes={"a": 9}, batch_size=4, seed=0)


def test_every_file_makes_its_mixing():
    given = {"main_task": {"main": "b"}, "formula": {"formulas": {"a": 1, "b": "step", "c": 1}}}
    files = sorted((conf_dir() / "mixing").glob("*.yaml"))
    assert {file.stem for file in files} == set(MAKERS)
    for file in files:
        root = OmegaConf.create({"trainer": {"max_epochs": 5}})
        root.mixing = OmegaConf.merge(OmegaConf.load(file), given.get(file.stem, {}))
        mixing = instantiate(root.mixing, sizes=SIZES, batch_size=4, seed=0)
        assert type(mixing) is type(make(file.stem))
        assert isinstance(mixing, Sampled) == (file.stem in SAMPLED)
        assert mixing.steps_per_epoch > 0


def test_lengths_are_those_of_ragged_inputs():
    ragged = Ragged(torch.arange(6), offsets=torch.tensor([0, 1, 6]), pad=0)
    text = Split({"flag": torch.zeros(2), "input_ids": ragged}, targets={"y": torch.zeros(2)})
    found = lengths({"text": text, "vectors": Split({"x": torch.zeros(2, 3)}, targets={"y": torch.zeros(2)})})
    assert {name: values.tolist() for name, values in found.items()} == {"text": [1, 5]}

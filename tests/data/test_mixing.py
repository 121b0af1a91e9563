import itertools

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from mtlbench.data.mixing import Joint, Plan, Union, evaluation_loader, make_loader
from mtlbench.data.tables import Split

SIZES = {"a": 10, "b": 4, "c": 1}


def joint(**given):
    return Joint(**{"sizes": SIZES, "batch_size": 3, "seed": 0, "steps_per_epoch": None, **given})


def epoch(mixing, number=0):
    return [mixing.plan(number, step) for step in range(mixing.steps_per_epoch)]


def lists(draws):
    return [{name: rows.tolist() for name, rows in draw.items()} for draw in draws]


def test_an_epoch_is_one_pass_over_the_largest_dataset():
    draws = epoch(joint())
    assert len(draws) == 4
    assert Joint.every_dataset
    assert [len(draw["a"]) for draw in draws] == [3, 3, 3, 1]
    assert sorted(torch.cat([draw["a"] for draw in draws]).tolist()) == list(range(10))
    assert [len(draw["b"]) for draw in draws] == [len(draw["c"]) for draw in draws] == [3, 3, 3, 3]


def test_shorter_datasets_begin_again_with_a_fresh_permutation():
    stream = torch.cat([draw["b"] for draw in epoch(joint(sizes={"a": 30, "b": 4}))]).tolist()
    laps = [tuple(stream[start : start + 4]) for start in range(0, 28, 4)]
    assert all(sorted(lap) == [0, 1, 2, 3] for lap in laps)
    assert len(set(laps)) > 1


def test_a_given_number_of_steps_has_full_batches_always():
    draws = epoch(joint(steps_per_epoch=7))
    assert len(draws) == 7
    assert {len(rows) for draw in draws for rows in draw.values()} == {3}
    assert len(epoch(joint(steps_per_epoch=2))) == 2


def test_a_plan_is_a_function_of_seed_epoch_and_step_alone():
    in_order = {(e, s): draw for e in range(3) for s, draw in enumerate(lists(epoch(joint(), e)))}
    backwards = joint()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    for (e, s), draw in reversed(list(in_order.items())):
        assert lists([backwards.plan(e, s)]) == [draw]
    assert torch.equal(torch.get_rng_state(), before)
    assert in_order[0, 0] != in_order[1, 0]
    assert lists(epoch(joint(seed=1))) != lists(epoch(joint()))


def test_a_datasets_order_does_not_depend_on_the_others():
    alone = epoch(joint(sizes={"a": 10}))
    assert [draw["a"] for draw in lists(alone)] == [draw["a"] for draw in lists(epoch(joint()))]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"sizes": {"a": 0}}, "size of 'a' must be at least 1"),
        ({"sizes": {}}, "no dataset"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        joint(**given)


def union(sizes=None):
    return Union(
        {
            name: Split({"x": torch.arange(n)[:, None]}, targets={f"{name}_y": torch.arange(n)})
            for name, n in (SIZES if sizes is None else sizes).items()
        }
    )


def loader(workers=0, **given):
    return make_loader(union(given.get("sizes")), Plan(joint(**given)), num_workers=workers)


def seen(batches):
    return [{name: batch["targets"][f"{name}_y"].tolist() for name, batch in step.items()} for step in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_hands_out_what_the_mixing_says(workers):
    found = loader(workers)
    assert len(found) == 4
    for number in range(3):  # without set_epoch, each pass is the next epoch
        assert seen(found) == lists(epoch(joint(), number))


def test_a_batch_is_nested_by_dataset():
    batch = next(iter(loader()))
    assert list(batch) == ["a", "b", "c"]
    assert torch.equal(batch["a"]["inputs"]["x"][:, 0], batch["a"]["targets"]["a_y"])


def test_iterating_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(loader())
    list(evaluation_loader(union().splits, batch_size=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("handed", [0, 1, 3, 4])
def test_a_loader_resumes_after_the_batches_handed_out(workers, handed):
    expected = lists(epoch(joint(), 1)) + lists(epoch(joint(), 2))
    first = loader(workers)
    first.plan.set_epoch(1)
    got = seen(itertools.islice(first, handed))  # workers have fetched further
    state = first.state_dict()
    assert state == {"epoch": 1, "handed": handed, "steps_per_epoch": 4}
    second = loader(workers)
    second.load_state_dict(state)
    second.plan.set_epoch(1)  # as Lightning does in the epoch under way
    assert got + seen(second) + (seen(second) if handed < 4 else []) == expected


def test_a_new_epoch_begins_at_its_start():
    found = loader()
    next(iter(found))
    found.plan.set_epoch(1)
    assert seen(found) == lists(epoch(joint(), 1))


def test_the_state_of_another_run_is_refused():
    state = loader(batch_size=5).state_dict()
    with pytest.raises(ValueError, match="an epoch of 2 steps, this run's has 4"):
        loader().load_state_dict(state)


def test_evaluation_passes_once_over_every_row_in_order():
    batches = list(evaluation_loader(union().splits, batch_size=4))
    assert [list(batch) for batch in batches] == [["a"], ["a"], ["a"], ["b"], ["c"]]
    rows = [batch["a"]["targets"]["a_y"].tolist() for batch in batches[:3]]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


class Recorder(LightningModule):
    """Trains one number and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.weight, self.given = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, index):
        self.given += seen([batch])
        return self.weight * batch["a"]["targets"]["a_y"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, *, workers, stop=-1, resume=None, limit=None):
    module = Recorder()
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[save],
        logger=False,
        max_epochs=3,
        limit_train_batches=limit,
        max_steps=stop,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(workers), ckpt_path=resume)
    return module


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("workers", "step"), [(0, 1), (0, 4), (0, 6), (0, 8), (2, 6), (2, 8)])
def test_lightning_resumes_where_it_stopped(tmp_path, workers, step):
    whole = [draw for number in range(3) for draw in lists(epoch(joint(), number))]
    before = fit(tmp_path / "stopped", workers=workers, stop=step)
    after = fit(tmp_path / "resumed", workers=workers, resume=tmp_path / "stopped" / f"step={step}.ckpt")
    assert before.given == whole[:step]
    assert after.given == whole[step:]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_after_an_epoch_that_was_cut_short(tmp_path, workers):
    whole = [draw for number in range(3) for draw in lists(epoch(joint(), number))[:2]]
    before = fit(tmp_path / "stopped", workers=workers, stop=2, limit=2)
    after = fit(tmp_path / "resumed", workers=workers, resume=tmp_path / "stopped" / "step=2.ckpt", limit=2)
    assert before.given == whole[:2]
    assert after.given == whole[2:]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_out_each_step(ranks, workers):
    """Their parts are the draw of one rank, without a row twice; who has none of a dataset does not see it."""
    parts = [
        make_loader(Union(union().splits, rank=rank, ranks=ranks), Plan(joint()), num_workers=workers)
        for rank in range(ranks)
    ]
    steps = 0
    for whole, *some in zip(epoch(joint(), 0), *parts, strict=True):
        for name, rows in whole.items():
            found = [batch[name]["rows"] for batch in some if name in batch]
            assert sorted(torch.cat(found).tolist()) == sorted(rows.tolist())
            assert len(found) == min(ranks, len(rows))
            assert max(map(len, found)) - min(map(len, found)) <= 1
            assert some[0][name]["drawn"] == len(rows)
        steps += 1
    assert steps == 4


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_share_out_the_batches_of_an_evaluation(ranks):
    whole = list(evaluation_loader(union().splits, batch_size=4))
    parts = [list(evaluation_loader(union().splits, batch_size=4, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    found = [batch for turn in zip(*parts, strict=True) for batch in turn]
    assert seen(found[: len(whole)]) == seen(whole)
    assert not any(found[len(whole) :])

import math

import pytest
import torch

from mtlbench.data.tables import IGNORE, Ragged, Split


def ragged(rows, pad):
    offsets = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0)])
    return Ragged(torch.tensor([x for row in rows for x in row]), offsets=offsets, pad=pad)


def test_ragged_pads_to_the_longest_of_the_chosen():
    rows = [[1, 2, 3], [4], [5, 6]]
    table = ragged(rows, pad=-7)
    assert len(table) == 3
    assert table.take(torch.tensor([2, 1])).tolist() == [[5, 6], [4, -7]]
    assert table.take(torch.tensor([0])).tolist() == [[1, 2, 3]]
    assert table.take(torch.tensor([1, 0, 1])).tolist() == [[4, -7, -7], [1, 2, 3], [4, -7, -7]]


def test_ragged_takes_empty_rows_at_any_place():
    table = ragged([[], [9], []], pad=0)
    assert table.take(torch.tensor([2, 0])).shape == (2, 0)
    assert table.take(torch.tensor([0, 1, 2])).tolist() == [[0], [9], [0]]


def test_ragged_refuses_offsets_that_do_not_span_the_values():
    with pytest.raises(AssertionError):
        Ragged(torch.arange(3), offsets=torch.tensor([0, 2]), pad=0)


@pytest.fixture
def split():
    targets = {
        "b": torch.tensor([0.5, math.nan, 2.5]),
        "tags": ragged([[1], [2, IGNORE], [3]], pad=IGNORE),
        "a": torch.tensor([1, IGNORE, 0]),
        "c": torch.tensor([3.0, 4.0, 5.0]),
        "many": torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
    }
    return Split({"x": torch.arange(6).reshape(3, 2)}, targets=targets), targets


def test_batch_gives_the_rows_asked_for_in_the_order_of_the_tasks(split):
    table, given = split
    batch = table.batch(torch.tensor([2, 0]))
    assert batch["inputs"]["x"].tolist() == [[4, 5], [0, 1]]
    assert list(batch["targets"]) == list(given)
    assert batch["targets"]["b"].tolist() == [2.5, 0.5]
    assert batch["targets"]["a"].tolist() == [0, 1]
    assert batch["targets"]["a"].dtype == torch.int64
    assert batch["targets"]["tags"].tolist() == [[3], [1]]
    assert batch["targets"]["many"].tolist() == [[1, 1], [0, 1]]
    assert table.batch(torch.tensor([1]))["targets"]["b"].isnan().all()


def test_targets_come_back_as_given(split):
    table, given = split
    assert list(table.targets) == list(given)
    for name, target in given.items():
        if isinstance(target, torch.Tensor):
            torch.testing.assert_close(table.targets[name], target, equal_nan=True)
        else:
            assert table.targets[name] is target


def test_dense_targets_of_one_dtype_are_gathered_once(split):
    targets = {f"t{n}": torch.arange(5.0) for n in range(40)}
    batch = Split({"x": torch.zeros(5, 1)}, targets=targets).batch(torch.tensor([3, 1]))
    assert len({target.untyped_storage().data_ptr() for target in batch["targets"].values()}) == 1


def test_inputs_and_targets_of_different_length_are_refused():
    with pytest.raises(AssertionError, match="differ in length"):
        Split({"x": torch.zeros(3, 1)}, targets={"a": torch.zeros(2)})

"""Which tokens are masked: by the library's rule, anew at each step, and by nothing but the seed."""

import functools
import itertools

import pandas as pd
import pytest
import torch
from scipy.stats import binom
from transformers import PreTrainedTokenizerFast

from mtlbench.data.build import build, read_tables
from mtlbench.data.describe import _labels
from mtlbench.data.masking import Masking
from mtlbench.data.mixing import Joint, Plan, Union, make_loader
from mtlbench.data.mixing.proportional import Proportional
from mtlbench.data.names import expand
from mtlbench.data.sources import SPLITS
from mtlbench.data.tables import IGNORE
from mtlbench.data.text import train_tokenizer

TOKENIZER = functools.partial(train_tokenizer, vocab_size=120, min_frequency=1)
WORDS = ["the", "old", "film", "is", "a", "fine", "one", "and", "the", "new", "one", "is", "not", "so", "good"]
TEXTS = [" ".join(WORDS[i : i + 3 + i % 5] * 2) for i in range(10)]
MLM = {"mlm": {"type": "masked_lm", "dataset": "copy"}}
BOTH = {"side": {"type": "classification", "dataset": "d", "column": "y"}, **MLM}


def frame(texts=TEXTS):
    return pd.DataFrame({"x": texts, "y": [i % 2 for i in range(len(texts))]})


def make(source, tasks=BOTH, *, names=("d", "copy"), tokenizer=TOKENIZER, column="x", table=None, **given):
    datasets = {name: source(frame() if table is None else table, type="text", column=column) for name in names}
    # The splits are alike here, which no run would train on.
    settings = {"select": None, "data_dir": None, "max_length": 32, "overlaps": "keep", **given}
    return build(datasets=datasets, tasks=tasks, tokenizer=tokenizer, **settings)


def train_loader(data, *, seed=0, workers=0, kind=Joint, **given):
    masking = Masking("mlm", dataset="copy", tokenizer=data.input_spec["copy"].tokenizer, probability=0.3)
    sizes = {name: len(split) for name, split in data.splits["train"].items()}
    mixing = kind(sizes=sizes, batch_size=4, seed=seed, **given)
    return make_loader(Union(data.splits["train"]), Plan(mixing), num_workers=workers, maskings=[masking])


def masked(batches):
    """What each batch says of the masked dataset, where it has it."""
    parts = [batch["copy"] for batch in batches if "copy" in batch]
    return [
        (part["rows"].tolist(), part["inputs"]["input_ids"].tolist(), part["targets"]["mlm"].tolist()) for part in parts
    ]


# by the library's rule


def test_a_tenth_stays_a_tenth_changes_and_the_rest_becomes_the_mask():
    tokenizer = TOKENIZER(TEXTS)
    size, probability = len(tokenizer), 0.15
    special = torch.tensor(tokenizer.all_special_ids)
    ids = torch.randint(size, (200, 200), generator=torch.Generator().manual_seed(0))
    maskable = ids.masked_fill(torch.isin(ids, special), IGNORE)
    found, targets = Masking("t", dataset="d", tokenizer=tokenizer, probability=probability)(ids, maskable, seed=5)
    chosen = targets != IGNORE
    assert torch.equal(found[~chosen], ids[~chosen])
    assert torch.equal(targets[chosen], ids[chosen])
    assert not torch.isin(ids[chosen], special).any()
    count, became = int(chosen.sum()), found[chosen]
    # A token drawn at random is the mask, or the token itself, once in `size` times.
    expected = {
        "chosen": (count, int((maskable != IGNORE).sum()), probability),
        "mask": (int((became == tokenizer.mask_token_id).sum()), count, 0.8 + 0.1 / size),
        "same": (int((became == ids[chosen]).sum()), count, 0.1 + 0.1 / size),
    }
    expected["other"] = (count - expected["mask"][0] - expected["same"][0], count, 0.1 - 0.2 / size)
    for name, (successes, trials, chance) in expected.items():
        least, most = binom.interval(1 - 1e-4, trials, chance)
        assert least <= successes <= most, name


def test_masks_are_a_function_of_the_seed_alone():
    tokenizer = TOKENIZER(TEXTS)
    masking = Masking("t", dataset="d", tokenizer=tokenizer, probability=0.3)
    ids = torch.full((8, 50), tokenizer.convert_tokens_to_ids("film"))
    before = torch.get_rng_state()
    first = masking(ids, ids, seed=1)
    other = masking(ids, ids, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = masking(ids, ids, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    assert (ids == ids[0, 0]).all()  # what it was given stays


# the data


def test_training_tokens_may_all_be_masked_and_the_others_are_so_once_and_for_all(source):
    data = make(source)
    tokenizer = data.input_spec["copy"].tokenizer
    train, val = data.splits["train"]["copy"], data.splits["val"]["copy"]
    ids, targets = train.inputs["input_ids"].values, train.targets["mlm"].values
    library = [
        mark
        for start, stop in itertools.pairwise(train.inputs["input_ids"].offsets.tolist())
        for mark in tokenizer.get_special_tokens_mask(ids[start:stop].tolist(), already_has_special_tokens=True)
    ]
    assert (targets == IGNORE).tolist() == list(map(bool, library))
    assert torch.equal(targets[targets != IGNORE], ids[targets != IGNORE])
    fixed = val.targets["mlm"].values
    assert 0 < (fixed != IGNORE).sum() < (targets != IGNORE).sum()
    assert (val.inputs["input_ids"].values == tokenizer.mask_token_id).any()
    again = make(source).splits["val"]["copy"]
    assert torch.equal(again.targets["mlm"].values, fixed)
    assert torch.equal(again.inputs["input_ids"].values, val.inputs["input_ids"].values)
    assert not torch.equal(data.splits["test"]["copy"].targets["mlm"].values, fixed)  # the same texts, other masks
    assert torch.equal(data.splits["val"]["d"].inputs["input_ids"].values, ids)  # the other task's are whole
    assert data.tasks["mlm"].options == {"probability": 0.15, "vocabulary": len(tokenizer)}


@pytest.mark.parametrize(
    ("column", "texts"), [(["x", "y"], ("words here", "and there")), ("x", ["a", "list", "of", "words"])]
)
def test_pairs_and_lists_of_words_are_masked_too(source, column, texts):
    table = pd.DataFrame({"x": [texts[0] if isinstance(column, list) else texts] * 20, "y": texts[1]})
    data = make(source, MLM, names=("copy",), table=table, column=column)
    tokenizer = data.input_spec["copy"].tokenizer
    (batch,) = itertools.islice(train_loader(data), 1)
    kept = batch["copy"]["targets"]["mlm"]
    assert (kept != IGNORE).any()
    assert not torch.isin(kept[kept != IGNORE], torch.tensor(tokenizer.all_special_ids)).any()


def test_a_second_copy_changes_no_tokenizer(source):
    alone = {"side": BOTH["side"]}
    make_rare = functools.partial(train_tokenizer, vocab_size=120, min_frequency=3)
    twice, once = (
        make(source, tasks, names=names, tokenizer=make_rare).input_spec["d"].tokenizer.get_vocab()
        for tasks, names in ((BOTH, ("copy", "d")), (alone, ("d",)))
    )
    assert twice == once


def test_data_show_counts_the_tokens(source):
    data = make(source)
    table = _labels(data.tasks["mlm"], {split: data.splits[split]["copy"].targets["mlm"] for split in SPLITS})
    counts = [int((data.splits[split]["copy"].targets["mlm"].values != IGNORE).sum()) for split in SPLITS]
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["masked tokens", f"15% of {counts[0]}", str(counts[1]), str(counts[2])]


# what is refused


def test_a_tokenizer_without_a_mask_token(source):
    def tokenizer(texts):
        made = TOKENIZER(texts)
        return PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, pad_token="[PAD]", unk_token="[UNK]")

    with pytest.raises(ValueError, match=r"Task 'mlm': the tokeniser '.*' has no mask token"):
        make(source, tokenizer=tokenizer)


def test_inputs_that_are_no_text(source):
    vectors = source(pd.DataFrame({"f": [1.0, 2.0]}), type="vector", columns="f", standardize=False)
    with pytest.raises(ValueError, match="'mlm' masks texts, but the inputs of 'copy' are no text"):
        build(datasets={"copy": vectors}, tasks=MLM, select=None, data_dir=None, tokenizer=None, max_length=8)


def test_texts_without_a_word(source):
    with pytest.raises(ValueError, match="split 'train': not one token to predict in 2 texts"):
        make(source, MLM, names=("copy",), table=frame(["", " "]))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({**BOTH, "mlm": {**MLM["mlm"], "dataset": "d"}}, r"side would read them masked too. Name the same files as"),
        ({"mlm": {**MLM["mlm"], "column": "x"}}, "predicts its own inputs: leave 'column' out"),
        ({"mlm": {**MLM["mlm"], "probability": 15}}, "probability lies between 0 and 1, got 15"),
        ({"mlm": {**MLM["mlm"], "probability": 0}}, "probability lies between 0 and 1, got 0"),
    ],
)
def test_a_node_that_cannot_be(tasks, message):
    with pytest.raises(ValueError, match=message):
        expand(tasks)


# in training


def test_masks_change_from_step_to_step_and_from_epoch_to_epoch(source):
    loader = train_loader(make(source), steps_per_epoch=4)
    first, second = masked(loader), masked(loader)
    seen = [(row, tuple(kept)) for rows, _, targets in first + second for row, kept in zip(rows, targets, strict=True)]
    by_row = {row: {kept for r, kept in seen if r == row} for row, _ in seen}
    assert sum(len(masks) > 1 for masks in by_row.values()) > len(by_row) // 2
    assert masked(train_loader(make(source), steps_per_epoch=4)) == first
    assert masked(train_loader(make(source), steps_per_epoch=4, seed=1)) != first


@pytest.mark.parametrize("kind", [Joint, functools.partial(Proportional, group_steps=2)])
@pytest.mark.parametrize("handed", [0, 2])
def test_masks_are_the_same_with_workers_and_after_a_restart(source, kind, handed):
    data = make(source)
    whole = train_loader(data, kind=kind, steps_per_epoch=5)
    whole.plan.set_epoch(1)
    expected = masked(whole)
    assert expected
    first = train_loader(data, kind=kind, steps_per_epoch=5, workers=2)
    first.plan.set_epoch(1)
    torch.manual_seed(3)
    got = masked(itertools.islice(first, handed))
    second = train_loader(data, kind=kind, steps_per_epoch=5, workers=2)
    second.load_state_dict(first.state_dict())
    assert got + masked(second) == expected


def test_ranks_mask_their_parts_by_themselves(source):
    data = make(source)
    found = []
    for rank in range(2):
        one = train_loader(data, steps_per_epoch=5)
        union = Union(data.splits["train"], rank=rank, ranks=2)
        found.append(masked(make_loader(union, one.plan, num_workers=0, maskings=one.maskings)))
    for (rows, _, labels), (others, _, more) in zip(*found, strict=True):
        assert not set(rows) & set(others)
        chosen, also = ([[label != IGNORE for label in row] for row in part] for part in (labels, more))
        assert chosen != also


# texts that other datasets have too


def test_a_copys_val_and_test_drop_nothing_and_its_training_is_dropped(source):
    """One sentence of training stands again in test, as in SST-2."""
    parts = [frame(texts) for texts in (["one", "two", "again", "three"], ["four"], ["again"])]
    datasets = {name: source(*parts, type="text", column="x") for name in ("d", "copy", "second")}
    given = {"wanted": ["d"], "data_dir": None, "overlaps": "drop"}
    tables = read_tables({name: datasets[name] for name in ("d", "copy")}, unlabelled={"copy"}, **given)
    assert tables.dropped == {"copy": 1}
    assert tables.frames["d"]["train"]["x"].tolist() == ["one", "two", "again", "three"]
    assert [(found.dataset, found.train) for found in tables.overlaps] == [("d", "copy")]
    # Of two that are masked, one would give away the other's words.
    tables = read_tables(datasets, unlabelled={"copy", "second"}, **given)
    assert tables.dropped == {"copy": 1, "second": 1}

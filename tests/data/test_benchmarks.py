"""The benchmarks that conf/benchmark brings, on the data themselves."""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.datasets import load_digits

from mtlbench.assembly import load_sources
from mtlbench.data.benchmarks.multidigits import multidigits
from mtlbench.data.build import Data, DatasetSource, build
from mtlbench.data.mixing import Joint
from mtlbench.data.names import task_names
from mtlbench.data.sources import SPLITS
from mtlbench.data.tables import IGNORE
from mtlbench.data.text import train_tokenizer

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "benchmark").glob("*.yaml"))


def benchmark(name: str) -> dict:
    """The node `benchmark` of a YAML file, as plain containers."""
    return OmegaConf.to_container(OmegaConf.load(CONF / "benchmark" / f"{name}.yaml"), resolve=True)["benchmark"]


def sources(name: str) -> dict[str, DatasetSource]:
    return load_sources(OmegaConf.create({"benchmark": benchmark(name)}))


def load(name: str, data_dir: str | None, select: list[str] | None = None) -> Data:
    return build(
        datasets=sources(name),
        tasks=benchmark(name)["tasks"],
        select=select,
        data_dir=data_dir,
        tokenizer=functools.partial(train_tokenizer, vocab_size=4000),
        max_length=64,
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_file_is_complete(name):
    lines = (CONF / "benchmark" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"  # Hydra reads it in the first line alone
    assert lines[1].startswith("# ")
    config = OmegaConf.load(CONF / "benchmark" / f"{name}.yaml")
    assert config.benchmark.name == name
    if "_target_" in config.benchmark:  # it runs itself, without data and epochs
        assert config.benchmark.steps > 0
        return
    assert config.trainer.max_epochs > 0
    assert config.data.batch_size > 0
    assert config.optimizer.lr > 0
    assert task_names(benchmark(name)["tasks"])
    for metric in benchmark(name)["metrics"].values():
        assert set(metric["tasks"]) <= set(task_names(benchmark(name)["tasks"]))


def test_joint_mixing_is_made_from_its_file():
    mixing = instantiate(OmegaConf.load(CONF / "mixing" / "joint.yaml"), sizes={"a": 9}, batch_size=4, seed=0)
    assert isinstance(mixing, Joint)
    assert mixing.steps_per_epoch == 3


# multidigits


@pytest.fixture(scope="module")
def digits() -> dict[str, pd.DataFrame]:
    return multidigits(train=400, val=150, test=100, seed=0)


def test_no_image_stands_in_two_splits(digits):
    used = {split: set(frame["left_image"]) | set(frame["right_image"]) for split, frame in digits.items()}
    assert {split: len(frame) for split, frame in digits.items()} == {"train": 400, "val": 150, "test": 100}
    assert used["train"].isdisjoint(used["val"])
    assert used["train"].isdisjoint(used["test"])
    assert used["val"].isdisjoint(used["test"])
    assert len(used["train"]) > 350


def test_columns_follow_from_the_two_digits(digits):
    frame = digits["train"]
    total = frame["left"] + frame["right"]
    assert (frame["sum"] == total).all()
    assert (frame["parity"] == total.map(lambda n: "odd" if n % 2 else "even")).all()
    sign = np.sign(frame["left"] - frame["right"])
    assert (frame["larger"] == sign.map({1: "left", -1: "right", 0: "equal"})).all()
    assert set(frame["larger"]) == {"left", "right", "equal"}
    assert set(frame["left"]) == set(frame["right"]) == set(range(10))


def test_images_are_overlaid_with_an_offset(digits):
    image = np.stack(digits["train"]["image"])
    assert image.shape == (400, 28, 28)
    assert image.dtype == np.float32
    assert image.min() == 0
    assert 0.9 < image.max() <= 1
    # The same by numpy: bilinear to 28 x 28, both on a canvas of 36 x 36, every 36/28th pixel of it.
    scans, near = load_digits().images / 16, (np.arange(28) * 36) // 28
    at = (np.arange(28) + 0.5) * 8 / 28 - 0.5
    for row in range(20):
        canvas = np.zeros((2, 36, 36))
        for layer, (column, start) in enumerate((("left_image", 0), ("right_image", 6))):
            scan = scans[digits["train"][column][row]]
            wide = np.stack([np.interp(at, np.arange(8), line) for line in scan])
            large = np.stack([np.interp(at, np.arange(8), line) for line in wide.T]).T
            canvas[layer, start : start + 28, start : start + 28] = large
        np.testing.assert_allclose(image[row], canvas.max(0)[np.ix_(near, near)], atol=1e-6)


def test_pairs_depend_on_their_own_seed_alone(digits):
    torch.manual_seed(5)
    again = multidigits(train=400, val=150, test=100, seed=0, data_dir="nowhere")
    pd.testing.assert_frame_equal(again["test"].drop(columns="image"), digits["test"].drop(columns="image"))
    other = multidigits(train=400, val=150, test=100, seed=1)
    assert not other["test"]["left_image"].equals(digits["test"]["left_image"])


@pytest.mark.parametrize(("name", "outputs"), [("multidigits", [10, 10]), ("multidigits5", [10, 10, 2, 19, 3])])
def test_multidigits_is_built(name, outputs):
    data = load(name, None)
    assert [task.num_outputs for task in data.tasks.values()] == outputs
    assert data.input_spec["digits"].shape == (1, 28, 28)
    batch = data.splits["train"]["digits"].batch(torch.tensor([0, 5]))
    assert batch["inputs"]["x"].shape == (2, 1, 28, 28)
    assert list(load(name, None, ["right"]).tasks) == ["right"]


# text


def decoded(data: Data, name: str, split: str, task: str) -> list[list[str]]:
    """The tags that stand in the targets, read back row by row."""
    table, labels = data.splits[split][name], data.tasks[task].labels
    found = []
    for rows in torch.arange(len(table)).split(256):
        target = table.batch(rows)["targets"][task]
        found += [[labels[n] for n in row if n != IGNORE] for row in target.tolist()]
    return found


@pytest.mark.data
@pytest.mark.parametrize(("name", "sizes"), [("snips", (13084, 700, 700)), ("atis", (4478, 500, 893))])
def test_every_tag_stands_on_the_first_sub_word_of_its_word(name, sizes, data_dir):
    data, frames = load(name, data_dir), sources(name)[name].load(data_dir=data_dir)
    tokenizer = data.input_spec[name].tokenizer
    for split, size in zip(SPLITS, sizes, strict=True):
        assert len(data.splits[split][name]) == size
        tags = decoded(data, name, split, "slots")
        assert tags == frames[split]["slots"].tolist()
        assert [get_entities(row) for row in tags] == [get_entities(row) for row in frames[split]["slots"]]
        intents = [data.tasks["intent"].labels[n] for n in data.splits[split][name].targets["intent"]]
        assert intents == frames[split]["intent"].tolist()
    rows = torch.arange(100)
    batch, words = data.splits["test"][name].batch(rows), frames["test"]["tokens"].tolist()
    for row in rows.tolist():
        ids, target = batch["inputs"]["input_ids"][row], batch["targets"]["slots"][row]
        firsts = [tokenizer.convert_ids_to_tokens(int(n)) for n in ids[target != IGNORE]]
        starts = [
            tokenizer.convert_ids_to_tokens(tokenizer(w, add_special_tokens=False)["input_ids"])[0] for w in words[row]
        ]
        assert firsts == starts
    assert data.tasks["slots"].labels[0] == "O"
    assert set(batch["inputs"]["input_ids"][batch["inputs"]["attention_mask"] == 0].tolist()) <= {
        tokenizer.pad_token_id
    }


@pytest.mark.data
def test_intents_of_atis_that_never_occur_in_training_are_kept(data_dir, caplog):
    data = load("atis", data_dir, ["intent"])
    splits = {split: data.splits[split]["atis"].targets["intent"] for split in SPLITS}
    trained = set(splits["train"].tolist())
    assert sum(label not in trained for label in splits["test"].tolist()) == 5
    assert sum(label not in trained for label in splits["val"].tolist()) == 1
    assert data.tasks["intent"].num_outputs == 26
    assert "task 'intent': 6 row(s) of val and test have labels that never occur in training" in caplog.text


# school


@pytest.mark.data
def test_school_has_139_tasks(data_dir):
    data = load("school", data_dir)
    assert list(data.tasks) == [f"school_{n}" for n in range(139)]
    assert [len(data.splits[split]["school"]) for split in SPLITS] == [9216, 3077, 3069]
    assert data.input_spec["school"].shape == (28,)
    counts = {}
    for split in SPLITS:
        table = torch.stack(list(data.splits[split]["school"].targets.values()), dim=1)
        assert table.shape[1] == 139
        assert ((~table.isnan()).sum(1) == 1).all()  # a pupil goes to one school
        counts[split] = (~table.isnan()).sum(0)
    share = counts["train"] / sum(counts.values())
    assert (share - 0.6).abs().max() < 0.03
    x = data.splits["train"]["school"].inputs["x"]
    assert x.mean(0).abs().max() < 1e-5
    assert (x[:, 27] == 0).all()
    frame = sources("school")["school"].load(data_dir=data_dir)["test"]
    row = 1234
    target = data.splits["test"]["school"].targets[f"school_{frame['school'].iloc[row]}"][row]
    assert target == frame["exam_score"].iloc[row]


@pytest.mark.parametrize("name", ["snips", "atis", "school"])
def test_a_directory_without_the_benchmark_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"the folder of .* is missing: {tmp_path}"):
        load(name, str(tmp_path))


# several datasets


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "dataset", "sizes", "column", "val"),
    [
        ("glue5", "cola", (7696, 855, 1043), "label", "a tenth of train"),
        ("glue5", "rte", (2241, 249, 277), "label", "a tenth of train"),
        ("glue5", "mrpc", (3576, 500, 1725), "label", "the official one"),
        ("tagging3", "conll2000", (8042, 894, 2012), "chunk", "a tenth of train"),
        ("intents", "banking77", (9003, 1000, 3080), "intent", "a tenth of train"),
        ("fdu_mtl", "imdb", (1400, 200, 400), "label", "an eighth of train"),
        ("ratings4", "amazon", (3051, 294, 363), "rating", "fold 1"),
        ("tweeteval", "stance_climate", (355, 40, 169), "label", "the official one"),
        ("bio_ner", "linnaeus", (11935, 4078, 7142), "ner", "the official one"),
    ],
)
def test_splits_are_those_that_the_yaml_declares(name, dataset, sizes, column, val, data_dir):
    frames = sources(name)[dataset].load(data_dir=data_dir)
    found = {split: len(frames[split]) for split in SPLITS}
    assert tuple(found.values()) == sizes, val
    assert all(column in frame for frame in frames.values())
    if frames["train"][column].map(type).eq(int).all():  # of a stratified part, the shares are train's own
        means = [frames[split][column].mean() for split in ("train", "val")]
        assert val == "the official one" or abs(means[0] - means[1]) < 0.01


@pytest.mark.data
def test_glue5_has_pairs_and_drops_what_its_tests_hold(data_dir, caplog):
    data = load("glue5", data_dir, ["mrpc", "stsb"])
    assert {name: len(split) for name, split in data.splits["train"].items()} == {"mrpc": 3273, "stsb": 5167}
    assert (
        "1,006 of the 3,384 distinct sentences of mrpc's test split stand in the training split of stsb" in caplog.text
    )
    assert "238 of the 2,549 distinct sentences of stsb's test split stand in the training split of mrpc" in caplog.text
    for name in ("mrpc", "stsb"):
        inputs = data.splits["test"][name].batch(torch.tensor([0, 1, 2]))["inputs"]
        assert inputs["token_type_ids"].unique().tolist() == [0, 1]
    assert (data.tasks["mrpc"].labels, data.tasks["mrpc"].metrics) == (("0", "1"), ("accuracy", "f1"))
    assert data.tasks["stsb"].metrics == ("pearson", "spearman")

"""The task and its head: the library's head, plain cross-entropy, metrics over masked tokens alone."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from mtlbench.data.tables import IGNORE, Split, TaskInfo
from mtlbench.lit.evaluation import Evaluation
from mtlbench.tasks import MaskedLM

V, D = 7, 8
INFO = TaskInfo(name="mlm", type="masked_lm", dataset="d", num_outputs=1, options={"vocabulary": V, "probability": 0.3})
TARGETS = torch.tensor([[IGNORE, 5, IGNORE, 2], [IGNORE, IGNORE, IGNORE, IGNORE], [3, IGNORE, 5, 5]])
TRAIN = torch.tensor([[IGNORE, 5, 5, 1], [IGNORE, 2, 5, IGNORE]])


def task(info=INFO):
    return MaskedLM(info, TRAIN, head_options={"pooling": "first", "dropout": 0.0})


@pytest.fixture
def outputs():
    """The logits of every token, and those of the masked ones."""
    torch.manual_seed(0)
    head, x = task().head(D), torch.randn(3, 4, D)
    return head.decoder(head.transform(x)), head({"x": x}, TARGETS)


def test_logits_are_those_of_the_masked_tokens(outputs):
    everywhere, found = outputs
    assert found.shape == (5, V)
    torch.testing.assert_close(found, everywhere[TARGETS != IGNORE])


def test_the_head_is_the_librarys_and_all_of_it_trains():
    from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

    head = task().head(D)
    assert isinstance(head.transform, BertPredictionHeadTransform)
    assert head.decoder.weight.shape == (V, D)
    head({"x": torch.randn(3, 4, D)}, TARGETS).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert torch.equal(head.decoder.bias, torch.zeros(V))
    assert head.decoder.weight.std() < 0.04  # as the library initialises it


def test_the_projection_starts_from_embeddings_of_its_width():
    head, words = task().head(D), torch.randn(V + 2, D)
    before, scale = head.decoder.weight.clone(), head.decoder.weight.std()
    head.start_from(torch.randn(V, D + 1))
    assert torch.equal(head.decoder.weight, before)
    head.start_from(words)
    torch.testing.assert_close(head.decoder.weight / head.decoder.weight.norm(), words[:V] / words[:V].norm())
    torch.testing.assert_close(head.decoder.weight.std(), scale)


def test_the_loss_is_the_plain_cross_entropy_of_the_masked_tokens(outputs):
    everywhere, found = outputs
    loss, count = task().loss(found, TARGETS)
    torch.testing.assert_close(loss, F.cross_entropy(everywhere.flatten(0, 1), TARGETS.flatten(), ignore_index=IGNORE))
    assert count == 5


def test_a_batch_without_a_masked_token_has_no_label():
    head, nothing = task().head(D), torch.full((2, 3), IGNORE)
    _, count = task().loss(head({"x": torch.randn(2, 3, D)}, nothing), nothing)
    assert count == 0


def test_metrics_are_of_masked_tokens_alone_and_the_trivial_one_says_the_most_frequent_word(outputs):
    _, found = outputs
    split = Split({"x": torch.zeros(3, 4)}, targets={"mlm": TARGETS.flatten().view(3, 4)})
    evaluation = Evaluation({"mlm": task()}, {"d": split}, {}, split="val")
    assert evaluation.trivial == {"mlm": pytest.approx(3 / 5)}  # 5, which stands three times in training
    evaluation.update({"mlm": found[:2]}, {"mlm": TARGETS[:1]}, rows=torch.tensor([0]))
    evaluation.update({"mlm": found[2:2]}, {"mlm": TARGETS[1:2]}, rows=torch.tensor([1]))
    evaluation.update({"mlm": found[2:]}, {"mlm": TARGETS[2:]}, rows=torch.tensor([2]))
    values, wanted = evaluation.compute(), TARGETS[TARGETS != IGNORE]
    accuracy = (found.argmax(-1) == wanted).float().mean().item()
    assert values["mlm/token_accuracy"] == pytest.approx(accuracy)
    assert values["loss/mlm"] == pytest.approx(F.cross_entropy(found, wanted).item())
    assert values["mlm/perplexity"] == pytest.approx(math.exp(values["loss/mlm"]), rel=1e-5)
    assert values["score"] == pytest.approx((accuracy - 0.6) / 0.4, abs=1e-6)
    rows = evaluation.rows()
    assert [(row["row"], row["target"]) for row in rows] == [(0, [5, 2]), (2, [3, 5, 5])]
    assert [token for row in rows for token in row["prediction"]] == found.argmax(-1).tolist()


def test_directions_and_the_primary_metric():
    assert (task().higher_is_better("token_accuracy"), task().higher_is_better("perplexity")) == (True, False)
    with pytest.raises(ValueError, match="the trivial predictor's, which has no perplexity"):
        task(dataclasses.replace(INFO, metrics=("perplexity", "token_accuracy")))

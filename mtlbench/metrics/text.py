"""Metrics that compare texts: predictions with one or more references, 0 to 100 as their papers print them."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mtlbench.data.tables import Reference
from mtlbench.metrics.gleu import corpus_gleu
from mtlbench.metrics.squad import exact_match, token_f1


class TextMetric(Metric):
    """Keeps texts until the end. As bytes in tensors, so that torchmetrics gathers them from all ranks."""

    full_state_update = False
    higher_is_better = True
    signature: str | None = None  # how it was computed, where a paper should say so
    kept: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("kept", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Sequence[str], references: Sequence[Reference]) -> None:
        """N predictions and their references."""
        lines = [
            json.dumps([prediction, reference.source, reference.texts])
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        text = "".join(f"{line}\n" for line in lines).encode()
        self.kept.append(torch.tensor(list(text), dtype=torch.uint8, device=self.device))

    def compute(self) -> Tensor:
        data = bytes(dim_zero_cat(self.kept).cpu().numpy())
        rows: list[Any] = [json.loads(line) for line in data.splitlines()]
        predictions = [prediction for prediction, _, _ in rows]
        references = [Reference(source, tuple(texts)) for _, source, texts in rows]
        return torch.tensor(self.score(predictions, references), dtype=torch.float64)

    @abstractmethod
    def score(self, predictions: list[str], references: list[Reference]) -> float:
        """The corpus' score."""


class Bleu(TextMetric):
    """BLEU through sacrebleu (Papineni et al. 2002; Post 2018, arXiv:1804.08771), 13a tokens, cased."""

    def __init__(self) -> None:
        super().__init__()
        self.library: BLEU | CHRF = BLEU()

    def score(self, predictions: list[str], references: list[Reference]) -> float:
        found = self.library.corpus_score(predictions, _by_position(references)).score
        self.signature = str(self.library.get_signature())
        return found


class ChrF(Bleu):
    """chrF2 through sacrebleu (Popović 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.library = CHRF()


class Rouge(TextMetric):
    """F-measure of ROUGE (Lin 2004) through rouge-score, mean over texts; of several references the best."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.signature = f"rouge-score {kind}, F-measure, without stemming, best of the references"

    def score(self, predictions: list[str], references: list[Reference]) -> float:
        scorer = RougeScorer([self.kind], tokenizer=DefaultTokenizer(use_stemmer=False))
        pairs = zip(predictions, references, strict=True)
        scores = [scorer.score_multi(list(r.texts), p)[self.kind].fmeasure for p, r in pairs]
        return 100 * sum(scores) / len(scores)


class Gleu(TextMetric):
    """GLEU of grammatical error correction; see `corpus_gleu`."""

    signature = "GLEU of Napoles et al. 2015/2016, order 4, words divided by white space, 500 draws of references"

    def score(self, predictions: list[str], references: list[Reference]) -> float:
        return 100 * corpus_gleu(predictions, [r.source for r in references], [r.texts for r in references])


class ExactMatch(TextMetric):
    """SQuAD's exact match (Rajpurkar et al. 2016, 2018); no text is the right answer where none is there."""

    def score(self, predictions: list[str], references: list[Reference]) -> float:
        pairs = zip(predictions, references, strict=True)
        return 100 * sum(exact_match(p, r.texts) for p, r in pairs) / len(references)


class TokenF1(TextMetric):
    """SQuAD's F1 over tokens (Rajpurkar et al. 2016, 2018)."""

    def score(self, predictions: list[str], references: list[Reference]) -> float:
        pairs = zip(predictions, references, strict=True)
        return 100 * sum(token_f1(p, r.texts) for p, r in pairs) / len(references)


def _by_position(references: list[Reference]) -> Any:
    """The layout of sacrebleu, one list for each position of a reference; texts may differ in how many they have."""
    most = max(len(r.texts) for r in references)
    return [[r.texts[i] if i < len(r.texts) else None for r in references] for i in range(most)]


TEXT_METRICS: dict[str, Any] = {
    "bleu": Bleu,
    "chrf": ChrF,
    "rouge1": lambda: Rouge("rouge1"),
    "rouge2": lambda: Rouge("rouge2"),
    "rougeL": lambda: Rouge("rougeL"),
    "gleu": Gleu,
    "exact_match": ExactMatch,
    "token_f1": TokenF1,
}

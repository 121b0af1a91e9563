"""Exact match and F1 of extracted answers, by the rules of SQuAD 2.0's official scorer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is an answer. No answers, or none but empty ones: 1 for the empty prediction."""
    return max(float(normalize(prediction) == normalize(answer)) for answer in _right(answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 between the bags of tokens of the prediction and of an answer."""
    return max(_f1(normalize(prediction).split(), normalize(answer).split()) for answer in _right(answers))


def _right(answers: Sequence[str]) -> list[str]:
    return [answer for answer in answers if normalize(answer)] or [""]


def _f1(prediction: list[str], answer: list[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    common = (Counter(prediction) & Counter(answer)).total()
    return 2 * common / (len(prediction) + len(answer))

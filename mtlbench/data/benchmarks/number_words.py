"""Sentences with spelled-out numbers, made with num2words. No download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from num2words import num2words

LANGUAGES = ("en", "de", "fr", "es")
MAGNITUDES = {"below hundred": (2, 100), "hundreds": (100, 1000), "thousands": (1000, 10000)}
# One line a sentence, in each language with the same meaning; no form that depends on the number.
SENTENCES = {
    "en": (
        "There are {} books on the table.",
        "We saw {} birds today.",
        "The town has {} inhabitants.",
        "She wrote {} letters last year.",
        "The ticket costs {} euros.",
        "He sold {} apples this week.",
    ),
    "de": (
        "Auf dem Tisch liegen {} Bücher.",
        "Wir haben heute {} Vögel gesehen.",
        "Die Stadt hat {} Einwohner.",
        "Sie hat letztes Jahr {} Briefe geschrieben.",
        "Die Karte kostet {} Euro.",
        "Er hat diese Woche {} Äpfel verkauft.",
    ),
    "fr": (
        "Il y a {} livres sur la table.",
        "Nous avons vu {} oiseaux aujourd'hui.",
        "La ville compte {} habitants.",
        "Elle a écrit {} lettres l'an dernier.",
        "Le billet coûte {} euros.",
        "Il a vendu {} pommes cette semaine.",
    ),
    "es": (
        "El número de libros en la mesa es {}.",
        "El número de pájaros que vimos hoy es {}.",
        "El número de habitantes del pueblo es {}.",
        "El número de cartas que escribió el año pasado es {}.",
        "El precio del billete en euros es {}.",
        "El número de manzanas que vendió esta semana es {}.",
    ),
}


def number_words(
    *, languages: Sequence[str], train: int, val: int, test: int, seed: int, data_dir: str | None = None
) -> dict[str, pd.DataFrame]:
    """Makes sentences about a number from 2 to 9,999, with what they mean and their translations.

    The numbers are divided first, 60/20/20 within each magnitude and parity, with a fixed seed of their own: no number
    stands in two splits, whatever is drawn from them. Then magnitude, number, sentence and language are drawn, each
    uniformly.

    Args:
        languages: of the texts, among en, de, fr and es.
        train: the number of training sentences.
        val: the number of validation sentences.
        test: the number of test sentences.
        seed: of the sentences; the data do not depend on the run's seed.
        data_dir: not used; the numbers are spelled by a library.

    Returns:
        split -> table with the columns
        text: the sentence;
        language: its language;
        number: its number;
        parity: of the number, "even" or "odd";
        magnitude: "below hundred", "hundreds" or "thousands";
        en, de, fr, es: the sentence in each language.

    Raises:
        ValueError: a language is unknown.
    """
    unknown = sorted(set(languages) - set(LANGUAGES))
    if unknown or not languages:
        raise ValueError(f"number_words has the languages {', '.join(LANGUAGES)}; got {list(languages)}.")
    pools = _pools()
    generator = np.random.default_rng(seed)
    frames = {}
    for split, size in (("train", train), ("val", val), ("test", test)):
        magnitudes = [list(MAGNITUDES)[i] for i in generator.integers(len(MAGNITUDES), size=size)]
        numbers = [int(generator.choice(pools[split, magnitude])) for magnitude in magnitudes]
        kinds = generator.integers(len(SENTENCES["en"]), size=size)
        chosen = [languages[i] for i in generator.integers(len(languages), size=size)]
        texts = {
            language: [
                SENTENCES[language][kind].format(num2words(number, lang=language))
                for number, kind in zip(numbers, kinds, strict=True)
            ]
            for language in LANGUAGES
        }
        frames[split] = pd.DataFrame(
            {
                "text": [texts[language][row] for row, language in enumerate(chosen)],
                "language": chosen,
                "number": numbers,
                "parity": ["odd" if number % 2 else "even" for number in numbers],
                "magnitude": magnitudes,
                **texts,
            }
        )
    return frames


def _pools() -> dict[tuple[str, str], np.ndarray]:
    """(split, magnitude) -> its numbers."""
    generator = np.random.default_rng(0)
    pools: dict[tuple[str, str], list[np.ndarray]] = {}
    for magnitude, (start, stop) in MAGNITUDES.items():
        for parity in (0, 1):
            numbers = generator.permutation([n for n in range(start, stop) if n % 2 == parity])
            ends = np.rint(np.array([0.6, 0.8]) * len(numbers)).astype(int)
            for split, part in zip(("train", "val", "test"), np.split(numbers, ends), strict=True):
                pools.setdefault((split, magnitude), []).append(part)
    return {key: np.sort(np.concatenate(parts)) for key, parts in pools.items()}

"""README's section "After training" runs as it stands, on a shorter training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_readme import execute, section

SHORT = (
    "benchmark=number_words trainer.max_epochs=1 benchmark.datasets.english.load.train=200 "
    "benchmark.datasets.sentences.load.train=200 benchmark.datasets.english.load.test=50"
)


@pytest.mark.slow
def test_after_training(tmp_path: Path) -> None:
    blocks = [
        (kind, title, text.replace("benchmark=number_words", SHORT)) for kind, title, text in section("After training")
    ]
    command_line, python = execute(blocks, tmp_path)
    assert '"translation": {"text": ' in command_line
    assert "All as recorded" in command_line
    assert "BertForSequenceClassification" in command_line
    assert "torch.Size([1, 64])" in python
    assert (tmp_path / "exported" / "README.md").exists()

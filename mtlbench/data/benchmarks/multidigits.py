"""Two overlaid handwritten digits, made of the images that scikit-learn brings along. No download."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from mtlbench.data.sources import random_split


def multidigits(*, train: int, val: int, test: int, seed: int, data_dir: str | None = None) -> dict[str, pd.DataFrame]:
    """Makes pairs of digits: one at the left and top, one at the right and bottom.

    The 1,797 images are divided first, 60/20/20 within each digit, so that no image stands in two splits; then pairs
    are drawn inside each split.

    Args:
        train: the number of training pairs.
        val: the number of validation pairs.
        test: the number of test pairs.
        seed: of the division and of the pairs; the data do not depend on the run's seed.
        data_dir: not used; the images are part of scikit-learn.

    Returns:
        split -> table with the columns
        image: (28, 28) float32 in [0, 1];
        left, right: the digits;
        sum: left + right, 0 to 18;
        parity: of the sum, "even" or "odd";
        larger: which digit is larger, "left", "right" or "equal";
        left_image, right_image: which of scikit-learn's images were overlaid.

    Sabour, Frosst and Hinton 2017, arXiv:1710.09829 (MultiMNIST); laid out as by Sener and Koltun 2018,
    arXiv:1810.04650: a canvas of 36 x 36, offset by 8, the larger of overlapping pixels, resized to 28 x 28.

    Note:
        The images are scikit-learn's digits (8 x 8, Alpaydin and Kaynak 1998) enlarged bilinearly to 28 x 28, not
        MNIST. The same digit may stand at both sides.
    """
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = interpolate(images, size=(28, 28), mode="bilinear", align_corners=False)
    table = pd.DataFrame({"image": np.arange(len(images)), "digit": digits.target})
    pools = random_split(table, fractions={"train": 0.6, "val": 0.2, "test": 0.2}, by="digit", seed=seed)
    generator = np.random.default_rng(seed)
    frames = {}
    for split, number in (("train", train), ("val", val), ("test", test)):
        left, right = pools[split]["image"].to_numpy()[generator.integers(len(pools[split]), size=(2, number))]
        frames[split] = _pairs(images, digits.target, left=left, right=right)
    return frames


def _pairs(images: torch.Tensor, digit: np.ndarray, *, left: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    canvas = torch.zeros(2, len(left), 1, 36, 36)
    canvas[0, :, :, :28, :28] = images[left]
    canvas[1, :, :, 6:34, 6:34] = images[right]
    overlaid = interpolate(canvas.amax(0), size=(28, 28), mode="nearest")[:, 0]
    a, b = digit[left], digit[right]
    return pd.DataFrame(
        {
            "image": list(overlaid.numpy()),
            "left": a,
            "right": b,
            "sum": a + b,
            "parity": np.where((a + b) % 2 == 1, "odd", "even"),
            "larger": np.select([a > b, a < b], ["left", "right"], "equal"),
            "left_image": left,
            "right_image": right,
        }
    )

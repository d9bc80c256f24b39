"""Writes dynzoo/data/digits.npz from scikit-learn's copy of the digits (needs `dynzoo[tuning]`).

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
1998, doi 10.24432/C50P49, under CC BY 4.0: the 1,797 of its test set. What is kept is the grey
values, the labels, and which 360 images are the test images of `dynzoo.data.load("digits")`.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

TARGET = Path(__file__).resolve().parents[1] / "dynzoo" / "data" / "digits.npz"


def arrays() -> dict[str, np.ndarray]:
    digits = load_digits()
    count = len(digits.target)
    split = {"test_size": 360, "stratify": digits.target, "random_state": 0}
    _, test = train_test_split(np.arange(count), **split)
    return {
        "images": digits.images.astype(np.uint8),  # whole numbers from 0 to 16
        "labels": digits.target.astype(np.uint8),
        "test": np.isin(np.arange(count), test),
    }


if __name__ == "__main__":
    np.savez_compressed(TARGET, **arrays())
    print(TARGET, TARGET.stat().st_size, "bytes")

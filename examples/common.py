"""What the experiments share: where results go, tables as CSV, figures in one style."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np

from dynzoo import plots

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def write_csv(name: str, rows: list[dict]) -> Path:
    """Writes `docs/results/<name>.csv`, a row a dictionary."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")
    return path


def read_csv(name: str) -> list[dict]:
    """The rows of `docs/results/<name>.csv`; what reads as a number is one."""
    with (RESULTS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return [{k: _value(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def save_figure(name: str, figure) -> Path:
    """Writes `docs/results/<name>.png`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.png"
    path.write_bytes(plots.png(figure))
    print(f"wrote {path}")
    return path


def fit(model, train, test, epochs, batch_size, learning_rate, seed=0) -> dict:
    """Trains on the mean squared error with Adam and cosine decay; returns errors and seconds."""
    x, y = train
    steps = epochs * (len(x) // batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps)),
        loss="mse",
    )
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    model.fit(x, y, epochs=epochs, batch_size=batch_size, verbose=0)
    seconds = time.perf_counter() - start
    return {
        "parameters": model.count_params(),
        "train_mse": mse(model, *train),
        "test_mse": mse(model, *test),
        "seconds": round(seconds, 1),
    }


def error_curves(rows: list[dict], sizes: str) -> dict:
    """For `plots.error_figure`: a curve a depth, the test errors of all seeds at each size."""
    curves: dict = {}
    for row in rows:
        label = f"{row['depth']} steps" if row["depth"] > 1 else "1 step"
        curves.setdefault(label, {}).setdefault(row[sizes], []).append(row["test_mse"])
    return {label: list(points.items()) for label, points in curves.items()}


def chosen(rows: list[dict]) -> dict:
    """Test errors over the seeds of the depth and width that fit the training set best."""
    groups: dict = {}
    for row in rows:
        groups.setdefault((row["depth"], row["width"]), []).append(row)
    (depth, width), best = min(
        groups.items(), key=lambda item: np.median([row["train_mse"] for row in item[1]])
    )
    errors = [row["test_mse"] for row in best]
    return {
        "depth": depth,
        "width": width,
        "seeds": len(errors),
        "median test_mse": float(np.median(errors)),
        "least": min(errors),
        "greatest": max(errors),
    }


def mse(model, x, y) -> float:
    """Mean squared error over all entries, in float64."""
    predicted = np.asarray(model.predict(x, batch_size=1024, verbose=0), dtype=np.float64)
    return float(np.mean((predicted - np.asarray(y, dtype=np.float64)) ** 2))


def finish(result: dict) -> None:
    """Prints the outcome as one line of JSON, the last of the output."""
    print(json.dumps({"backend": keras.backend.backend(), **result}))
    sys.stdout.flush()

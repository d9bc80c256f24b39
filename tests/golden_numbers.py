"""How many held-out digits are robust, exactly, and what the tests that count them share."""

from robustness_fixtures import centroids, ridge

from dynzoo.inference.passes import predict_logits

RIDGE_LINF = {0.01: 184, 0.02: 182, 0.03: 174, 0.05: 144, 0.08: 90, 0.1: 56, 0.2: 0}
RIDGE_L2 = {0.05: 184, 0.1: 182, 0.2: 165, 0.3: 129, 0.5: 63, 0.75: 1, 1.0: 0}
CENTROIDS_L2 = {0.1: 186, 0.3: 154, 0.5: 123, 0.75: 76, 1.0: 26}
# the same of all 797 held-out digits
RIDGE_LINF_ALL = {0.01: 685, 0.02: 651, 0.03: 611, 0.05: 516, 0.08: 323, 0.1: 211, 0.2: 0}
RIDGE_L2_ALL = {0.05: 686, 0.1: 657, 0.2: 579, 0.3: 473, 0.5: 227, 0.75: 16, 1.0: 0}
CENTROIDS_L2_ALL = {0.1: 681, 0.3: 584, 0.5: 461, 0.75: 278, 1.0: 97}


def table(*rows):
    return [(make, norm, e, n) for make, norm, counts in rows for e, n in counts.items()]


GOLDEN = table(
    (ridge, "linf", RIDGE_LINF), (ridge, "l2", RIDGE_L2), (centroids, "l2", CENTROIDS_L2)
)
GOLDEN_ALL = table(
    (ridge, "linf", RIDGE_LINF_ALL),
    (ridge, "l2", RIDGE_L2_ALL),
    (centroids, "l2", CENTROIDS_L2_ALL),
)
_MODELS = {}


def made(make):
    """One model for all tests, so that it is compiled once."""
    if make not in _MODELS:
        _MODELS[make] = make()
    return _MODELS[make]


def survivors(model, attack, x, y):
    return int((predict_logits(model, attack(model, x, y)).argmax(axis=1) == y).sum())

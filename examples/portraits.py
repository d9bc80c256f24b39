"""Trajectories of each dynamical system with random weights: what its guarantee looks like.

    python examples/portraits.py

Writes `docs/results/portraits.png`: planar systems, 60 calls of one layer after another from eight
starts. Contraction brings trajectories together, symplectic and volume-preserving steps go round,
sphere-preserving ones stay on circles, a mass-preserving one on lines of constant sum.
"""

import common
import keras
import numpy as np

from dynzoo import layers as dl
from dynzoo import operators, plots

TIMES = 60


def systems():
    """Title and layer of each panel: one short step of an autonomous system."""
    dense = operators.Dense
    return {
        "gradient flow: 1-Lipschitz": dl.GradientFlow(dense(8), step_size=0.1, seed=1),
        "switching flow: 1-Lipschitz": dl.SwitchingFlow(dense(2), step_size=0.4, seed=2),
        "spherical flow: |x| kept": dl.SphericalFlow(dense(8), step_size=0.2, seed=3),
        "Presnov flow: gradient + spheres": dl.PresnovFlow(dense(8), step_size=0.05, seed=4),
        "mass preserving: x + y kept": dl.MassPreservingFlow(dense(8), step_size=0.1, seed=5),
        "first integral kept": dl.FirstIntegralFlow(dense(8), step_size=0.1, seed=6),
        "Hamiltonian: symplectic": dl.HamiltonianFlow(dense(4), step_size=0.2, seed=7),
        "volume preserving": dl.VolumePreservingFlow(dense(1), step_size=0.2, seed=9),
        "contractive Hamiltonian": dl.ContractiveHamiltonianFlow(
            dense(4), kappa=0.7, step_size=0.05, seed=9
        ),
        "convection-diffusion: one noise path": dl.ConvectionDiffusionFlow(
            dense(8), sigma=0.05, step_size=0.05, inference="random", seed=10
        ),
    }


def trajectories(layer, starts):
    """The starts and their images under 1, 2, ... calls: (times, starts, 2)."""
    layer(starts)
    rng = np.random.default_rng(0)
    for weight in layer.trainable_weights:
        if "bias" in weight.name:
            weight.assign(rng.normal(0, 0.5, weight.shape))
    path = [starts]
    for _ in range(TIMES):
        path.append(keras.ops.convert_to_numpy(layer(path[-1])))
    return np.stack(path)


def main():
    angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    radius = np.tile([1.0, 0.6], 4)
    starts = (radius * np.stack([np.cos(angle), np.sin(angle)])).T.astype("float32")
    paths = {title: trajectories(layer, starts) for title, layer in systems().items()}
    common.save_figure("portraits", plots.portrait_figure(paths, columns=5))
    common.finish({"systems": len(paths)})


if __name__ == "__main__":
    main()

"""Trajectories of each dynamical system with random weights: what its guarantee looks like.

    python examples/portraits.py

Writes `docs/results/portraits.png`, and one picture a system into `docs/systems/`: planar systems,
60 calls of one layer after another from eight starts. Contraction brings trajectories together,
symplectic and volume-preserving steps go round, sphere-preserving ones stay on circles, a
mass-preserving one on lines of constant sum; diffusion on a graph pulls its nodes to their mean.
Prints what each system promises and what was measured.
"""

import common

from dynzoo import plots
from dynzoo.gallery import portraits


def main():
    found = list(portraits())
    for p in found:
        print(f"{p.title:<38} {p.promise:<32} {p.measured}")
    paths = {p.title: p.path for p in found}
    common.save_figure("portraits", plots.portrait_figure(paths, columns=4))
    for p in found:
        picture = common.RESULTS.parent / "systems" / f"{type(p.layer).__name__}.png"
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(plots.png(plots.portrait_figure({p.title: p.path}, columns=1)))
    common.finish({"systems": len(found), "kept": sum(p.kept for p in found)})


if __name__ == "__main__":
    main()

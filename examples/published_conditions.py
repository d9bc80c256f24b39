"""Conditions and rules that were published, beside the numbers that they stand for.

    python examples/published_conditions.py [NAME ...]

A few seconds of float64 and no training. Each function below takes one rule of a paper, or of the
code that its authors published with it, and computes what the rule speaks of: a contraction factor,
a rate, the Jacobian of a step, the values after a diffusion. What they show, and how sure it is,
stands in docs/what-we-found.md.
"""

import argparse
import math

import numpy as np

from dynzoo.fields import contractive_hamiltonian as theory


def orthogonal(size, rng):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def norm(matrix):
    return float(np.linalg.norm(matrix, 2))


def gradient_step(slope=0.5, size=8, trials=2000):
    """arXiv 2210.02373: x - h A^T s(Ax + b), A orthogonal, has the factor sqrt(1 - 2ah + h^2).

    The Jacobian is I - h A^T D A with slopes D in [a, 1]; its norm over many D is measured.
    """
    rng, found = np.random.default_rng(0), {}
    for h in (0.5, 1.0, 4 / 3):
        measured = 0.0
        for _ in range(trials):
            slopes = rng.choice([slope, 1.0, rng.uniform(slope, 1)], size)
            a = orthogonal(size, rng)
            measured = max(measured, norm(np.eye(size) - h * (a.T * slopes) @ a))
        published = math.sqrt(1 - 2 * slope * h + h * h)
        found[f"h = {h:.3f}: published, measured"] = published, measured
    steps = np.linspace(0, 2, 200_001)
    published = np.sqrt(1 - 2 * slope * steps + steps**2)
    sharp = np.maximum(abs(1 - slope * steps), abs(1 - steps))
    room = [float((1 / factor - 1).max()) for factor in (published, sharp)]
    return found | {"largest expansive step: published, sharp": room}


def flexible_steps(slope=0.5):
    """The code of arXiv 2210.02373: steps in [0.11, 1.89] and [-1.9, 0.05], taken by their size.

    With A = 1 and x > 0 every slope is 1, and a pair of steps multiplies a distance by one number.
    """

    def pair(x, contract, expand):
        for _ in range(2):
            x = x - contract / 2 * np.where(x > 0, x, slope * x)
        return x + expand * np.maximum(x, 0)

    ends = np.array([1.0, 2.0])
    found = {}
    for name, second in (("0.05", 0.05), ("-1.9", -1.9)):
        for rule, value in (("as written, |h|", abs(second)), ("with its sign", second)):
            found[f"h = 0.11 and {name}, {rule}"] = float(abs(np.diff(pair(ends, 0.11, value))[0]))
    return found


def damped_euler(channels=8, layers=8, kappa=0.02, h=0.5, draws=100):
    """arXiv 2203.11805 contracts in continuous time; its MNIST script takes Euler steps of 0.5.

    Kernels, biases and damping as the script draws and sets them, features from N(0, 1).
    """
    rng = np.random.default_rng(0)
    half = channels // 2
    zero, one = np.zeros((half, half)), np.eye(half)
    turn = np.block([[zero, one], [-one, zero]])
    steps, limits, dampings, rates = [], [], [], []
    for _ in range(draws):
        kernels = rng.normal(size=(layers, channels, channels))
        c1 = kappa**2
        c2 = max(norm(k) ** 2 for k in kernels) + c1
        damping = theory.published_damping("paper_mnist", c1, c2)
        features, bias = rng.normal(size=(2, channels))
        bend = 1 - np.tanh(kernels[0].T @ features + bias) ** 2
        hessian = (kernels[0] * bend) @ kernels[0].T + c1 * np.eye(channels)
        field = (turn - damping * np.eye(channels)) @ hessian
        steps.append(norm(np.eye(channels) + h * field))
        limits.append(theory.euler_step_limit(damping, c1, c2))
        dampings.append(damping)
        rates.append(theory.contraction_rate(damping, c1, c2))
    return {
        "damping, median": float(np.median(dampings)),
        "rate in continuous time, least": float(np.min(rates)),
        "Jacobian of the first Euler step: least, median": (
            float(np.min(steps)),
            float(np.median(steps)),
        ),
        "largest step that contracts for all inputs, median": float(np.median(limits)),
    }


def boundary_damping(kappa=0.2):
    """arXiv 2203.11805, the scripts of its plane examples: the least damping, less an epsilon.

    A field contracts at the rate r if the symmetric part of F S has no eigenvalue above -r, for
    every Hessian S between c1 and c2; the worst S is a reflection in a (q, p) plane.
    """
    found = {}
    for kernel in (0.1, 1.0, 3.0):
        c1, c2 = kappa**2, kernel**2 + kappa**2
        damping = theory.published_damping("paper", c1, c2)
        field = np.array([[-damping, 1.0], [-1.0, -damping]])
        worst = -np.inf
        for angle in np.linspace(0, math.pi, 20_001):
            cosine, sine = math.cos(angle), math.sin(angle)
            axes = np.array([[cosine, -sine], [sine, cosine]])
            product = field @ (axes * [c1, c2]) @ axes.T
            worst = max(worst, float(np.linalg.eigvalsh((product + product.T) / 2)[-1]))
        found[f"|K| = {kernel:g}: largest eigenvalue, twice the damping"] = (
            worst,
            -theory.contraction_rate(2 * damping, c1, c2),
        )
    return found


def diffusion_on_a_star(step=0.35, layers=20):
    """arXiv 2403.15726: u - sigma^2 L u, by default 20 times with sigma^2 = 0.35.

    The Laplacian of the code, D - W with W = d^-1/2 (A + I) d^-1/2, on a hub with many leaves.
    """
    found = {}
    for leaves in (10, 20, 100):
        joined = np.eye(leaves + 1)
        joined[0], joined[:, 0] = 1.0, 1.0
        degrees = joined.sum(1)
        weights = joined / np.sqrt(np.outer(degrees, degrees))
        laplacian = np.diag(weights.sum(1)) - weights
        u = np.full(leaves + 1, 0.01)
        u[0] = 0.99  # what a softmax may say of a hub and of its leaves
        one = u - step * laplacian @ u
        for _ in range(layers):
            u = u - step * laplacian @ u
        limit = 1 / float((np.diag(laplacian)).max())
        found[f"{leaves} leaves: least after 1 step, largest size after {layers}, largest step"] = (
            float(one.min()),
            float(abs(u).max()),
            limit,
        )
    return found


def regression_field(size=10):
    """The code of arXiv 2210.02373, regression: diag(alpha) A^T s(Ax + b) as a gradient layer.

    The Jacobian of a gradient is symmetric: its antisymmetric part over the symmetric one.
    """
    rng = np.random.default_rng(0)
    a, alpha, on = rng.normal(size=(size, size)), rng.normal(size=size), rng.random(size) < 0.5
    found = {}
    for name, field in (
        ("diag(alpha) A^T s(Ax + b), the code", alpha[:, None] * a.T @ (on[:, None] * a)),
        ("A^T diag(alpha) s(Ax + b)", a.T @ ((alpha * on)[:, None] * a)),
    ):
        found[name] = float(np.linalg.norm(field - field.T) / np.linalg.norm(field + field.T))
    return found


def spectral_normalization(pixels=32):
    """Keras' SpectralNormalization around a convolution: how much one image grows."""
    import keras

    from dynzoo import backend

    convolution = keras.layers.Conv2D(1, 3, padding="same", use_bias=False)
    layer = keras.layers.SpectralNormalization(convolution, power_iterations=20)
    layer.build((None, pixels, pixels, 1))
    convolution.kernel.assign(np.ones(convolution.kernel.shape, "float32"))
    wave = np.sin(np.pi * np.arange(1, pixels + 1) / (pixels + 1))
    image = np.outer(wave, wave)[None, :, :, None].astype("float32")
    grown = backend.to_numpy(layer(image, training=True))
    ratio = np.linalg.norm(grown) / np.linalg.norm(image)
    return {"norm after the layer over norm before": float(ratio)}


RULES = {
    function.__name__: function
    for function in (
        gradient_step, flexible_steps, damped_euler, boundary_damping, diffusion_on_a_star,
        regression_field, spectral_normalization,
    )
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RULES))
    names = parser.parse_args().names or list(RULES)
    unknown = sorted(set(names) - set(RULES))
    if unknown:
        parser.error(f"no rule is called {', '.join(unknown)}; there are {', '.join(RULES)}")
    for name in names:
        print(f"{name}: {RULES[name].__doc__.splitlines()[0]}")
        for what, value in RULES[name]().items():
            numbers = value if isinstance(value, (tuple, list)) else (value,)
            print(f"  {what}: {', '.join(f'{number:.4g}' for number in numbers)}")


if __name__ == "__main__":
    main()

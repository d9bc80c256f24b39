r"""Operator norms of convolutions on images of one size: upper bounds in float64, any dimension.

A convolution with stride s reads and writes, along one axis of n pixels,

$$y_o = \sum_t K_t^T x_{so + dt - p}, \qquad o = 0, \dots, m - 1, \quad x_j = 0 \text{ outside},$$

with dilation d and p zeros before the image: ``Axis``. 'valid', 'same' and causal padding are
choices of p and m, and a transposed convolution is the adjoint of one of these.

**Strides go away.** Cut the axis into cells of s pixels. With $dt - p = s\tau + \rho$ and
$0 \le \rho < s$, tap t sees pixel $\rho$ of cell $o + \tau$: the same map is a convolution of
stride 1 over cells, whose channels are the pixels of a cell. The phase of the padding is in this
rearrangement, which is exact, so nothing below depends on it.

**A circular operator bounds it.** On a ring of N cells, N at least as large as the last cell that
an output reads, and so large that no output reads an image cell round the ring, the map is
$A = R\,C\,E$: E sets the image into the ring of zeros, C is the convolution on the ring, and R
keeps m of the N outputs. E and R have norm 1, so $\|A\| \le \|C\|$. The same holds on a twisted
ring, where what is read once round the ring has a factor $e^{i\theta}$: it is zero. C is block
diagonal in the basis $e^{i\omega j}$, $\omega = (2\pi f + \theta)/N$:

$$\|C\| = \max_\omega \sigma_{max}(\hat K(\omega)), \qquad
\hat K(\omega) = \sum_\tau e^{i\omega\tau} K_\tau .$$

**Small images** feel their border, where a ring does not: there the Gram matrix of the unrolled map
itself is formed, or, where that is too large, the best of a few twisted rings is taken.

Reference: Sedghi et al., ICLR 2019 (symbols); H. Ehlich, K. Zeller, "Schwankung von Polynomen
zwischen Gitterpunkten", Mathematische Zeitschrift 86 (1964) (sampling).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dynzoo.spectral.singular_values import (
    ROUNDOFF,
    gram_slack,
    largest_eigenvalue,
    proved_above,
    ritz_value,
    scaled_back,
    unit_entries_float64,
)

__all__ = [
    "Axis",
    "conv_all_sizes_norm_float64",
    "conv_norm_float64",
    "correlate",
    "correlate_adjoint",
    "padded_conv_norm_float64",
    "refuse_too_large",
]

# Complex numbers of one block of symbols: 16 MiB.
_BLOCK = 1 << 20
# Limits, in `refuse_too_large`: complex numbers of one symbol (256 MiB), and multiplications.
_LARGEST_SYMBOL = 1 << 24
_MOST_WORK = 2e12
# A longer ring is not gone through frequency by frequency, but sampled.
_LONGEST_RING = 64
# A border is felt on images of less than this many kernel widths.
_SMALL = 6
# Side of the largest unrolled Gram matrix (128 MiB), and of one that is always worth its cost.
_LARGEST_UNROLLED, _SMALL_UNROLLED = 4096, 512
# Lanczos steps of its largest eigenvalue, and what is added to it until a proof is found.
_UNROLLED_STEPS = 300
_UNROLLED_EXCESSES = (1e-9, 1e-6, 1e-4, 1e-2)
# From this side on, a Gram matrix is put together from products of taps.
_LARGE_SIDE = 16
# Nearer to a lower bound than this, a ring is tight enough on a small image.
_TIGHT = 1.02


class Axis(NamedTuple):
    """A convolution along one axis: pixels, outputs, stride, dilation, zeros before the image."""

    size: int
    outputs: int
    stride: int = 1
    dilation: int = 1
    before: int = 0


class _Ring(NamedTuple):
    """Cells round one axis, twist in units of pi, and the cells that taps see, from 0 on."""

    length: int
    twist: int
    taps: np.ndarray


def padded_conv_norm_float64(kernel, axes: Sequence[Axis], groups: int = 1) -> float:
    """Upper bound of the operator norm of a zero-padded convolution with strides and dilation.

    Tightness is measured, not proved: for kernels up to 5x5, strides up to 3, dilation up to 2 and
    any image size at most 6 % above the exact norm (1e-8 on small images of at most 512 inputs or
    outputs); 8 % on small images with more than 4096 of both (128 to 512 channels, 7x7 and 8x8).

    Args:
        kernel: array (taps of each axis..., channels_in / groups, channels_out).
        axes: one ``Axis`` for each spatial axis.
        groups: consecutive channels that are convolved among themselves.

    Returns:
        A float that is not below the true norm; 0 for an exactly zero kernel only.

    Raises:
        ValueError: if the kernel is not finite, or the computation is too large (``_MOST_WORK``
            multiplications or ``_LARGEST_SYMBOL`` entries of one symbol), before memory is taken.
    """
    refuse_too_large(np.shape(kernel), axes, groups)
    kernel, exponent = unit_entries_float64(kernel)
    kernel, axes = _live_taps(kernel, axes)
    parts = [part for part in np.split(kernel, groups, axis=-1) if np.any(part)]
    small = _is_small(kernel.shape, axes)
    rings, loss = _sampled(_rings(kernel.shape, axes))
    bounds = [_ring_bound(part, axes, rings, loss) for part in parts]
    best = 0.0
    # From the largest bound on: a part whose bound is below what is needed anyway can stay loose.
    for index in np.argsort(bounds)[::-1]:
        if bounds[index] > best:
            exact = _small_image_bound(parts[index], axes, bounds[index]) if small else math.inf
            best = max(best, min(exact, bounds[index]))
    return scaled_back(best, exponent)


def conv_norm_float64(kernel, spatial, padding: str = "zero", small_images=False) -> float:
    """Upper bound of the operator norm of a stride-1 convolution on images of one size.

    Circular padding: exact, the largest singular value of the Fourier symbols on the ``n`` grid.
    Zero padding: the zero-padded convolution on ``n`` points is a compression of the circular one
    on ``n + k - 1`` points, whose norm therefore bounds it. (The circular norm on the ``n`` grid
    itself does not.)

    Args:
        kernel: array (height, width, channels_in, channels_out).
        spatial: image size (height, width) in pixels.
        padding: ``"zero"`` or ``"circular"``.
        small_images: also look at the border of zero-padded images of a few kernel widths, where
            the norm may be well below the circular one that the constraints impose.

    Returns:
        A float that is not below the true norm.

    Raises:
        ValueError: if an argument is out of its range, or as ``padded_conv_norm_float64``.
    """
    if padding not in ("zero", "circular"):
        raise ValueError(f"`padding` must be 'zero' or 'circular'. Received: padding={padding!r}")
    shape = np.shape(kernel)
    zero = padding == "zero"
    axes = [
        Axis(int(n), int(n), before=(k - 1) // 2 if zero else 0)
        for n, k in zip(spatial, shape[:-2], strict=True)
    ]
    rings = [
        _Ring(axis.size + (k - 1 if zero else 0), 0, np.arange(k))
        for axis, k in zip(axes, shape[:-2], strict=True)
    ]
    _check_work(shape, axes, rings)
    kernel, exponent = unit_entries_float64(kernel)
    if not np.any(kernel):
        return 0.0
    bound = _ring_bound(kernel, axes, rings)
    if zero and small_images and _is_small(shape, axes):
        bound = min(bound, _small_image_bound(kernel, axes, bound))
    return scaled_back(bound, exponent)


def conv_all_sizes_norm_float64(kernel, grid: int = 64) -> float:
    r"""Upper bound of a stride-1 convolution's norm that holds for every image size.

    For fixed $v$, $p(\omega) = \|\hat K(\omega) v\|^2$ is a trigonometric polynomial of degree
    $k - 1$ in each variable. A polynomial of degree $d$ and maximum $M$ stays above
    $M \cos(d\,\delta)$ within a distance $\delta$ of its maximum (Riesz), so sampling at $N$
    points gives $\sup \|\hat K\| \le \max_{grid} \|\hat K\| / \cos((k - 1)\pi / N)$.

    Reference: H. Ehlich, K. Zeller, "Schwankung von Polynomen zwischen Gitterpunkten",
    Mathematische Zeitschrift 86 (1964).
    """
    shape = np.shape(kernel)
    for k in shape[:-2]:
        if 2 * (k - 1) >= grid:
            raise ValueError(f"`grid` must be above {2 * (k - 1)}. Received: grid={grid}")
    axes = [Axis(grid, grid)] * (len(shape) - 2)
    rings = [_Ring(grid, 0, np.arange(k)) for k in shape[:-2]]
    _check_work(shape, axes, rings)
    kernel, exponent = unit_entries_float64(kernel)
    if not np.any(kernel):
        return 0.0
    loss = math.prod(math.cos((k - 1) * math.pi / grid) for k in shape[:-2])
    return scaled_back(_ring_bound(kernel, axes, rings, loss), exponent)


def refuse_too_large(shape: Sequence[int], axes: Sequence[Axis], groups: int = 1) -> None:
    """Raises ValueError for a kernel whose norm would take too much memory or time.

    The limits are 2**24 entries for the symbol at one frequency, and 2e12 complex multiplications
    for all of them (some minutes; 512 channels with a 3x3 kernel on 56x56 pixels take 5e11).
    """
    _check_work(shape, axes, _sampled(_rings(shape, axes))[0], groups)


def _check_work(
    shape: Sequence[int], axes: Sequence[Axis], rings: Sequence[_Ring], groups: int = 1
) -> None:
    pixels = math.prod(
        len(np.unique(_offsets(k, axis)[1])) for axis, k in zip(axes, shape[:-2], strict=True)
    )
    rows, columns = pixels * shape[-2], shape[-1] // groups
    side, frequencies = min(rows, columns), math.prod(ring.length for ring in rings) / 2
    work = groups * frequencies * side * (rows * columns + side * side)
    if rows * columns > _LARGEST_SYMBOL or work > _MOST_WORK:
        size = "x".join(str(axis.size) for axis in axes)
        raise ValueError(
            f"the norm of a kernel of shape {tuple(shape)} on images of {size} pixels would take "
            f"{work:.1e} multiplications and {rows * columns} numbers a frequency; the limits are "
            f"{_MOST_WORK:.0e} and {_LARGEST_SYMBOL}."
        )


# --- the map itself --------------------------------------------------------------------------


def correlate(x: np.ndarray, kernel: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """The convolution of images (n, pixels..., channels_in): one product for each tap."""
    y = np.zeros((len(x), *(axis.outputs for axis in axes), kernel.shape[-1]))
    for tap, read, written in _tap_slices(kernel, axes):
        y[written] += x[read] @ kernel[tap]
    return y


def correlate_adjoint(y: np.ndarray, kernel: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """The adjoint of ``correlate``: a transposed convolution."""
    x = np.zeros((len(y), *(axis.size for axis in axes), kernel.shape[-2]))
    for tap, read, written in _tap_slices(kernel, axes):
        x[read] += y[written] @ kernel[tap].T
    return x


def _tap_slices(kernel: np.ndarray, axes: Sequence[Axis]) -> Iterator[tuple]:
    """Each tap that reads the image, the pixels that it reads, and the outputs that it feeds."""
    for tap in np.ndindex(*kernel.shape[:-2]):
        read, written = [slice(None)], [slice(None)]
        for t, axis in zip(tap, axes, strict=True):
            shift = t * axis.dilation - axis.before
            first = max(0, -(shift // axis.stride))
            last = min(axis.outputs, (axis.size - 1 - shift) // axis.stride + 1)
            if last <= first:
                break
            start = first * axis.stride + shift
            read.append(slice(start, start + (last - first - 1) * axis.stride + 1, axis.stride))
            written.append(slice(first, last))
        else:
            yield tap, tuple(read), tuple(written)


def _live_taps(kernel: np.ndarray, axes: Sequence[Axis]) -> tuple[np.ndarray, list[Axis]]:
    """Without the first and last taps that read no pixel of a small image; other such are 0."""
    live = np.zeros(kernel.shape[:-2], dtype=bool)
    for tap, _, _ in _tap_slices(kernel, axes):
        live[tap] = True
    kernel, trimmed = kernel * live[..., None, None], []
    for position, axis in enumerate(axes):
        used = np.flatnonzero(live.any(axis=tuple(i for i in range(live.ndim) if i != position)))
        first, last = (used[0], used[-1]) if len(used) else (0, 0)
        kernel = kernel.take(np.arange(first, last + 1), axis=position)
        trimmed.append(axis._replace(before=axis.before - int(first) * axis.dilation))
    return kernel, trimmed


# --- rings ---------------------------------------------------------------------------------


def _offsets(taps: int, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Cell and pixel in the cell that each tap sees, counted from the output's own cell."""
    return np.divmod(np.arange(taps) * axis.dilation - axis.before, axis.stride)


def _is_small(shape: Sequence[int], axes: Sequence[Axis]) -> bool:
    return any(
        k > 1 and axis.size < _SMALL * ((k - 1) * axis.dilation + 1)
        for k, axis in zip(shape[:-2], axes, strict=True)
    )


def _shortest_ring(taps: int, axis: Axis) -> int:
    """Cells of the shortest ring on which nothing is read round the ring that is not zero."""
    cells = _offsets(taps, axis)[0]
    image = -(-axis.size // axis.stride)
    first, last = int(cells[0]), int(cells[-1])
    return max(image - min(first, 0), axis.outputs + max(last, 0), 1)


def _rings(shape: Sequence[int], axes: Sequence[Axis]) -> list[_Ring]:
    rings = []
    for k, axis in zip(shape[:-2], axes, strict=True):
        cells = _offsets(k, axis)[0]
        image = -(-axis.size // axis.stride)
        spread = int(cells[-1] - cells[0])
        inside = cells[0] >= 0 and axis.outputs + cells[-1] <= image
        length = max(_shortest_ring(k, axis), image if inside else image + spread)
        rings.append(_ring(length, 0, cells))
    return rings


def _ring(length: int, twist: int, cells: np.ndarray) -> _Ring:
    """A shift of all taps changes no singular value, nor does a ring for taps in one cell."""
    taps = np.unique(cells) - cells[0]
    return _Ring(length, twist, taps) if len(taps) > 1 else _Ring(1, 0, taps)


def _sampled(rings: Sequence[_Ring]) -> tuple[list[_Ring], float]:
    """Fewer frequencies than a long ring has, and the share of the squared norm they may miss.

    Over all angles the unit of the taps does not matter either: dilation goes away. See
    ``conv_all_sizes_norm_float64`` for the share.
    """
    sampled, share = [], 1.0
    for ring in rings:
        unit = max(1, int(np.gcd.reduce(ring.taps)))
        degree = int(ring.taps[-1]) // unit
        grid = max(_LONGEST_RING, 16 * degree)
        if ring.length > grid:
            share *= math.cos(degree * math.pi / grid)
            ring = _Ring(grid, 0, ring.taps // unit)
        sampled.append(ring)
    return sampled, share


def _cell_kernel(kernel: np.ndarray, axes: Sequence[Axis], rings: Sequence[_Ring]) -> np.ndarray:
    """The kernel over cells: (cells, pixels of a cell * channels_in, channels_out)."""
    index_cells, index_pixels, pixels = [], [], []
    for k, axis in zip(kernel.shape[:-2], axes, strict=True):
        cell, pixel = _offsets(k, axis)
        used, place = np.unique(pixel, return_inverse=True)
        index_cells.append(np.unique(cell, return_inverse=True)[1])
        index_pixels.append(place)
        pixels.append(len(used))
    shape = [len(ring.taps) for ring in rings]
    out = np.zeros((*shape, *pixels, *kernel.shape[-2:]))
    places = np.ix_(*index_cells) + np.ix_(*index_pixels)
    out[places] = kernel
    return out.reshape(math.prod(shape), -1, kernel.shape[-1])


def _ring_bound(
    kernel: np.ndarray,
    axes: Sequence[Axis],
    rings: Sequence[_Ring],
    share: float = 1.0,
    ceiling: float = math.inf,
) -> float:
    """Upper bound of the circular operator's norm; infinity where it is not below ``ceiling``."""
    taps = _cell_kernel(kernel, axes, rings)
    if taps.shape[1] > taps.shape[2]:
        taps = np.ascontiguousarray(taps.swapaxes(1, 2))  # the Gram matrix of the shorter side
    grams = _grams_of_symbols(taps, rings)
    if taps.shape[1] >= _LARGE_SIDE:
        grams = _grams_of_products(taps, rings) or grams
    limit = max(ceiling * math.sqrt(share) - grams.rounding, 0.0) ** 2 - grams.squared_rounding
    squared = _largest_square(grams, rings, taps.shape[1:], limit)
    squared = squared * gram_slack(*taps.shape[1:]) + grams.squared_rounding
    return (math.sqrt(squared) + grams.rounding) / math.sqrt(share) * (1 + 8 * ROUNDOFF)


class _Grams(NamedTuple):
    """Gram matrices by frequency, and what rounding adds to the norm and to its square."""

    at: Callable[[tuple[np.ndarray, ...]], np.ndarray]
    rounding: float
    squared_rounding: float


def _half(rings: Sequence[_Ring]) -> list[int]:
    """Frequencies to look at: a real kernel has conjugate symbols at opposite ones."""
    *others, last = rings
    missing = 1 if last.twist and last.length % 2 == 0 else 0
    return [*(ring.length for ring in others), last.length // 2 + 1 - missing]


def _largest_square(
    grams: _Grams, rings: Sequence[_Ring], symbol: tuple[int, ...], ceiling: float
) -> float:
    """Largest eigenvalue over the frequencies of a product of rings, block by block."""
    lengths = _half(rings)
    # In random order: see `largest_eigenvalue`.
    order = np.random.default_rng(0).permutation(math.prod(lengths))
    block, largest = max(1, _BLOCK // math.prod(symbol)), 0.0
    for start in range(0, len(order), block):
        chosen = np.unravel_index(order[start : start + block], lengths)
        largest = largest_eigenvalue(grams.at(chosen), largest, ceiling)
        if largest >= ceiling:
            return math.inf
    return largest


def _grams_of_symbols(taps: np.ndarray, rings: Sequence[_Ring]) -> _Grams:
    count, rows, columns = taps.shape
    flat = taps.reshape(count, -1)
    tables = [_phases(ring, n, ring.taps) for ring, n in zip(rings, _half(rings), strict=True)]

    def at(chosen: tuple[np.ndarray, ...]) -> np.ndarray:
        phases = np.ones((len(chosen[0]), 1), dtype=complex)
        for table, frequencies in zip(tables, chosen, strict=True):
            phases = (phases[:, :, None] * table[frequencies][:, None, :]).reshape(len(phases), -1)
        symbols = _combined(phases, flat, flat).reshape(-1, rows, columns)
        return symbols @ symbols.conj().swapaxes(-1, -2)

    # Of a symbol's entries, sums of `count` products with rounded phases, in the Frobenius norm.
    rounding = ROUNDOFF * (count + 20) * math.sqrt(count) * float(np.linalg.norm(taps))
    return _Grams(at, rounding, 0.0)


def _grams_of_products(taps: np.ndarray, rings: Sequence[_Ring]) -> _Grams | None:
    r"""The same matrices as trigonometric polynomials, where that takes fewer multiplications.

    $\hat K \hat K^* = \sum_\delta e^{i\omega\delta} C_\delta$ with
    $C_\delta = \sum_{\tau - \tau' = \delta} K_\tau K_{\tau'}^T = C_{-\delta}^T$.
    """
    count, side, inner = taps.shape
    cells = list(itertools.product(*(ring.taps.tolist() for ring in rings)))
    zero = (0,) * len(rings)
    pairs: dict[tuple[int, ...], list[tuple[int, int]]] = {zero: []}
    for (i, first), (j, second) in itertools.product(enumerate(cells), repeat=2):
        difference = tuple(a - b for a, b in zip(first, second, strict=True))
        if difference >= zero:
            pairs.setdefault(difference, []).append((i, j))
    if len(pairs) > inner or len(pairs) * side**2 > _LARGEST_SYMBOL // 2:
        return None
    even, odd = np.empty((2, len(pairs), side, side))
    for index, meeting in enumerate(pairs.values()):
        product = np.sum([taps[i] @ taps[j].T for i, j in meeting], axis=0)
        # At difference 0 the sum has its transpose in it.
        even[index] = product + product.T if index else product
        odd[index] = product - product.T
    even, odd = even.reshape(len(pairs), -1), odd.reshape(len(pairs), -1)
    tables = [
        _phases(ring, n, np.array(differences))
        for ring, n, differences in zip(rings, _half(rings), zip(*pairs, strict=True), strict=True)
    ]

    def at(chosen: tuple[np.ndarray, ...]) -> np.ndarray:
        phases = math.prod(table[f] for table, f in zip(tables, chosen, strict=True))
        return _combined(phases, even, odd).reshape(-1, side, side)

    # sum |C_delta| <= (sum |K_tau|)^2 <= count |K|^2 in the Frobenius norm
    size = count * float(np.linalg.norm(taps)) ** 2
    return _Grams(at, 0.0, ROUNDOFF * 2 * (2 * len(pairs) + inner + count + 40) * size)


def _combined(phases: np.ndarray, even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """The sums of even * cos + i * odd * sin over the taps, for each frequency."""
    out = np.empty((len(phases), even.shape[1]), dtype=complex)
    out.real = phases.real @ even
    out.imag = phases.imag @ odd
    return out


def _phases(ring: _Ring, frequencies: int, cells: np.ndarray) -> np.ndarray:
    """exp(i omega tau) for each frequency and cell; the angle is reduced before it is rounded."""
    turns = np.outer(2 * np.arange(frequencies) + ring.twist, cells) % (2 * ring.length)
    return np.exp(1j * np.pi * turns / ring.length)


# --- small images --------------------------------------------------------------------------


def _small_image_bound(kernel: np.ndarray, axes: Sequence[Axis], bound: float) -> float:
    """At most ``bound``, which is returned where a lower bound shows that it is tight enough."""
    inputs = kernel.shape[-2] * math.prod(axis.size for axis in axes)
    outputs = kernel.shape[-1] * math.prod(axis.outputs for axis in axes)
    side = min(inputs, outputs)
    if side > _SMALL_UNROLLED:
        needed = _TIGHT * _lower_bound(kernel, axes)
        if bound <= needed:
            return bound
        if side > _LARGEST_UNROLLED:
            return _twisted_bound(kernel, axes, bound, needed)
    return min(bound, _unrolled_norm(kernel, axes, inputs < outputs))


def _lower_bound(kernel: np.ndarray, axes: Sequence[Axis]) -> float:
    """A Ritz value of the map; it decides how much work is done, and no bound relies on it."""
    shape = (1, *(axis.size for axis in axes), kernel.shape[-2])

    def gram(vector: np.ndarray) -> np.ndarray:
        y = correlate(vector.reshape(shape), kernel, axes)
        return correlate_adjoint(y, kernel, axes).ravel()

    return math.sqrt(max(ritz_value(gram, math.prod(shape), most=30), 0.0))


def _twisted_bound(kernel: np.ndarray, axes: Sequence[Axis], bound: float, needed: float) -> float:
    """The least norm over a few lengths and twists of the rings: each is an upper bound."""
    for longer, *twists in itertools.product(range(4), *[(1, 0)] * len(axes)):
        rings = [
            _ring(_shortest_ring(k, axis) + longer, twist, _offsets(k, axis)[0])
            for k, axis, twist in zip(kernel.shape[:-2], axes, twists, strict=True)
        ]
        bound = min(bound, _ring_bound(kernel, axes, *_sampled(rings), bound))
        if bound <= needed:
            break
    return bound


def _unrolled_norm(kernel: np.ndarray, axes: Sequence[Axis], of_inputs: bool) -> float:
    """Upper bound, tight to 1e-8, of the norm of the unrolled map through its smaller Gram."""
    gram = _unrolled_gram(kernel, axes, of_inputs)
    side = len(gram)
    # Each entry of the Gram is a sum of at most `inner` products.
    slack = gram_slack(side, math.prod(kernel.shape[:-2]) * max(kernel.shape[-2:]))
    if side <= _SMALL_UNROLLED:
        return math.sqrt(max(float(np.linalg.eigvalsh(gram)[-1]), 0.0) * slack)
    squared = ritz_value(gram.__matmul__, side, most=_UNROLLED_STEPS)
    del gram  # it costs little to form and much to keep

    def fresh() -> np.ndarray:
        return _unrolled_gram(kernel, axes, of_inputs)

    proved = proved_above(squared, fresh, _UNROLLED_EXCESSES)
    return math.inf if proved is None else math.sqrt(proved * slack)


def _unrolled_gram(kernel: np.ndarray, axes: Sequence[Axis], of_inputs: bool) -> np.ndarray:
    """Gram matrix of the unrolled map over its input pixels, or over its outputs."""
    taps = kernel.shape[:-2]
    matrices = kernel.reshape(-1, *kernel.shape[-2:])
    if not of_inputs:
        matrices = matrices.swapaxes(1, 2)
    sizes = [axis.size if of_inputs else axis.outputs for axis in axes]
    pixels, channels = math.prod(sizes), matrices.shape[1]
    gram = np.zeros((pixels, channels, pixels, channels))
    meetings = [_meetings(k, axis, of_inputs) for k, axis in zip(taps, axes, strict=True)]
    for first, second in itertools.product(np.ndindex(*taps), repeat=2):
        ends = [meet[i, j] for meet, i, j in zip(meetings, first, second, strict=True)]
        if any(len(a) == 0 for a, _ in ends):
            continue
        left, right = (
            np.ravel_multi_index(np.ix_(*[end[side] for end in ends]), sizes).ravel()
            for side in (0, 1)
        )
        i, j = (int(np.ravel_multi_index(tap, taps)) for tap in (first, second))
        # One pair of taps meets at most once at each pair of pixels, so += adds each of them.
        gram[left, :, right, :] += matrices[i] @ matrices[j].T
    return gram.reshape(pixels * channels, pixels * channels)


def _meetings(
    taps: int, axis: Axis, of_inputs: bool
) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """For each pair of taps: the inputs they read for one output, or the outputs of one input."""
    outputs = np.arange(axis.outputs)
    pairs = {}
    for i, j in itertools.product(range(taps), repeat=2):
        a = outputs * axis.stride + i * axis.dilation - axis.before
        if of_inputs:
            b = a + (j - i) * axis.dilation
            seen = (a >= 0) & (a < axis.size) & (b >= 0) & (b < axis.size)
            pairs[i, j] = a[seen], b[seen]
            continue
        move, rest = divmod((i - j) * axis.dilation, axis.stride)
        seen = (a >= 0) & (a < axis.size) & (outputs + move >= 0)
        seen &= (outputs + move < axis.outputs) & (rest == 0)
        pairs[i, j] = outputs[seen], outputs[seen] + move
    return pairs

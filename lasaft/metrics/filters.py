"""Distortion filters: least-squares filters from the references to each estimate."""

from __future__ import annotations

import numpy as np
from scipy.linalg import get_lapack_funcs

from lasaft.metrics.signals import Array
from lasaft.metrics.toeplitz import dense_toeplitz, factor_toeplitz

EPSILON = float(np.finfo(np.float64).eps)  # museval adds it to the diagonal
# Pivots below this part of their diagonal entry are rounding noise: the real 16-bit excerpt goes
# down to 1e-11, exact copies of a channel to 1e-16.
DEPENDENT = 1e-13


def projection_filters(lags: Array, cross: Array) -> Array:
    """Return the filters that bring the references closest to each estimate.

    The normal equations say, for each reference a and each lag k: the sum over references b and
    taps l of lags[a, b, k - l] filter[b, l] is cross[a, k].

    Args:
        lags: [A, A, taps] correlations among the references: lags[a, b, k] is the sum over n of
            s_a(n) s_b(n + k); for negative lags, lags[b, a, -k].
        cross: [A, E, taps] correlations of the references with the estimates.

    Returns:
        [E, A, taps] float64; all NaN if a reference holds NaN or infinity.
    """
    count, estimates, taps = cross.shape
    if not np.isfinite(lags).all():
        return np.full((estimates, count, taps), np.nan)
    first_row = lags.transpose(2, 1, 0).copy()
    first_row[0] += EPSILON * np.eye(count)
    try:
        factor = factor_toeplitz(first_row)
    except np.linalg.LinAlgError:
        return _independent_filters(first_row, cross)
    if np.any(factor.pivots**2 < DEPENDENT * np.diagonal(first_row[0])):
        del factor
        return _independent_filters(first_row, cross)
    solution = factor.solve(cross.transpose(2, 0, 1).reshape(taps * count, estimates))
    return solution.reshape(taps, count, estimates).transpose(2, 1, 0)


def _independent_filters(first_row: Array, cross: Array) -> Array:
    """Solve with the delayed references that do not depend on others; other taps are zero.

    The projections, and so the scores, do not depend on which of the solutions is taken.
    """
    count, estimates, taps = cross.shape
    right = cross.transpose(0, 2, 1).reshape(count * taps, estimates)
    scale = np.repeat(1 / np.sqrt(np.diagonal(first_row[0])), taps)
    matrix = dense_toeplitz(first_row)
    matrix *= scale
    matrix *= scale[:, None]
    potrs, pstrf = get_lapack_funcs(("potrs", "pstrf"), dtype=np.float64)
    # The lower triangle by rows is LAPACK's upper triangle by columns.
    factor, pivots, rank, _ = pstrf(matrix.T, lower=0, tol=DEPENDENT, overwrite_a=1)
    kept = pivots[:rank] - 1
    part, info = potrs(
        np.asfortranarray(factor[:rank, :rank]), right[kept] * scale[kept, None], lower=0
    )
    assert info == 0
    solution = np.zeros_like(right)
    solution[kept] = part * scale[kept, None]
    return solution.reshape(count, taps, estimates).transpose(2, 0, 1)

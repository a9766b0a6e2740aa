"""The compiled loops of variational matrix factorization: posteriors of one side's rows, ordered categories."""

from __future__ import annotations

from math import erfc

import numpy as np
from numba import njit

ENOUGH = 1e-5  # change of a row that ends its rounds


@njit(cache=True)
def _precision(squares, factors, prior, noise, matrix):  # type: ignore[no-untyped-def]
    """Fill (d, d) with the posterior precision of one row from its sums over ratings (see :func:`_collect`)."""
    last = len(factors) - 1
    place = 0
    for i in range(last):
        for k in range(i + 1):
            matrix[i, k] = matrix[k, i] = squares[place] / noise
            place += 1
        matrix[last, i] = matrix[i, last] = factors[i] / noise
    matrix[last, last] = factors[last] / noise
    for i in range(last + 1):
        matrix[i, i] += prior[i]


@njit(cache=True)
def _collect(items, other, moment, precision, squares, factors):  # type: ignore[no-untyped-def]
    """Weighted sums over one row's ratings, x = (factors, bias) of the other side.

    squares : packed sum of w E[x x']; factors : (d,) sum of w E[factors], and of w in the last position.
    """
    d = other.shape[1]
    squares[:], factors[:] = 0.0, 0.0
    for item in items:
        weight = precision[item, 0]
        for p in range(len(squares)):
            squares[p] += weight * moment[item, p]
        for k in range(d - 1):
            factors[k] += weight * other[item, k]
        factors[d - 1] += weight


@njit(cache=True)
def _aim(items, values, centre, other, precision, squares, target):  # type: ignore[no-untyped-def]
    """Fill target with (d,) sums of w E[(r - mu - bias) (factors, 1)]; returns that of w E[(r - mu - bias)^2]."""
    d = other.shape[1]
    base = d * (d - 1) // 2
    target[:] = 0.0
    total = 0.0
    for e in range(len(items)):
        item, value = items[e], values[e] - centre
        weight = precision[item, 0]
        for k in range(d - 1):
            target[k] += weight * value * other[item, k]
        target[d - 1] += weight * (value - other[item, d - 1])
        total += weight * (value * (value - 2 * other[item, d - 1]))
    for k in range(d - 1):
        target[k] -= squares[base + k]
    return total + squares[base + d - 1]


@njit(cache=True)
def _expected(own, other):  # type: ignore[no-untyped-def]
    """theta . beta + b_u + b_m of one pair's means."""
    last = len(own) - 1
    total = own[last] + other[last]
    for k in range(last):
        total += own[k] * other[k]
    return total


@njit(cache=True)
def _between(low, high):  # type: ignore[no-untyped-def]
    """Of a standard normal: its chance to lie between two bounds, and its densities there divided by that."""
    left, right = (-high, -low) if low > 0 else (low, high)  # in the left tail no digits are lost
    chance = max(0.5 * (erfc(-right / np.sqrt(2.0)) - erfc(-left / np.sqrt(2.0))), 1e-300)
    scale = 1 / (np.sqrt(2 * np.pi) * chance)
    return chance, scale * np.exp(-low * low / 2), scale * np.exp(-high * high / 2)


@njit(cache=True)
def _latents(items, levels, edges, own, other, precision, noise, latent):  # type: ignore[no-untyped-def]
    """Fill latent (n,) with the means of truncated normals; returns the sum of w times their variances."""
    total = 0.0
    for e in range(len(items)):
        item, level = items[e], int(levels[e])
        mean, deviation = _expected(own, other[item]), np.sqrt(noise / precision[item, 0])
        low, high = (edges[level] - mean) / deviation, (edges[level + 1] - mean) / deviation
        _, at_low, at_high = _between(low, high)
        shift = at_low - at_high
        latent[e] = mean + deviation * shift
        total += noise * (1 + low * at_low - high * at_high - shift * shift)
    return total


@njit(cache=True)
def cut_sums(rows, edges, own, other, noise):  # type: ignore[no-untyped-def]
    """Sum of the log probabilities of levels at the means, its gradient and Hessian in the inner edges."""
    (indptr, items, levels), (mean, _, precision), (others, _, weights) = rows, own, other
    last = len(edges) - 1
    value, slope, bend = 0.0, np.zeros(last + 1), np.zeros((last + 1, last + 1))
    for row in range(len(indptr) - 1):
        for e in range(indptr[row], indptr[row + 1]):
            item, low = items[e], int(levels[e])
            centre, weight = _expected(mean[row], others[item]), precision[row, 0] * weights[item, 0] / noise
            root = np.sqrt(weight)
            left, right = (edges[low] - centre) * root, (edges[low + 1] - centre) * root
            chance, at_left, at_right = _between(left, right)
            value += np.log(chance)
            slope[low] -= root * at_left
            slope[low + 1] += root * at_right
            bend[low, low] += weight * (left * at_left - at_left**2)
            bend[low + 1, low + 1] -= weight * (right * at_right + at_right**2)
            bend[low, low + 1] += weight * at_left * at_right
            bend[low + 1, low] += weight * at_left * at_right
    return value, slope[1:last].copy(), bend[1:last, 1:last].copy()


@njit(cache=True)
def update_rows(rows, centre, edges, prior, noise, own, other, settings, memory):  # type: ignore[no-untyped-def]
    """New posteriors of all rows of one side; the arrays of ``own`` are overwritten. ``prior``: (d,) precisions.

    ``edges`` make values positions among levels, ``shape`` > 0 updates relative precisions. A memory of sums is mixed
    with those of the batch: a row with c times its usual share of ratings moves by ``1 - (1 - step)^c``, one that is
    seen for the first time takes what it gets.

    Returns, w being the relative precision of a rating: the sums of w E[(r - prediction)^2], of w (r - E[prediction]),
    of w, and (ordinal) of w var(prediction); the number of ratings (in the first batches without items not yet seen);
    the sum of the log determinants of the covariances of rated rows.
    """
    (indptr, every_item, every_value), (shape, rounds, step, batches) = rows, settings
    (means, moments, precisions), (other_mean, other_moment, weights), (counts, remembered) = own, other, memory
    d = other_mean.shape[1]
    size = d * (d + 1) // 2
    sums, matrix = np.empty(size + 2 * d + 1), np.empty((d, d))
    squares, factors, target = sums[:size], sums[size : size + d], sums[size + d : size + 2 * d]
    latent = np.empty(np.diff(indptr).max() if len(edges) > 0 and len(indptr) > 1 else 0)
    covariance = np.linalg.inv(np.eye(d))  # of the layout that inv returns
    totals = np.zeros(6)
    for row in range(len(indptr) - 1):
        part = slice(indptr[row], indptr[row + 1])
        items, values, count = every_item[part], every_value[part], counts[row]
        n, seen = len(items), len(remembered) == 0 or remembered[row, size + d - 1] != 0
        if n == 0 and count > 0 and not seen:
            continue  # no batch so far had it: it stays where the ascent began
        _collect(items, other_mean, other_moment, weights, squares, factors)
        within = squared = 0.0
        for turn in range(rounds):
            row_noise = noise / precisions[row, 0]
            if len(edges) > 0:
                within = _latents(items, values, edges, means[row], other_mean, weights, row_noise, latent)
                sums[-1] = _aim(items, latent, centre, other_mean, weights, squares, target)
            elif turn == 0:
                sums[-1] = _aim(items, values, centre, other_mean, weights, squares, target)
            if len(remembered) > 0:
                if n > 0:
                    move = 1 - (1 - step) ** (n / count * batches) if seen else 1.0
                    for p in range(len(sums)):
                        remembered[row, p] += move * (count / n * sums[p] - remembered[row, p])
                sums[:] = remembered[row]
            if turn == 0 or shape > 0:
                _precision(squares, factors, prior, row_noise, matrix)
                covariance = np.linalg.inv(matrix)
            mean = covariance @ target / row_noise
            change = np.abs(mean - means[row]).max()
            means[row] = mean
            place, explained = 0, 0.0
            for i in range(d):
                for k in range(i + 1):
                    second = covariance[i, k] + mean[i] * mean[k]
                    moments[row, place] = second
                    explained += (1.0 if i == k else 2.0) * second * matrix[i, k]
                    place += 1
                explained -= second * prior[i]  # the last second is that on the diagonal
            squared = sums[-1] - 2 * mean @ target + row_noise * explained
            if shape > 0:
                after = shape + count / 2
                weight = after / (shape + max(squared + within, 0.0) / (2 * noise))
                change = max(change, abs(weight - precisions[row, 0]))
                precisions[row, 0], precisions[row, 1] = weight, after / (after - 1) / weight
            if count == 0 or change < ENOUGH:
                break
        if count > 0:
            weight, left = precisions[row, 0], target[d - 1] - factors[: d - 1] @ mean[: d - 1]
            totals[0] += weight * squared
            totals[1] += weight * (left - factors[d - 1] * mean[d - 1])
            totals[2] += weight * factors[d - 1]
            totals[4] += count
            totals[5] -= np.linalg.slogdet(matrix)[1]
            if len(edges) > 0:
                error = 0.0
                for e in range(n):
                    error += weights[items[e], 0] * (latent[e] - _expected(mean, other_mean[items[e]])) ** 2
                totals[3] += weight * (squared - error)
    return totals

"""Variational MF: bound, planted truth, folding in, deviations; expected values by other means than the kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.stats import norm, truncnorm

from recsys_utils.base import InputError, RatingPredictor, Recommender, Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.models import variational_mf
from recsys_utils.models.variational_kernels import update_rows
from recsys_utils.models.variational_mf import VariationalMF, memory_estimate

NOISE = 0.5
SCALE = Scale(-20, 30)


def interactions(values: np.ndarray, seen: np.ndarray, scale: Scale = SCALE) -> Interactions:
    user, item = np.nonzero(seen)
    names = [np.array([f"{kind}{n}" for n in range(size)], object) for kind, size in zip("ui", seen.shape, strict=True)]
    rating = values[user, item].astype(np.float32)
    stamps = np.zeros(len(rating), np.int64)
    return Interactions(*names, user.astype(np.int32), item.astype(np.int32), rating, stamps, scale)


def planted(users: int = 300, items: int = 200, density: float = 0.4, seed: int = 3) -> tuple[Interactions, np.ndarray]:
    """Ratings from the model itself with three traits of decreasing size, and the items' traits (items, 3)."""
    rng = np.random.default_rng(seed)
    values, traits = expected(rng, users, items)
    values += NOISE * rng.standard_normal(values.shape)
    return interactions(values, rng.random(values.shape) < density), traits


def expected(rng: np.random.Generator, users: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    traits = rng.standard_normal((items, 3)) * [1.2, 0.9, 0.6]
    values = 3 + rng.standard_normal((users, 3)) @ traits.T
    values += 0.4 * rng.standard_normal((users, 1)) + 0.5 * rng.standard_normal(items)
    return values, traits


def halves(data: Interactions) -> tuple[Interactions, Interactions]:
    test = np.random.default_rng(1).random(len(data)) < 0.2
    return data.where(~test), data.where(test)


@pytest.fixture(scope="module")
def truth() -> tuple[Interactions, Interactions, np.ndarray, VariationalMF]:
    data, traits = planted()
    train, test = halves(data)
    return train, test, traits, VariationalMF(n_factors=8, sweeps=40, held_out=0, varied_noise=False).fit(train)


def test_the_start_is_found_in_double_precision(monkeypatch) -> None:
    """In single, fits differed by 2e-5 rating points between two processors' kernels of one BLAS, tables with them."""
    seen = []
    start = variational_mf.randomized_svd
    monkeypatch.setattr(variational_mf, "randomized_svd", lambda m, *a, **k: seen.append(m.dtype) or start(m, *a, **k))
    VariationalMF(n_factors=2, sweeps=1, held_out=0).fit(planted(30, 20)[0])
    assert seen == [np.float64]


class TestPlantedTruth:
    def test_noise_is_found(self, truth) -> None:
        # sd of an estimated standard deviation: .5 / sqrt(2 * 19,000) = .003; .02 leaves room for the approximation
        assert np.sqrt(float(truth[3].noise)) == pytest.approx(NOISE, abs=0.02)

    def test_evidence_chooses_the_number_of_traits(self, truth) -> None:
        contribution = truth[3].user_prior[:-1] * truth[3].item_prior[:-1]  # variance of theta_k beta_k
        assert (contribution > 0.01 * NOISE**2).sum() == 3
        assert contribution[:3] == pytest.approx([1.44, 0.81, 0.36], rel=0.3)  # squares of 1.2, .9, .6

    def test_traits_span_the_planted_space(self, truth) -> None:
        found = np.linalg.qr(truth[3].item_mean[:, :3])[0]
        cosines = np.linalg.svd(found.T @ np.linalg.qr(truth[2])[0], compute_uv=False)
        assert cosines.min() > 0.97

    @pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
    def test_intervals_cover_what_they_say(self, truth, level: float) -> None:
        train, test, _, model = truth
        mean, deviation = model.at(train.user_item, test.user, test.item)
        inside = np.abs(test.rating - mean) < norm.ppf(0.5 + level / 2) * deviation
        assert inside.mean() == pytest.approx(level, abs=0.025)  # three standard errors at 4,800 ratings: .022

    def test_traits_stand_in_decreasing_order_and_uncorrelated(self, truth) -> None:
        model = truth[3]
        second = variational_mf._unpacked(model.item_moment, 9)[:, :8, :8].mean(axis=0)
        assert np.diag(second) == pytest.approx(model.item_prior[:-1], rel=1e-3, abs=1e-6)
        assert (np.diff(model.item_prior[:-1]) <= 0).all()
        assert np.abs(second - np.diag(np.diag(second))).max() < 1e-4

    def test_two_seeds_agree_on_the_leading_traits(self, truth) -> None:
        other = replace(truth[3], seed=5).fit(truth[0])
        for k in range(3):
            assert abs(np.corrcoef(truth[3].item_mean[:, k], other.item_mean[:, k])[0, 1]) > 0.95


class TestBound:
    def test_never_falls_and_converges(self, truth) -> None:
        elbo = truth[3].elbo
        assert len(elbo) == 40
        assert (np.diff(elbo) > -1e-6 * np.abs(elbo[1:])).all()
        assert np.diff(elbo)[-1] < 1e-4 * np.abs(elbo[-1])

    @settings(max_examples=20, deadline=None)
    @given(
        seed=st.integers(0, 2**20), varied_noise=st.booleans(),
        likelihood=st.sampled_from(["gaussian", "ordinal"]),
    )  # fmt: skip
    def test_never_falls_on_any_data(self, seed: int, **options: Any) -> None:
        rng = np.random.default_rng(seed)
        shape = rng.integers(4, 25, 2)
        seen = rng.random(shape) < 0.5
        seen[:2, :2] = True
        data = interactions(rng.integers(1, 6, shape), seen, Scale(1, 5))
        elbo = VariationalMF(n_factors=4, sweeps=25, held_out=0, **options).fit(data).elbo
        assert (np.diff(elbo) > -1e-5 * np.abs(elbo[1:]) - 1e-3).all()

    def test_equals_the_log_likelihood_bound_computed_by_hand(self) -> None:
        """Without traits worth mentioning the bound after the fit is E[log p] - KL, both written out here."""
        data, _ = planted(12, 9, 0.9)
        model = VariationalMF(n_factors=1, sweeps=400, held_out=0, varied_noise=False, seed=2)
        model.fit(data)
        users, items = model.fold_in(data.user_item), model._items
        mean, variance = model._at(users, items, data.user, data.item)
        noise = float(model.noise)
        bound = norm.logpdf(data.rating, mean, np.sqrt(noise)).sum() - ((variance - noise) / (2 * noise)).sum()
        for side, prior in ((users, model.user_prior), (items, model.item_prior)):
            second = variational_mf._unpacked(side.moment, 2)
            spread = second - side.mean[:, :, None] * side.mean[:, None, :]
            kl = np.trace(second / prior[:, None], axis1=1, axis2=2) - 2 + np.log(prior).sum()
            bound -= 0.5 * (kl - np.linalg.slogdet(spread)[1]).sum()
        assert model.elbo[-1] == pytest.approx(bound, abs=0.01)

    def test_the_number_of_sweeps_is_the_best_of_the_trial(self) -> None:
        data, _ = planted(60, 40)
        model = VariationalMF(n_factors=4, sweeps=15, seed=1).fit(data)
        assert len(model.elbo) == int(np.argmax(model.path)) + 1


class TestProfiles:
    def test_obeys_the_contract(self, truth) -> None:
        model = truth[3]
        assert isinstance(model, Recommender)
        assert isinstance(model, RatingPredictor)
        scores = model.scores(truth[0].user_item[:7])
        assert scores.shape == (7, 200)
        assert scores.dtype == np.float32

    def test_with_certain_items_folding_in_is_ridge_regression(self, truth) -> None:
        model = truth[3]
        row, column = np.tril_indices(9)
        certain = replace(model)
        vars(certain).update(vars(model) | {"item_moment": (model.item_mean[:, row] * model.item_mean[:, column])})
        profile = truth[0].user_item[4]
        design = np.column_stack([model.item_mean[profile.indices, :-1], np.ones(profile.nnz)])
        target = profile.data - float(model.mean) - model.item_mean[profile.indices, -1]
        gram = design.T @ design + np.diag(float(model.noise) / model.user_prior)
        assert certain.fold_in(profile).mean[0] == pytest.approx(np.linalg.solve(gram, design.T @ target), rel=1e-6)

    def test_an_empty_profile_gets_the_prior(self, truth) -> None:
        model = truth[3]
        empty = csr_matrix((1, 200), dtype=np.float32)
        assert model.scores(empty)[0] == pytest.approx(float(model.mean) + model.item_mean[:, -1], abs=1e-5)
        assert model.deviation(empty).min() > model.deviation(truth[0].user_item[:1]).min()

    def test_deviation_is_the_formula_with_every_term(self, truth) -> None:
        model, profile = truth[3], truth[0].user_item[2]
        user = model.fold_in(profile)

        def parts(mean: np.ndarray, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return mean, variational_mf._unpacked(moment[None], 9)[0] - np.outer(mean, mean)

        t, v = parts(user.mean[0], user.moment[0])
        for item in (0, 57, 199):
            b, w = parts(model.item_mean[item], model.item_moment[item])
            z, x = np.append(b[:8], 1), np.append(t[:8], 1)  # what multiplies (theta, b_u) and (beta, b_m)
            variance = z @ v @ z + x @ w @ x + (v[:8, :8] * w[:8, :8]).sum() + float(model.noise)
            assert model.deviation(profile)[0, item] == pytest.approx(np.sqrt(variance), rel=1e-4)
            mean, deviation = model.at(profile, np.array([0]), np.array([item]))
            assert mean[0] == pytest.approx(float(model.mean) + t[:8] @ b[:8] + t[8] + b[8])
            assert deviation[0] == pytest.approx(np.sqrt(variance), rel=1e-4)

    def test_doubling_the_scale_doubles_the_predictions(self) -> None:
        data, _ = planted(60, 40)
        twice = replace(data, rating=data.rating * 2, scale=Scale(-40, 60))
        model = VariationalMF(n_factors=4, sweeps=8, held_out=0)
        one, two = (replace(model).fit(d) for d in (data, twice))
        assert two.scores(twice.user_item) == pytest.approx(2 * one.scores(data.user_item), rel=1e-3, abs=1e-3)
        assert two.deviation(twice.user_item) == pytest.approx(2 * one.deviation(data.user_item), rel=1e-3, abs=1e-3)

    def test_state_round_trip_and_repetition_give_the_same_bits(self, truth) -> None:
        again = replace(truth[3]).fit(truth[0])
        revived = VariationalMF.from_state(truth[3].state())
        for model in (again, revived):
            assert (model.scores(truth[0].user_item[:5]) == truth[3].scores(truth[0].user_item[:5])).all()
            assert (model.deviation(truth[0].user_item[:5]) == truth[3].deviation(truth[0].user_item[:5])).all()


@pytest.fixture(scope="module")
def uneven() -> tuple[Interactions, Interactions, np.ndarray, np.ndarray, VariationalMF]:
    """Train, test, the planted relative precisions of users and items, and a fit that looks for them."""
    rng = np.random.default_rng(11)
    values, _ = expected(rng, 300, 200)
    a, g = rng.gamma(4, 1 / 4, 300), rng.gamma(6, 1 / 6, 200)
    values += NOISE * rng.standard_normal(values.shape) / np.sqrt(a[:, None] * g)
    train, test = halves(interactions(values, rng.random(values.shape) < 0.4))
    model = VariationalMF(n_factors=5, sweeps=40, held_out=0).fit(train)
    return train, test, a, g, model


def trained_users(model: VariationalMF, data: Interactions, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user side at the end of a fit whose traits are left as they are."""
    kept: list[Any] = []
    monkeypatch.setattr(VariationalMF, "_turn", lambda self, users, items: kept.append(users))
    model.fit(data)
    return kept[0]


class TestVariedNoise:
    def test_planted_noise_and_shapes_are_found(self, uneven) -> None:
        # the mean of 300 draws of Gamma(4, 4) has sd .5 / sqrt(300) = .03, hence .015 of the noise's root
        assert np.sqrt(float(uneven[4].noise)) == pytest.approx(NOISE, abs=0.05)
        assert uneven[4].shapes == pytest.approx([4, 6], rel=0.4)

    def test_planted_precisions_are_found(self, uneven) -> None:
        train, _, a, g, model = uneven
        found = model.fold_in(train.user_item).precision[:, 0], model.item_precision[:, 0]
        # log precisions of 64 and 96 ratings: error variance 2 / n, against 1 / 4 and 1 / 6 among them
        assert np.corrcoef(np.log(found[0]), np.log(a))[0, 1] > 0.9
        assert np.corrcoef(np.log(found[1]), np.log(g))[0, 1] > 0.85

    @pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
    def test_intervals_cover_careful_and_careless_users(self, uneven, level: float) -> None:
        train, test, a, _, model = uneven
        one = replace(model, varied_noise=False).fit(train)
        careless = a[test.user] < np.quantile(a, 0.25)
        distance = []
        for fitted in (model, one):
            mean, deviation = fitted.at(train.user_item, test.user, test.item)
            inside = np.abs(test.rating - mean) < norm.ppf(0.5 + level / 2) * deviation
            distance.append(abs(inside[careless].mean() - level))
        assert distance[0] < 0.045 < distance[1]  # three standard errors at 1,200 ratings and level .5: .043

    def test_held_out_ratings_are_more_likely_and_the_error_is_no_larger(self, uneven) -> None:
        train, test, _, _, model = uneven
        density, error = [], []
        for fitted in (model, replace(model, varied_noise=False).fit(train)):
            mean, deviation = fitted.at(train.user_item, test.user, test.item)
            density.append(norm.logpdf(test.rating, mean, deviation).mean())
            error.append(np.sqrt(np.mean((test.rating - mean) ** 2)))
        assert density[0] > density[1] + 0.05
        assert error[0] < error[1]

    def test_even_noise_is_left_even(self, truth) -> None:
        model = replace(truth[3], varied_noise=True, sweeps=20).fit(truth[0])
        assert model.item_precision[:, 0] == pytest.approx(np.ones(200), abs=0.15)
        assert (model.shapes > 50).all()
        assert np.sqrt(float(model.noise)) == pytest.approx(NOISE, abs=0.02)

    def test_bound_never_falls(self, uneven) -> None:
        elbo = uneven[4].elbo
        assert (np.diff(elbo) > -1e-6 * np.abs(elbo[1:])).all()

    def test_noise_of_who_is_unknown_is_the_mean_of_the_prior(self, uneven) -> None:
        model = uneven[4]
        shape = model.shapes[0]
        assert model.fold_in(csr_matrix((1, 200), dtype=np.float32)).precision[0] == pytest.approx(
            [1, shape / (shape - 1)]  # E[1 / a] of Gamma(s, s)
        )


CUTS = np.array([1.2, 2.2, 3.4, 4.8])


@pytest.fixture(scope="module")
def categories() -> tuple[Interactions, Interactions, VariationalMF]:
    rng = np.random.default_rng(21)
    values, _ = expected(rng, 300, 200)
    latent = values + NOISE * rng.standard_normal(values.shape)
    data = interactions(1.0 + np.searchsorted(CUTS, latent), rng.random(values.shape) < 0.4, Scale(1, 5))
    train, test = halves(data)
    return train, test, VariationalMF(5, sweeps=60, held_out=0, varied_noise=False, likelihood="ordinal").fit(train)


class TestOrdinal:
    def test_cut_points_are_found_in_units_of_the_noise(self, categories) -> None:
        model = categories[2]
        # differences of cuts don't depend on where mu lies; mean field takes the noise for a little smaller than it is
        assert np.diff(model.cuts) / np.sqrt(float(model.noise)) == pytest.approx(np.diff(CUTS) / NOISE, rel=0.15)
        assert np.diff(model.cuts) / np.ptp(model.cuts) == pytest.approx(np.diff(CUTS) / np.ptp(CUTS), rel=0.05)

    def test_probabilities_are_calibrated(self, categories) -> None:
        train, test, model = categories
        chances = model.probabilities(train.user_item, test.user, test.item)
        assert chances.sum(axis=1) == pytest.approx(np.ones(len(test)))
        for level in range(5):  # in each third of the stated probabilities the share that occurs is that stated
            stated, happened = chances[:, level], test.rating == level + 1
            for third in np.array_split(np.argsort(stated), 3):
                assert happened[third].mean() == pytest.approx(stated[third].mean(), abs=0.035)
        frequency = np.bincount(test.rating.astype(int))[1:] / len(test)
        loss = -np.log(chances[np.arange(len(test)), test.rating.astype(int) - 1]).mean()
        assert loss < 0.6 * -(frequency * np.log(frequency)).sum()

    def test_errs_less_than_the_gaussian_one_where_categories_are_uneven(self, categories) -> None:
        train, test, model = categories
        errors = [
            np.sqrt(np.mean((test.rating - fitted.at(train.user_item, test.user, test.item)[0]) ** 2))
            for fitted in (model, replace(model, likelihood="gaussian").fit(train))
        ]
        assert errors[0] < errors[1]

    def test_expectation_and_deviation_are_those_of_the_probabilities(self, categories) -> None:
        train, _, model = categories
        row, item = np.repeat(np.arange(4), 200), np.tile(np.arange(200), 4)
        chances = model.probabilities(train.user_item[:4], row, item)
        mean = chances @ model.levels
        deviation = np.sqrt(np.maximum(chances @ model.levels**2 - mean**2, 0))
        assert model.at(train.user_item[:4], row, item)[0] == pytest.approx(mean)
        assert model.at(train.user_item[:4], row, item)[1] == pytest.approx(deviation, abs=1e-3)
        assert model.scores(train.user_item[:4]).ravel() == pytest.approx(mean, abs=1e-3)
        assert model.deviation(train.user_item[:4]).ravel() == pytest.approx(deviation, abs=5e-3)

    def test_the_uncertainty_of_traits_flattens_the_probabilities(self, categories) -> None:
        train, _, model = categories
        item = np.arange(200)
        known, unknown = (
            model.probabilities(profile, np.zeros(200, int), item)
            for profile in (train.user_item[:1], csr_matrix((1, 200), dtype=np.float32))
        )
        assert known.max(axis=1).mean() > unknown.max(axis=1).mean()

    def test_bound_never_falls_and_is_the_one_written_out(self) -> None:
        """log P(level | means) - variances / 2 noise - KL, everything by scipy from the state at the end."""
        data, _ = planted(12, 9, 0.9)
        data = replace(data, rating=np.clip(np.round(data.rating), 1, 5), scale=Scale(1, 5))
        model = VariationalMF(
            n_factors=1, sweeps=400, held_out=0, varied_noise=False, seed=2, likelihood="ordinal"
        ).fit(data)
        users, items = model.fold_in(data.user_item), model._items
        mean, variance = model._at(users, items, data.user, data.item)
        noise = float(model.noise)
        below = norm.cdf((np.concatenate([[-np.inf], model.cuts, [np.inf]]) - mean[:, None]) / np.sqrt(noise))
        place = np.searchsorted(model.levels, data.rating)
        chance = np.diff(below, axis=1)[np.arange(len(data)), place]
        bound = np.log(chance).sum() - ((variance - noise) / (2 * noise)).sum()
        for side, prior in ((users, model.user_prior), (items, model.item_prior)):
            second = variational_mf._unpacked(side.moment, 2)
            spread = second - side.mean[:, :, None] * side.mean[:, None, :]
            kl = np.trace(second / prior[:, None], axis1=1, axis2=2) - 2 + np.log(prior).sum()
            bound -= 0.5 * (kl - np.linalg.slogdet(spread)[1]).sum()
        assert model.elbo[-1] == pytest.approx(bound, abs=0.05)
        assert (np.diff(model.elbo) > -1e-6 * np.abs(model.elbo[1:])).all()

    @pytest.mark.parametrize("values", [np.arange(1, 11) / 2, np.arange(11.0), np.array([0.0, 1.0])])
    def test_half_stars_eleven_points_and_thumbs(self, values: np.ndarray) -> None:
        data, _ = planted(40, 30, 0.6)
        cuts = np.quantile(data.rating, np.arange(1, len(values)) / len(values))
        data = replace(data, rating=values[np.searchsorted(cuts, data.rating)].astype(np.float32), scale=Scale(0, 10))
        model = VariationalMF(n_factors=2, sweeps=15, held_out=0, likelihood="ordinal").fit(data)
        assert model.levels == pytest.approx(values)
        assert (np.diff(model.cuts) > 0).all()
        assert np.corrcoef(model.at(data.user_item, data.user, data.item)[0], data.rating)[0, 1] > 0.6

    def test_the_unit_of_the_ratings_changes_no_probability(self) -> None:
        data, _ = planted(40, 30, 0.6)
        data = replace(data, rating=np.clip(np.round(data.rating), 1, 5), scale=Scale(1, 5))
        twice = replace(data, rating=2 * data.rating, scale=Scale(2, 10))
        model = VariationalMF(n_factors=2, sweeps=10, held_out=0, likelihood="ordinal")
        one, two = (replace(model).fit(d).probabilities(d.user_item, d.user, d.item) for d in (data, twice))
        assert two == pytest.approx(one, abs=1e-3)

    def test_what_is_no_category_is_refused(self, truth) -> None:
        with pytest.raises(InputError, match="20"):
            VariationalMF(likelihood="ordinal").fit(truth[0])
        with pytest.raises(InputError, match="ordinal"):
            truth[3].probabilities(truth[0].user_item, truth[0].user, truth[0].item)


OPTIONS = [
    {"varied_noise": True}, {"varied_noise": False, "likelihood": "ordinal"}, {"likelihood": "ordinal"},
    {"batch_users": 9},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
class TestEveryOption:
    def test_repetition_and_state_round_trip_give_the_same_bits(self, options: dict[str, Any], small) -> None:
        one, two = (VariationalMF(n_factors=2, sweeps=6, held_out=0.1, **options).fit(small) for _ in range(2))
        revived = VariationalMF.from_state(one.state())
        assert (one.path == two.path).all()
        for model in (two, revived):
            assert (model.scores(small.user_item) == one.scores(small.user_item)).all()
            assert (model.deviation(small.user_item) == one.deviation(small.user_item)).all()

    def test_a_profile_folded_in_is_the_trained_row_at_convergence(
        self, options: dict[str, Any], small, monkeypatch
    ) -> None:
        model = VariationalMF(n_factors=2, sweeps=300, held_out=0, **options)
        users = trained_users(model, small, monkeypatch)
        folded = model.fold_in(small.user_item)
        tolerance = 0.02 if "batch_users" in options else 2e-3
        assert folded.mean == pytest.approx(users.mean, abs=tolerance)
        assert folded.precision == pytest.approx(users.precision, abs=tolerance)

    def test_kernel_equals_plain_numpy(self, options: dict[str, Any]) -> None:
        """One round for the users, each formula as the docstrings have it."""
        rng = np.random.default_rng(8)
        n_items, width = 4, 3
        rated = csr_matrix(np.array([[1, 0, 2, 3], [0, 2, 0, 0], [0, 0, 0, 0]], np.float32))
        other, spread = rng.normal(size=(n_items, width)), 0.1 * np.eye(width)
        full = other[:, :, None] * other[:, None] + spread
        row, column = np.tril_indices(width)
        moment, weights = full[:, row, column].astype(np.float32), rng.gamma(4, 1 / 4, n_items)
        varied, ordinal = options.get("varied_noise", True), "likelihood" in options
        noise, shape, prior = 0.7, 3.0 if varied else 0.0, np.array([1.0, 2.0, 3.0])
        edges = np.array([-1e9, 0.5, 1.5, 2.5, 1e9]) if ordinal else np.empty(0)
        centre = 0.0 if ordinal else 1.7
        own, own_moment, precision = rng.normal(size=(3, width)), np.zeros((3, 6), np.float32), np.ones((3, 2))
        before = own.copy()
        counts, none = np.diff(rated.indptr).astype(np.int64), np.empty((0, 0), np.float32)
        update_rows(
            (rated.indptr, rated.indices, rated.data), centre, edges, prior, noise, (own, own_moment, precision),
            (other, moment, np.column_stack([weights, weights])), (shape, 1, 1.0, 1), (counts, none),
        )  # fmt: skip
        for user in range(3):
            items, value = rated[user].indices, rated[user].data - centre
            w, b = weights[items], other[items, -1]
            extra = np.zeros(len(items))
            if ordinal:
                f, s = other[items, :-1] @ before[user, :-1] + b + before[user, -1], np.sqrt(noise / w)
                low, high = (edges[rated[user].data.astype(int) + up] for up in (0, 1))
                latent = truncnorm((low - f) / s, (high - f) / s, loc=f, scale=s)
                value, extra = latent.mean(), latent.var()
            squares = full[items].copy()  # of x = (traits, 1)
            squares[:, -1, :-1] = squares[:, :-1, -1] = other[items, :-1]
            squares[:, -1, -1] = 1
            cross = full[items, -1, :-1]  # E[bias traits]
            target = np.column_stack([value[:, None] * other[items, :-1] - cross, value - b])
            covariance = np.linalg.inv(np.diag(prior) + np.einsum("e,ekl->kl", w, squares) / noise)
            mean = covariance @ (w @ target) / noise
            second = covariance + np.outer(mean, mean)
            assert own[user] == pytest.approx(mean, rel=1e-5)  # moments are kept in 32 bits
            assert variational_mf._unpacked(own_moment[[user]], width)[0] == pytest.approx(second, rel=1e-5, abs=1e-6)
            error = value**2 - 2 * value * b + full[items, -1, -1] - 2 * target @ mean + extra
            error = error + np.einsum("ekl,kl->e", squares, second)
            weight = (shape + len(items) / 2) / (shape + w @ error / (2 * noise)) if varied else 1.0
            assert precision[user, 0] == pytest.approx(weight, rel=1e-5)


@pytest.fixture(scope="module")
def small() -> Interactions:
    data, _ = planted(40, 30, 0.6)
    return replace(data, rating=np.clip(np.round(data.rating), 1, 5), scale=Scale(1, 5))


class TestBatches:
    def test_one_batch_of_all_users_is_a_sweep(self, small) -> None:
        full = VariationalMF(n_factors=3, sweeps=1, held_out=0).fit(small)
        batch = replace(full, batch_users=len(small.users)).fit(small)
        assert batch.scores(small.user_item) == pytest.approx(full.scores(small.user_item), abs=1e-3)
        assert batch.elbo == pytest.approx(full.elbo, rel=1e-4)

    def test_ends_near_the_full_ascent(self, truth) -> None:
        train, test, _, full = truth
        batch = replace(full, batch_users=50, sweeps=15).fit(train)
        density = []
        for model in (full, batch):
            mean, deviation = model.at(train.user_item, test.user, test.item)
            density.append(norm.logpdf(test.rating, mean, deviation).mean())
        assert density[1] == pytest.approx(density[0], abs=0.02)
        assert np.sqrt(float(batch.noise)) == pytest.approx(NOISE, abs=0.02)

    def test_first_epoch_is_worth_more_than_the_first_sweep(self, truth) -> None:
        one, other = (replace(truth[3], batch_users=b, sweeps=1, held_out=0.1).trial(truth[0]) for b in (0, 50))
        assert other[0] > one[0]

    def test_items_without_ratings_stay_at_the_prior(self) -> None:
        data, _ = planted(30, 20)
        model = VariationalMF(n_factors=2, held_out=0, batch_users=8).fit(data.where(data.item != 3))
        assert model.item_mean[3] == pytest.approx(np.zeros(3), abs=1e-9)

    def test_categories_are_refused(self, small) -> None:
        with pytest.raises(InputError, match="batch_users"):
            VariationalMF(likelihood="ordinal", batch_users=10).fit(small)


class TestEdges:
    def test_refuses_what_does_not_fit_into_memory(self, monkeypatch) -> None:
        class Little:
            available = 1000

        monkeypatch.setattr(psutil, "virtual_memory", Little)
        with pytest.raises(InputError, match="factors"):
            VariationalMF().fit(planted(20, 20)[0])

    def test_the_estimate_counts_what_a_fit_keeps(self) -> None:
        # 10 ratings by user and by item, (4 + 4) bytes each; 5 rows of 3 means, 2 precisions (8) and 6 moments (4)
        assert memory_estimate(2, 3, 10, 2) == 10 * 2 * 8 + 5 * ((3 + 2) * 8 + 6 * 4)

    def test_unrated_items_and_users_stay_at_the_prior(self) -> None:
        data, _ = planted(30, 20)
        data = data.where((data.item != 3) & (data.user != 5))
        model = VariationalMF(n_factors=2, held_out=0).fit(data)
        assert model.item_mean[3] == pytest.approx(np.zeros(3), abs=1e-9)
        assert np.isfinite(model.scores(data.user_item)).all()

    def test_profiles_of_another_catalogue_are_refused(self, truth) -> None:
        with pytest.raises(ValueError, match="200"):
            truth[3].scores(csr_matrix((1, 7)))

    def test_one_value_for_every_rating(self) -> None:
        data = interactions(np.full((6, 5), 3.0), np.ones((6, 5), bool), Scale(1, 5))
        model = VariationalMF(held_out=0).fit(data)
        assert model.ratings(data.user_item) == pytest.approx(np.full((6, 5), 3.0), abs=1e-3)

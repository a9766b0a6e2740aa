"""V2: bound, planted truth, folding in, deviations; expectations by other means than the module's kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.stats import norm

from recsys_utils import latent_traits
from recsys_utils.interactions import Interactions
from recsys_utils.interfaces import InputError, RatingPredictor, Recommender, Scale
from recsys_utils.latent_traits import LatentTraits, Side, memory_estimate

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
    traits = rng.standard_normal((items, 3)) * [1.2, 0.9, 0.6]
    values = 3 + rng.standard_normal((users, 3)) @ traits.T
    values += 0.4 * rng.standard_normal((users, 1)) + 0.5 * rng.standard_normal(items)
    values += NOISE * rng.standard_normal(values.shape)
    return interactions(values, rng.random(values.shape) < density), traits


@pytest.fixture(scope="module")
def truth() -> tuple[Interactions, Interactions, np.ndarray, LatentTraits]:
    data, traits = planted()
    test = np.random.default_rng(1).random(len(data)) < 0.2
    train = data.where(~test)
    return train, data.where(test), traits, LatentTraits(n_factors=8, sweeps=40, held_out=0).fit(train)


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
        second = latent_traits._unpacked(model.item_moment, 9)[:, :8, :8].mean(axis=0)
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

    @settings(max_examples=12, deadline=None)
    @given(seed=st.integers(0, 2**20), learned=st.booleans(), biased=st.booleans())
    def test_never_falls_on_any_data(self, seed: int, learned: bool, biased: bool) -> None:
        rng = np.random.default_rng(seed)
        shape = rng.integers(4, 25, 2)
        seen = rng.random(shape) < 0.5
        seen[:2, :2] = True
        data = interactions(rng.integers(1, 6, shape), seen, Scale(1, 5))
        elbo = LatentTraits(n_factors=4, sweeps=25, held_out=0, learned=learned, biased=biased).fit(data).elbo
        assert (np.diff(elbo) > -1e-5 * np.abs(elbo[1:]) - 1e-3).all()

    def test_equals_the_log_likelihood_bound_computed_by_hand(self) -> None:
        """Without traits worth mentioning the bound after the fit is E[log p] - KL, both written out here."""
        data, _ = planted(12, 9, 0.9)
        model = LatentTraits(n_factors=1, sweeps=400, held_out=0, seed=2)
        model.fit(data)
        users, items = model.fold_in(data.user_item), Side(model.item_mean, model.item_moment)
        mean, variance = model._at(users, items, data.user, data.item)
        noise = float(model.noise)
        bound = norm.logpdf(data.rating, mean, np.sqrt(noise)).sum() - ((variance - noise) / (2 * noise)).sum()
        for side, prior in ((users, model.user_prior), (items, model.item_prior)):
            second = latent_traits._unpacked(side.moment, 2)
            spread = second - side.mean[:, :, None] * side.mean[:, None, :]
            kl = np.trace(second / prior[:, None], axis1=1, axis2=2) - 2 + np.log(prior).sum()
            bound -= 0.5 * (kl - np.linalg.slogdet(spread)[1]).sum()
        assert model.elbo[-1] == pytest.approx(bound, abs=0.01)

    def test_the_number_of_sweeps_is_the_best_of_the_trial(self) -> None:
        data, _ = planted(60, 40)
        model = LatentTraits(n_factors=4, sweeps=15, seed=1).fit(data)
        assert len(model.elbo) == int(np.argmax(model.likelihood)) + 1


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
            return mean, latent_traits._unpacked(moment[None], 9)[0] - np.outer(mean, mean)

        t, v = parts(user.mean[0], user.moment[0])
        for item in (0, 57, 199):
            b, w = parts(model.item_mean[item], model.item_moment[item])
            z, x = np.append(b[:8], 1), np.append(t[:8], 1)  # what multiplies (theta, b_u) and (beta, b_m)
            variance = z @ v @ z + x @ w @ x + (v[:8, :8] * w[:8, :8]).sum() + float(model.noise)
            assert model.deviation(profile)[0, item] == pytest.approx(np.sqrt(variance), rel=1e-4)
            mean, deviation = model.at(profile, np.array([0]), np.array([item]))
            assert mean[0] == pytest.approx(float(model.mean) + t[:8] @ b[:8] + t[8] + b[8])
            assert deviation[0] == pytest.approx(np.sqrt(variance), rel=1e-4)

    def test_leaving_a_rating_out_is_folding_in_without_it(self, truth) -> None:
        model, profile = truth[3], truth[0].user_item[10]
        both = truth[0].user_item[[9, 10]]
        places = np.array([0, 5, profile.nnz - 1])
        mean, deviation = model.leave_one_out(both, both.indptr[1] + places)
        for k, place in enumerate(places):
            keep = np.arange(profile.nnz) != place
            rest = csr_matrix((profile.data[keep], profile.indices[keep], [0, keep.sum()]), shape=profile.shape)
            expected = model.at(rest, np.array([0]), profile.indices[place : place + 1])
            assert (mean[k], deviation[k]) == pytest.approx((expected[0][0], expected[1][0]), rel=1e-4)

    def test_doubling_the_scale_doubles_the_predictions(self) -> None:
        data, _ = planted(60, 40)
        twice = replace(data, rating=data.rating * 2, scale=Scale(-40, 60))
        model = LatentTraits(n_factors=4, sweeps=8, held_out=0)
        one, two = (replace(model).fit(d) for d in (data, twice))
        assert two.scores(twice.user_item) == pytest.approx(2 * one.scores(data.user_item), rel=1e-3, abs=1e-3)
        assert two.deviation(twice.user_item) == pytest.approx(2 * one.deviation(data.user_item), rel=1e-3, abs=1e-3)

    def test_state_round_trip_and_repetition_give_the_same_bits(self, truth) -> None:
        again = replace(truth[3]).fit(truth[0])
        revived = LatentTraits.from_state(truth[3].state())
        for model in (again, revived):
            assert (model.scores(truth[0].user_item[:5]) == truth[3].scores(truth[0].user_item[:5])).all()
            assert (model.deviation(truth[0].user_item[:5]) == truth[3].deviation(truth[0].user_item[:5])).all()


class TestEdges:
    def test_refuses_what_does_not_fit_into_memory(self, monkeypatch) -> None:
        class Little:
            available = 1000

        monkeypatch.setattr(psutil, "virtual_memory", Little)
        with pytest.raises(InputError, match="fewer factors"):
            LatentTraits().fit(planted(20, 20)[0])

    def test_the_estimate_counts_what_a_fit_keeps(self) -> None:
        # 10 ratings by user and by item, (4 + 4) bytes each; 5 rows of 3 means (8 bytes) and 6 moments (4 bytes)
        assert memory_estimate(2, 3, 10, 2) == 10 * 2 * 8 + 5 * (3 * 8 + 6 * 4)

    def test_unrated_items_and_users_stay_at_the_prior(self) -> None:
        data, _ = planted(30, 20)
        data = data.where((data.item != 3) & (data.user != 5))
        model = LatentTraits(n_factors=2, held_out=0).fit(data)
        assert model.item_mean[3] == pytest.approx(np.zeros(3), abs=1e-9)
        assert np.isfinite(model.scores(data.user_item)).all()

    def test_profiles_of_another_catalogue_are_refused(self, truth) -> None:
        with pytest.raises(ValueError, match="the model knows 200 items"):
            truth[3].scores(csr_matrix((1, 7)))

    def test_one_value_for_every_rating(self) -> None:
        data = interactions(np.full((6, 5), 3.0), np.ones((6, 5), bool), Scale(1, 5))
        model = LatentTraits(held_out=0).fit(data)
        assert model.ratings(data.user_item) == pytest.approx(np.full((6, 5), 3.0), abs=1e-3)

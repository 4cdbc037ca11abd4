"""Randomized smoothing against a half-space, whose smoothed class, probability and radius are known."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from medrobust_jax.core import rng
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.smoothing import ABSTAIN, certify, decide, lower_bound, noisy_counts, predict
from medrobust_jax.parallel.mesh import data_mesh

SHAPE, SIGMA = (4, 4, 1), .25
WEIGHTS = np.random.default_rng(0).normal(size=16).astype(np.float32)
WEIGHTS /= np.linalg.norm(WEIGHTS)
DISTANCES = np.array([.0, .02, -.1, .2, -.35, .5, .75, -1.0] * 4)  # to the boundary, signed
IMAGES = (.5 + DISTANCES[:, None] * WEIGHTS).reshape(-1, *SHAPE).astype(np.float32)
IMAGES = IMAGES.clip(0, 1)
DISTANCES = (IMAGES.reshape(len(IMAGES), -1).astype(np.float64) - .5) @ WEIGHTS  # as clipped
KEYS = rng.example_keys(3, np.arange(len(IMAGES)))
LABELS = (DISTANCES > 0).astype(int)


def halfspace(variables, images, keys):
    score = (images.reshape(len(images), -1) - .5) @ variables
    return jnp.stack([-score, score], axis=-1)


@pytest.fixture(scope='module')
def layout():
    """Blocks of four on one device, chunks of 32."""
    return make_layout(data_mesh(jax.devices()[:1]), width=4, chunk=32)


def test_counts_have_the_probability_of_the_halfspace(layout):
    """P[f(x + n) = 1] = Phi(distance / sigma): no count is further off than chance allows."""
    counts = noisy_counts(halfspace, WEIGHTS, IMAGES, KEYS, sigma=SIGMA, layout=layout, num_samples=2000)
    np.testing.assert_array_equal(counts.sum(axis=1), 2000)
    for (_, ones), distance in zip(counts, DISTANCES, strict=True):
        assert stats.binomtest(int(ones), 2000, special.ndtr(distance / SIGMA)).pvalue > 1e-4


def test_radii_never_exceed_the_distance_and_approach_it(layout):
    found = {n: certify(halfspace, WEIGHTS, IMAGES, KEYS, sigma=SIGMA, layout=layout, num_samples=n)
             for n in (200, 20000)}
    for certificates in found.values():
        sure = certificates.predictions != ABSTAIN
        # Each fails with chance .001: of 32 images none, but for a seed in thirty.
        np.testing.assert_array_equal(certificates.predictions[sure], LABELS[sure])
        assert (certificates.radii <= np.abs(DISTANCES)).all()
        assert (certificates.radii[~sure] == 0).all()
    near = np.abs(DISTANCES) < 2 * SIGMA  # where 20000 draws resolve the probability
    assert np.abs(np.abs(DISTANCES) - found[20000].radii)[near].max() < .04 * SIGMA * 3
    gap = {n: (np.abs(DISTANCES) - certificates.radii).mean() for n, certificates in found.items()}
    assert gap[20000] < .6 * gap[200]
    largest = SIGMA * special.ndtri(.001 ** (1 / 200))
    assert found[200].radii.max() <= largest + 1e-9
    assert found[200].radii.max() == pytest.approx(largest, rel=1e-6), 'all draws agree far from the boundary'


def test_certificates_fail_as_rarely_as_stated(layout):
    """On the boundary no class has more than half: of certificates at alpha = .2 no more than a fifth is wrong."""
    images = np.full((320, *SHAPE), .5, np.float32)
    keys = rng.example_keys(11, np.arange(320))
    found = certify(halfspace, WEIGHTS, images, keys, sigma=SIGMA, layout=layout, num_samples=200, alpha=.2)
    wrong = int((found.radii > 0).sum())
    assert stats.binomtest(wrong, 320, .2, alternative='greater').pvalue > .01
    assert wrong > 20, 'the bound is not so loose either: counts are discrete, chance is .16 at 200 draws'


def test_attacks_within_the_radius_do_not_move_the_smoothed_class(layout):
    """The worst perturbation of a half-space is along its normal: the smoothed class must stay the label."""
    found = certify(halfspace, WEIGHTS, IMAGES, KEYS, sigma=SIGMA, layout=layout)
    sure = found.radii > 0
    assert sure.mean() > .7
    moved = DISTANCES - np.sign(DISTANCES) * found.radii
    np.testing.assert_array_equal((moved > 0)[sure], LABELS[sure] == 1)
    attacked = IMAGES - (np.sign(DISTANCES) * .95 * found.radii)[:, None, None, None] * WEIGHTS.reshape(SHAPE)
    inside = (attacked >= 0).all(axis=(1, 2, 3)) & (attacked <= 1).all(axis=(1, 2, 3)) & sure
    again = predict(halfspace, WEIGHTS, attacked[inside].astype(np.float32), KEYS[inside], sigma=SIGMA,
                    layout=layout, num_samples=20000)
    assert ((again == LABELS[inside]) | (again == ABSTAIN)).all()
    assert (again == LABELS[inside]).any()


def test_it_abstains_where_the_classes_are_even(layout):
    images = np.full((32, *SHAPE), .5, np.float32)
    found = certify(halfspace, WEIGHTS, images, KEYS, sigma=SIGMA, layout=layout)
    assert (found.predictions == ABSTAIN).all()
    assert (predict(halfspace, WEIGHTS, images, KEYS, sigma=SIGMA, layout=layout) == ABSTAIN).all()


def test_counts_do_not_depend_on_batch_order_width_or_draws_at_once(layout):
    shared = {'sigma': SIGMA, 'num_samples': 100}
    counts = noisy_counts(halfspace, WEIGHTS, IMAGES, KEYS, layout=layout, **shared)
    order = np.random.default_rng(0).permutation(len(IMAGES))[:11]
    part = noisy_counts(halfspace, WEIGHTS, IMAGES[order], KEYS[order], layout=layout, **shared)
    np.testing.assert_array_equal(part, counts[order])
    wide = make_layout(data_mesh(jax.devices()[:2]), width=8, chunk=32)
    for other, at_once in ((wide, 8), (layout, 1), (layout, 7)):
        np.testing.assert_array_equal(
            noisy_counts(halfspace, WEIGHTS, IMAGES, KEYS, layout=other, draws_at_once=at_once, **shared), counts)


def test_selection_and_estimation_draw_apart(layout):
    """The class is chosen without looking at the draws that count it, or the bound would not hold."""
    keys = []

    def spy(variables, images, own):
        jax.debug.callback(lambda data: keys.append(np.asarray(data)), jax.random.key_data(own))
        return halfspace(variables, images, own)

    certify(spy, WEIGHTS, IMAGES[:8], KEYS[:8], sigma=SIGMA, layout=layout, num_selection=16, num_samples=24)
    jax.effects_barrier()
    rows = np.unique(np.concatenate(keys), axis=0)
    assert len(rows) == 8 * (16 + 24), 'one key per image and draw'


def test_the_bound_is_clopper_and_pearsons():
    successes, n = np.array([0, 1, 37, 99, 100]), 100
    for alpha in (.001, .05):
        ours = lower_bound(successes, n, alpha=alpha)
        theirs = [stats.binomtest(int(k), n, alternative='greater').proportion_ci(1 - alpha, 'exact').low
                  for k in successes]
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
        some = successes[1:]
        np.testing.assert_allclose(ours[1:], stats.beta.ppf(alpha, some, n + 1 - some), rtol=1e-9)
    assert lower_bound(np.array([100]), 100, alpha=.001)[0] == pytest.approx(.001 ** .01)


def test_decisions_are_those_of_the_binomial_test():
    counts = np.array([[60, 40, 0], [5, 70, 25], [33, 34, 33], [0, 0, 0], [12, 1, 0]])
    for alpha in (.001, .05):
        expected = []
        for row in counts:
            second, first = np.sort(row)[-2:]
            sure = first > 0 and stats.binomtest(int(first), int(first + second), .5).pvalue <= alpha
            expected.append(row.argmax() if sure else ABSTAIN)
        np.testing.assert_array_equal(decide(counts, alpha=alpha), expected)
    assert list(decide(counts, alpha=.05)) == [ABSTAIN, 1, ABSTAIN, ABSTAIN, 0]


def test_outputs_that_are_not_finite_name_no_class(layout):
    def broken(variables, images, keys):
        return jnp.where(jnp.arange(2) > 0, jnp.nan, halfspace(variables, images, keys))

    counts = noisy_counts(broken, WEIGHTS, IMAGES[:4], KEYS[:4], sigma=SIGMA, layout=layout, num_samples=10)
    assert not counts.any()
    found = certify(broken, WEIGHTS, IMAGES[:4], KEYS[:4], sigma=SIGMA, layout=layout, num_samples=10)
    assert (found.predictions == ABSTAIN).all()


@pytest.mark.parametrize(('changes', 'message'), [
    ({'sigma': 0.}, 'finite sigma > 0'), ({'sigma': np.inf}, 'finite sigma > 0'),
    ({'alpha': 0.}, r'alpha in \(0, 1\)'),
    ({'num_samples': 0}, 'at least one draw'), ({'num_selection': 0}, 'at least one draw'),
    ({'draws_at_once': 0}, 'draws_at_once >= 1')])
def test_refusals(layout, changes, message):
    with pytest.raises(ValueError, match=message):
        certify(halfspace, WEIGHTS, IMAGES, KEYS, **{'sigma': SIGMA, 'layout': layout, **changes})


def test_outputs_that_are_no_logits_and_images_out_of_range_are_refused(layout):
    with pytest.raises(ValueError, match=r'needs logits \[batch, classes >= 2\], not outputs of shape \(1,\)'):
        certify(lambda w, x, k: x.sum(axis=(1, 2, 3)), WEIGHTS, IMAGES, KEYS, sigma=SIGMA, layout=layout)
    with pytest.raises(ValueError, match='image 0 holds values'):
        certify(halfspace, WEIGHTS, IMAGES + 2, KEYS, sigma=SIGMA, layout=layout)

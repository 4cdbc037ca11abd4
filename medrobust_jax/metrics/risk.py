r"""System adversarial risk: a classifier and a detector of adversarial inputs judged as one.

    R_clf(eps)  = P[f(x') != y]
    R_sys(eps)  = P[accepted(x') and f(x') != y]            a wrong answer reaches the clinic
    R_cost(eps) = R_sys(eps) + w P[x rejected, x clean]      w: the cost of a needless referral

x' is the worst of all attacks in a ball of radius eps, per example and per risk: the image that makes the
classifier wrong need not be the one that passes the detector. R_sys <= R_clf, with equality where the
detector accepts everything.

Contents: `Outcomes` (what one attack did), `outcomes`, `worst_of`, `nested_outcomes`, `risk_estimates`,
`risk_difference`.

Example:

    worst = worst_of([plain, transferred, aware])
    risks = risk_estimates(worst, rejected_clean, groups=patients)
    print(risks['risk_system'].value, risks['risk_cost_0.1'].high)
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.metrics.intervals import NO_WIDTH, Estimate, mean_of, paired_difference, proportion

REFERRAL_COSTS = (0.1, 0.5, 1.0)  # weights of a needless referral that are reported besides 0


class Outcomes(NamedTuple):
    """What an attack at one eps did to a system; `[N]` bool arrays.

    Attributes:
      wrong: the classifier named another class than the label on an image that was found.
      reached: a wrong answer was accepted by the detector: it reaches the clinic.
    """

    wrong: np.ndarray
    reached: np.ndarray


def outcomes(wrong: ArrayLike, accepted: ArrayLike) -> Outcomes:
    """The outcomes of images that were judged once: `wrong` and `accepted`, `[N]` bool each."""
    wrong, accepted = np.asarray(wrong, bool), np.asarray(accepted, bool)
    if wrong.shape != accepted.shape or wrong.ndim != 1:
        raise ValueError(f'wrong {wrong.shape} and accepted {accepted.shape} must be [N] both')
    return Outcomes(wrong, wrong & accepted)


def worst_of(attacks: Sequence[Outcomes]) -> Outcomes:
    """Per example the worst over several attacks, for each of the two risks on its own.

    Raises:
      ValueError: without an attack, or of different numbers of examples.
    """
    if not attacks or len({len(each.wrong) for each in attacks}) > 1:
        raise ValueError('worst_of needs outcomes of the same examples, from one attack at least')
    return Outcomes(*(np.any([each[part] for each in attacks], axis=0) for part in range(2)))


def nested_outcomes(by_eps: Sequence[Outcomes]) -> list[Outcomes]:
    """Outcomes at ascending eps, where what was done in a smaller ball counts in every larger one."""
    return [worst_of(by_eps[:count]) for count in range(1, len(by_eps) + 1)]


def risk_estimates(found: Outcomes, rejected_clean: ArrayLike, groups: ArrayLike | None = None, *,
                   costs: Sequence[float] = REFERRAL_COSTS) -> dict[str, Estimate]:
    """The risks with 95 % intervals, over patients where there are groups.

    Args:
      found: the outcomes at one eps.
      rejected_clean: `[N]` bool, whether the detector rejects the example unattacked.
      groups: `[N]` patient ids, or None.
      costs: weights w >= 0 of a needless referral.

    Returns:
      'risk_classifier', 'risk_system', and 'risk_cost_w' for every w.

    Raises:
      ValueError: for a negative cost, or arrays of different lengths.
    """
    rejected = np.asarray(rejected_clean, bool)
    if rejected.shape != found.reached.shape:
        raise ValueError(f'rejected_clean {rejected.shape} for {found.reached.shape} examples')
    if any(cost < 0 for cost in costs):
        raise ValueError(f'costs of a needless referral must not be negative: {tuple(costs)}')
    estimates = {'risk_classifier': proportion(found.wrong, groups),
                 'risk_system': proportion(found.reached, groups)}
    for cost in costs:
        estimate = mean_of(found.reached + cost * rejected, groups)
        if not estimate.high - estimate.low > NO_WIDTH:
            estimate = _sum_of(estimates['risk_system'], cost, proportion(rejected, groups))
        estimates[f'risk_cost_{cost:g}'] = estimate
    return estimates


def _sum_of(risk: Estimate, cost: float, rejected: Estimate) -> Estimate:
    """Risk and priced referrals with the sums of their ends, where a bootstrap would claim certainty."""
    value, low, high = (one + cost * other for one, other in zip(risk[:3], rejected[:3], strict=True))
    method = ' and '.join(dict.fromkeys(each.method.partition(' ')[0] for each in (risk, rejected)))
    return Estimate(value, low, high, risk.n, f'{method} (ends of the risk and of the referrals added)')


def risk_difference(reached_a: ArrayLike, reached_b: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """R_sys of system b minus that of a on the same examples, with its paired 95 % interval."""
    return paired_difference(reached_a, reached_b, groups)


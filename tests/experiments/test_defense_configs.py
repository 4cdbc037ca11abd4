"""Every defense's config: what it builds, and that older runs' configs are what they were."""
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.base import base_config
from configs.defenses import DEFENSES
from experiments import build
from experiments.defenses import _MAKERS
from medrobust_jax.core.types import Defense
from medrobust_jax.tasks.classification import classification
from tests.experiments import tiny_config

TASK, DURATIONS = classification(3), build.Durations(10, 100)
SHARED = {'eps': 8 / 255, 'eps_low': None, 'warmup_epochs': 0.0, 'clean_weight': 0.0, 'beta': 6.0,
          'attack_batch_norm': 'eval', 'awp_gamma': 0.0, 'awp_start_epoch': 0.0}


def built(defense, **fields):
    config = base_config(defense)
    for name, value in fields.items():
        with config.defense.ignore_type():
            config.defense[name] = value
    build.check_config(config)
    return build.build_defense(config, TASK, DURATIONS)


@pytest.mark.parametrize(('defense', 'start'), [('natural', 'ball'), ('pgd_at', 'ball'), ('trades', 'gaussian')])
def test_configs_of_older_runs_are_what_they_were(defense, start):
    """A field more, or another default, would refuse every workdir that was trained before."""
    options = {'num_steps': 10, 'norm': 'linf', 'relative_step_size': 0.25, 'start': start}
    assert base_config(defense).defense.to_dict() == {
        'name': defense, **SHARED, 'attack': {'name': 'pgd', 'options': options}}
    assert 'norm' not in base_config(defense).validation


def test_every_name_is_built(monkeypatch):
    monkeypatch.setattr(build, 'build_helper', lambda config, task: lambda images: images)
    assert set(_MAKERS) | {'natural'} == set(DEFENSES)
    for defense in DEFENSES:
        assert isinstance(built(defense), Defense)


def test_margins_start_and_end_as_configured():
    state = built('amat', delta=.3, e_max=.2).init(4, None, None)
    np.testing.assert_allclose(state['margins'], .2)
    assert state['history'].shape == (11, 21)
    state = built('mma', eps=.4).init(4, None, None)
    np.testing.assert_allclose(state['margins'], .02)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r'config\.defense\.helper is empty: name the workdir of a natural run'):
        built('hat')
    with pytest.raises(FileNotFoundError, match="no 'best' checkpoint"):
        built('hat', helper=str(tmp_path))
    with pytest.raises(ValueError, match=r"unknown attack loss .* 'shape_msk'; did you mean 'shape_mask'"):
        built('two_attacks', attack_losses=('shape_msk',))
    config = base_config('pgd_at')
    config.defense.name = 'amat'
    with pytest.raises(ValueError, match=r'lacks adversarial_share, delta.*: choose the defense after the colon'):
        build.check_config(config)
    config = base_config('pgd_at')
    config.defense.delta = 1.0
    with pytest.raises(ValueError, match=r"unknown config field 'defense\.delta'"):
        build.check_config(config)


@pytest.mark.slow
def test_hat_takes_the_net_of_a_natural_run(tmp_path):
    from experiments.train import train_and_evaluate

    for defense in ('natural', 'hat'):
        config = tiny_config.get_config(defense)
        if defense == 'hat':
            config.defense.helper = str(tmp_path / 'natural')
        result = train_and_evaluate(config, tmp_path / defense, progress=False)
        assert int(result.state.step) == 4
    helper = build.build_helper(config, classification(4))
    outputs = helper(jax.numpy.zeros((2, 16, 16, 1)))
    assert outputs.shape == (2, 4)
    assert isinstance(config, ConfigDict)

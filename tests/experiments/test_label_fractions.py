"""Shares of labels: every run once, rows that name their share, tables with one cell per share."""
import pytest
from ml_collections import ConfigDict

from experiments import label_fractions
from experiments.evaluate import is_evaluated
from medrobust_jax.report.tables import to_text


def test_configs_of_one_comparison():
    low, high = 1 / 255, 8 / 255
    ssat = label_fractions.run_config('pneumoniamnist', 'ssat', .05, 2, eps=(low, high), epochs=3.,
                                      eval_eps=[high])
    assert (ssat.data.labeled_fraction, ssat.seed, ssat.train.epochs) == (.05, 2, 3.)
    assert (ssat.train.eval_every_epochs, ssat.eval.eps) == (1., (high,))
    assert (ssat.defense.eps_low, ssat.defense.eps, ssat.validation.eps) == (low, high, high)
    at = label_fractions.run_config('pneumoniamnist', 'pgd_at', .05, 2, eps=(low, high))
    assert (at.data.labeled_fraction, at.defense.eps, at.defense.eps_low) == (.05, high, None)
    assert label_fractions.run_config('pneumoniamnist', 'rst', .05, 2, natural='x').defense.helper == 'x'
    started = label_fractions.run_config('pneumoniamnist', 'ssat', .05, 2, natural='x', from_natural=True)
    assert (started.train.init_from, started.optimizer.learning_rate) == ('x', .005)
    natural = label_fractions.run_config('pneumoniamnist', 'natural', .05, 2, natural='x', from_natural=True)
    assert (natural.train.init_from, natural.optimizer.learning_rate) == (None, .1)
    with pytest.raises(ValueError, match="need 'natural' before them"):
        label_fractions.run_all('pneumoniamnist', ['ssat'], [1.], [0], 'x', from_natural=True)
    published = label_fractions.run_config('pneumoniamnist', 'ssat', .05, 0)
    assert (published.defense.eps_low, published.defense.eps) == (.001, .003), 'the recipe says it'


@pytest.mark.slow
def test_every_combination_is_run_once(tmp_path, monkeypatch):
    def small(recipe, defense, *args, **kwargs):
        config = full(recipe, defense, *args, **kwargs)
        config.data.options = ConfigDict({'num_examples': 40})
        config.model.options = ConfigDict({'stage_sizes': (1,), 'width': 4, 'stem': 'strided'})
        config.train.update({'batch_size': 16, 'epochs': 1.0})
        config.validation.update({'num_steps': 1, 'max_examples': 8})
        config.eval.update({'max_examples': 8, 'block_width': 8, 'chunk': 16, 'eps': (8 / 255,)})
        return config

    full = label_fractions.run_config
    monkeypatch.setattr(label_fractions, 'run_config', small)
    arguments = ('oct_phantom', ('natural', 'ssat'), (.2, 1.), (0,), tmp_path)
    rows = label_fractions.run_all(*arguments)
    assert {row.defense for row in rows} == {'natural', 'ssat', 'natural, 20 % of labels', 'ssat, 20 % of labels'}
    clean, attacked = label_fractions.fraction_tables(rows, (.2, 1.))
    assert clean.columns == ['defense', '20 % labels', '100 % labels']
    assert [line[0] for line in attacked.lines] == ['natural', 'ssat']
    assert 'worst attack per image at eps 8/255' in to_text(attacked)

    config, folder = small('oct_phantom', 'natural', .2, 0), tmp_path / 'natural_20' / '0'
    assert is_evaluated(config, folder)
    for path, value in (('max_examples', 6), ('max_examples', None), ('seed', 7), ('split', 'val'), ('eps', (.5,)),
                        ('stop_when_fooled', False), ('surrogate', str(folder)),
                        ('attacks.pgd20.options.num_steps', 40), ('attacks.pgd20.num_restarts', 2)):
        other = small('oct_phantom', 'natural', .2, 0)
        other.update_from_flattened_dict({f'eval.{path}': value})
        assert not is_evaluated(other, folder), f'{path} = {value} was not asked of these rows'

    def refuse(*args, **kwargs):
        raise AssertionError('trained again')

    monkeypatch.setattr(label_fractions, 'train_and_evaluate', refuse)
    assert label_fractions.run_all(*arguments) == rows


def test_shares_are_read_from_names():
    assert label_fractions.name_and_share('ssat, 5 % of labels') == ('ssat', .05)
    assert label_fractions.name_and_share('natural') == ('natural', 1.)


def test_numbers_on_the_command_line_are_refused_in_one_line(tmp_path):
    assert label_fractions.numbers_of(['0.01', '.03'], 'eps', count=2) == [.01, .03]
    assert label_fractions.numbers_of(['0', '2'], 'seeds', kind=int) == [0, 2]
    for texts, options, message in (
            (['0.03'], {'count': 2}, r'--x=0\.03 must be 2 numbers, separated by commas'),
            (['1', '2', '3'], {'count': 2}, r'--x=1,2,3 must be 2 numbers'),
            ([], {}, '--x= must be one or more numbers'),
            (['a'], {}, '--x=a must be one or more numbers'),
            (['0.5'], {'kind': int}, r'--x=0\.5 must be one or more whole numbers')):
        with pytest.raises(ValueError, match=message):
            label_fractions.numbers_of(texts, 'x', **options)
    for fractions, options, message in (
            ([.5, 5.], {}, r'--fractions = 5\.0 must be in \(0, 1\]'),
            ([0.], {}, r'--fractions = 0\.0 must be in \(0, 1\]'),
            ([1.], {'eps': (.03, .01)}, r'--eps=0\.03,0\.01 must be low,high'),
            ([1.], {'eps': (-.03, .01)}, r'--eps = .* must be finite and >= 0'),
            ([1.], {'eval_eps': [float('nan')]}, r'--eval_eps = .* must be finite')):
        with pytest.raises(ValueError, match=message):
            label_fractions.run_all('pneumoniamnist', ['natural'], fractions, [0], tmp_path / 'never', **options)
    assert not (tmp_path / 'never').exists()

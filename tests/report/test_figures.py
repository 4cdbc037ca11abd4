"""Figures: what is drawn is what was measured, at a stated scale."""
import io

import matplotlib.colors as colors
import numpy as np
import pytest
from PIL import Image

from medrobust_jax.report.figures import Picture, curve_figure, picture_figure, to_png, to_svg
from medrobust_jax.report.summary import summarize


def picture(**changes):
    clean = np.random.default_rng(0).random((12, 16, 1)) * 0.8 + 0.1
    shift = np.where(np.arange(16) % 2, 8 / 255, -8 / 255)[None, :, None]
    fields = Picture('scan 3', clean, clean + shift, 'drusen', 'drusen', 'normal', 0.98, 0.71)
    return fields._replace(**changes)


def test_lines_hold_the_values_from_clean_to_the_largest_eps(rows):
    figure = curve_figure(summarize(rows)[0])
    titles = [axes.get_title(loc='left') for axes in figure.axes]
    assert titles == ['worst attack', 'fgsm', 'pgd']
    line = figure.axes[2].lines[0]
    assert line.get_label() == 'standard'
    np.testing.assert_allclose(line.get_xdata(), [0, 2, 8])
    expected = [row.value for row in rows if row.defense == 'standard' and row.attack in ('clean', 'pgd')]
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_bands_are_the_intervals(rows):
    band = curve_figure(summarize(rows)[0]).axes[1].collections[0]
    heights = band.get_paths()[0].vertices[:, 1]
    own = [row for row in rows if row.defense == 'standard' and row.attack in ('clean', 'fgsm')]
    assert heights.min() == pytest.approx(min(row.low for row in own))
    assert heights.max() == pytest.approx(max(row.high for row in own))


def test_systems_differ_in_color_and_marker(make_rows):
    defenses = tuple('abcdefg')
    figure = curve_figure(summarize(make_rows(attacks=('pgd',), defenses=defenses))[0])
    lines = figure.axes[0].lines
    assert len({colors.to_hex(line.get_color()) for line in lines}) == 7
    assert len({line.get_marker() for line in lines}) == 7


def test_axes_carry_units(make_rows):
    figure = curve_figure(summarize(make_rows())[0])
    assert '1/255' in figure.get_supxlabel()
    assert figure.axes[0].get_ylabel() == 'accuracy'
    assert figure.axes[0].yaxis.get_major_formatter()(0.5) == '50 %'
    l2 = make_rows(attacks=('pgd',), norm='l2')
    assert 'pixels in [0, 1]' in curve_figure(summarize(l2)[0]).get_supxlabel()


def test_a_system_without_an_attack_leaves_a_gap(make_rows, make_row):
    rows = [*make_rows(defenses=('standard',)), make_row(0.8, attack='pgd', eps=2 / 255, defense='trades')]
    figure = curve_figure(summarize(rows)[0])
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 2]


def test_clean_results_alone_are_no_curve(make_row):
    with pytest.raises(ValueError, match='no attacked results'):
        curve_figure(summarize([make_row()])[0])


def test_picture_states_scale_and_verdicts():
    clean, change, attacked = picture_figure(picture()).axes
    assert clean.get_title() == 'clean: drusen'
    assert clean.get_xlabel() == 'model: drusen\nright, confidence 98 %'
    assert attacked.get_xlabel() == 'model: normal\nwrong, confidence 71 %'
    assert '±8/255' in change.get_xlabel()
    assert '15.9 times' in change.get_xlabel()
    np.testing.assert_allclose(np.unique(change.images[0].get_array().round(6)), [0, 1])
    assert attacked.images[0].get_clim() == (0, 1), 'a picture must not be stretched'


def test_no_change_is_gray_and_said_to_be():
    change = picture_figure(picture(adversarial=picture().clean)).axes[1]
    assert change.get_xlabel() == 'no change'
    np.testing.assert_array_equal(change.images[0].get_array(), 0.5)


def test_color_pictures_without_confidence():
    clean = np.full((8, 8, 3), 0.5)
    drawn = picture_figure(picture(clean=clean, adversarial=clean + 0.01, clean_confidence=None))
    assert drawn.axes[0].images[0].get_array().shape == (8, 8, 3)
    assert drawn.axes[0].get_xlabel() == 'model: drusen\nright'


@pytest.mark.parametrize(('changes', 'message'), [
    ({'clean': np.zeros((4, 4))}, r'\[H, W, C\]'),
    ({'adversarial': np.zeros((4, 4, 1))}, r'\[H, W, C\]'),
    ({'adversarial': np.full((12, 16, 1), 1.5)}, 'adversarial image of "scan 3" leaves'),
    ({'clean': np.full((12, 16, 1), np.nan)}, 'clean image'),
])
def test_refused_pictures(changes, message):
    with pytest.raises(ValueError, match=message):
        picture_figure(picture(**changes))


def test_files_repeat_and_open(make_rows):
    panel, = summarize(make_rows(attacks=('pgd',)))
    png = to_png(curve_figure(panel))
    with Image.open(io.BytesIO(png)) as image:
        assert image.width == pytest.approx(4.8 * 150, abs=1)
    assert png == to_png(curve_figure(panel))
    svg = to_svg(curve_figure(panel))
    assert svg == to_svg(curve_figure(panel))
    assert svg.startswith(b'<?xml')

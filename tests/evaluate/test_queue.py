"""The queue: what follows what, on thresholds that are known."""
import pytest

from medrobust_jax.evaluate.queue import Item, Search, every_item, first_items, successor


def work_off(search, threshold, *, limit=None):
    """The items of one row that falls exactly from position `threshold` on, and the position found."""
    items = first_items(search, [7], [search.num_eps if limit is None else limit])
    done, item = [], items[0] if items else None
    broken = search.num_eps if limit is None else limit
    while item is not None:
        done.append(item)
        fooled = item.eps >= threshold
        broken = min(broken, item.eps) if fooled else broken
        item = successor(search, item, fooled=fooled)
    return done, broken


@pytest.mark.parametrize('order', ['ascending', 'bisection'])
@pytest.mark.parametrize('threshold', range(9))
def test_every_threshold_is_found(order, threshold):
    done, broken = work_off(Search(8, order=order), threshold)
    assert broken == threshold
    assert len(done) == len({item.eps for item in done}) <= (4 if order == 'bisection' else 8)
    assert {item.row for item in done} == {7}


def test_ascending_never_goes_beyond_what_broke():
    done, _ = work_off(Search(8), 3)
    assert [item.eps for item in done] == [0, 1, 2, 3]


def test_survivors_meet_every_restart_and_target_at_every_radius():
    search = Search(3, num_restarts=2, num_targets=3)
    done, _ = work_off(search, 3)
    assert [(item.eps, item.rank, item.restart) for item in done] == [
        (eps, rank, restart) for eps in range(3) for rank in (1, 2, 3) for restart in (0, 1)]
    done, _ = work_off(search, 0)
    assert [(item.eps, item.rank, item.restart) for item in done] == [(0, 1, 0)]


@pytest.mark.parametrize('order', ['ascending', 'bisection'])
def test_a_limit_is_not_attacked(order):
    done, broken = work_off(Search(8, order=order), 8, limit=5)
    assert max(item.eps for item in done) == 4
    assert broken == 5
    assert work_off(Search(8, order=order), 0, limit=0) == ([], 0)


def test_every_item_is_all_of_them():
    items = every_item(Search(2, 3, 2), [4, 9])
    assert len(items) == len(set(items)) == 2 * 3 * 2 * 2
    assert items[0] == Item(4, 0, 0, 1, high=2)


@pytest.mark.parametrize(('wrong', 'message'), [
    ({'num_restarts': 0}, 'num_restarts = 0'), ({'num_targets': 0}, 'num_targets = 0'),
    ({'num_eps': 0}, 'num_eps = 0'), ({'order': 'ascendin'}, "unknown order of the eps grid 'ascendin'")])
def test_what_cannot_be_searched_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Search(**{'num_eps': 2, **wrong}).check()

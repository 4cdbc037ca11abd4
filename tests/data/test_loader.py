"""Batches: every example once, a function of (seed, step), the same over any number of processes."""
import itertools

import numpy as np
import pytest

from medrobust_jax.data.few_labels import ImagesOnly
from medrobust_jax.data.loader import TrainBatches, eval_batches, steps_per_epoch, train_batches
from medrobust_jax.data.source import ArraySource, Subset

NUM = 23


@pytest.fixture
def source():
    pixels = np.zeros((NUM, 4, 4, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(NUM)  # the row is written into the image
    return ArraySource(pixels, np.where(np.arange(NUM) < 3, 0, 1 + np.arange(NUM) % 2), name='rows',
                       class_names=('rare', 'odd', 'even'), groups=[f'p{row}' for row in range(NUM)])


def take(batches, count):
    return list(itertools.islice(batches, count))


def same(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


@pytest.mark.parametrize('batch_size', [1, 4, 8, 23, 40])
def test_every_epoch_visits_every_example_once(source, batch_size):
    steps = steps_per_epoch(source, batch_size)
    assert steps == -(-NUM // batch_size)
    epochs = [take(train_batches(source, batch_size=batch_size, seed=0, start_step=epoch * steps), steps)
              for epoch in range(2)]
    orders = []
    for epoch in epochs:
        seen = np.concatenate([batch['index'][batch['mask']] for batch in epoch])
        assert sorted(seen) == list(range(NUM))
        orders.append(seen.tolist())
        for batch in epoch:
            assert batch['image'].shape == (batch_size, 4, 4, 1)
            assert {name: array.dtype.name for name, array in batch.items()} == {
                'image': 'float32', 'label': 'int32', 'mask': 'bool', 'index': 'int32'}
            rows = np.round(batch['image'][:, 0, 0, 0] * 255)
            np.testing.assert_array_equal(rows[batch['mask']], batch['index'][batch['mask']])
            assert (batch['index'][~batch['mask']] == NUM).all()
    assert orders[0] != orders[1]


def test_padding_repeats_real_images_of_the_batch(source):
    last = TrainBatches(source, batch_size=8, seed=0)[2]
    assert last['mask'].tolist() == [True] * 7 + [False]
    np.testing.assert_array_equal(last['image'][7], last['image'][0])
    assert last['label'][7] == last['label'][0]


def test_order_depends_on_seed_and_step_only(source):
    all_steps = take(train_batches(source, batch_size=8, seed=5), 9)
    same(all_steps, take(train_batches(source, batch_size=8, seed=5), 9))
    other = take(train_batches(source, batch_size=8, seed=6), 1)
    assert other[0]['index'].tolist() != all_steps[0]['index'].tolist()


@pytest.mark.parametrize('class_balanced', [False, True])
@pytest.mark.parametrize('start', [1, 4, 3 * 10**6])
def test_resuming_continues_where_it_stopped(source, class_balanced, start):
    options = {'batch_size': 8, 'seed': 1, 'class_balanced': class_balanced}
    batches = TrainBatches(source, **options)
    same([batches[start + step] for step in range(4)], take(train_batches(source, start_step=start, **options), 4))


@pytest.mark.parametrize('class_balanced', [False, True])
@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_the_global_batch(source, class_balanced, count):
    options = {'batch_size': 8, 'seed': 2, 'class_balanced': class_balanced}
    whole = take(train_batches(source, **options), 4)
    parts = [take(train_batches(source, process_index=part, process_count=count, **options), 4)
             for part in range(count)]
    for step in range(4):
        joined = {name: np.concatenate([part[step][name] for part in parts]) for name in whole[step]}
        same([joined], [whole[step]])
    if not class_balanced:
        rows = [set(part[0]['index']) for part in parts]
        assert not set.intersection(*rows)


def test_class_balanced_deals_classes_equally(source):
    batches = TrainBatches(source, batch_size=8, seed=0, class_balanced=True)
    drawn = [batches[step] for step in range(30)]
    counts = np.bincount(np.concatenate([batch['label'] for batch in drawn]))
    np.testing.assert_array_equal(counts, [80, 80, 80])
    assert all(np.ptp(np.bincount(batch['label'], minlength=3)) <= 1 for batch in drawn)
    assert all(batch['mask'].all() for batch in drawn)
    assert len(set(np.concatenate([batch['index'] for batch in drawn]))) == NUM  # all of each class
    with pytest.raises(ValueError, match=r'class_balanced .* class 0'):
        TrainBatches(Subset(source, range(3, NUM)), batch_size=4, seed=0, class_balanced=True)


@pytest.mark.parametrize('count', [1, 2])
def test_eval_batches_see_everything_once_in_order(source, count):
    parts = [list(eval_batches(source, batch_size=10, process_index=part, process_count=count))
             for part in range(count)]
    assert {len(part) for part in parts} == {3}
    joined = [{name: np.concatenate([batch[name] for batch in step]) for name in step[0]}
              for step in zip(*parts, strict=True)]
    index = np.concatenate([batch['index'] for batch in joined])
    mask = np.concatenate([batch['mask'] for batch in joined])
    assert index.tolist() == [*range(NUM), *[NUM] * 7]
    assert mask.tolist() == [True] * NUM + [False] * 7
    assert joined[2]['image'].shape == (10, 4, 4, 1)


@pytest.mark.parametrize(('count', 'batch_size'), [(NUM, 8), (5, 8), (5, 12), (1, 4)])
def test_cycled_batches_are_one_row_of_passes(source, count, batch_size):
    few = Subset(source, range(3, 3 + count) if count < NUM else range(NUM))
    batches = TrainBatches(few, batch_size=batch_size, seed=0, cycle=True)
    drawn = [batches[step] for step in range(count)]  # whole passes
    assert all(batch['mask'].all() for batch in drawn)
    index = np.concatenate([batch['index'] for batch in drawn])
    passes = index.reshape(batch_size, count)
    assert (np.sort(passes, axis=1) == np.arange(count)).all()
    if count > 1:
        assert len({tuple(row) for row in passes.tolist()}) > 1, 'every pass has an order of its own'
    first = TrainBatches(few, batch_size=batch_size, seed=0)[0]
    np.testing.assert_array_equal(first['index'][first['mask']], drawn[0]['index'][:first['mask'].sum()])


@pytest.mark.parametrize('class_balanced', [False, True])
@pytest.mark.parametrize('count', [1, 2])
def test_unlabeled_images_come_in_an_order_of_their_own(source, class_balanced, count):
    few = Subset(source, [0, 1, 3, 4, 5])
    options = {'batch_size': 8, 'seed': 2, 'class_balanced': class_balanced, 'cycle': True}
    plain = take(train_batches(few, **options), NUM)
    parts = [take(train_batches(few, unlabeled=ImagesOnly(source), process_index=part, process_count=count,
                                **options), NUM) for part in range(count)]
    whole = [{name: np.concatenate([part[step][name] for part in parts]) for name in parts[0][0]}
             for step in range(NUM)]
    unlabeled = np.concatenate([batch.pop('unlabeled') for batch in whole])
    same(whole, plain)
    passes = np.round(unlabeled[:, 0, 0, 0] * 255).astype(int).reshape(8, NUM)  # 8 passes in 23 batches of 8
    assert (np.sort(passes, axis=1) == np.arange(NUM)).all()
    assert len({tuple(row) for row in passes.tolist()}) == 8
    resumed = take(train_batches(few, unlabeled=ImagesOnly(source), start_step=20, **options), 3)
    np.testing.assert_array_equal(np.concatenate([batch['unlabeled'] for batch in resumed]), unlabeled[160:])


def test_replayed_batches_come_several_times_in_turn(source):
    options = {'batch_size': 8, 'seed': 1}
    once = take(train_batches(source, **options), 3)
    thrice = take(train_batches(source, replays=3, **options), 9)
    same(thrice, [batch for batch in once for _ in range(3)])
    same(take(train_batches(source, replays=3, start_step=4, **options), 5), thrice[4:])


def test_bad_sizes_are_refused(source):
    with pytest.raises(ValueError, match='batch_size = 0'):
        train_batches(source, batch_size=0, seed=0)
    with pytest.raises(ValueError, match='divisible by the number of processes, 3'):
        eval_batches(source, batch_size=8, process_count=3)
    with pytest.raises(ValueError, match='process_index = 2'):
        eval_batches(source, batch_size=8, process_index=2, process_count=2)
    with pytest.raises(ValueError, match='start_step'):
        train_batches(source, batch_size=8, seed=0, start_step=-1)
    with pytest.raises(ValueError, match='replays = 0 must be at least 1'):
        train_batches(source, batch_size=8, seed=0, replays=0)
    larger = ArraySource(np.zeros((2, 5, 5, 1), np.uint8), [0, 1], name='larger', class_names='ab')
    with pytest.raises(ValueError, match=r'unlabeled images \(5, 5, 1\) must be shaped as .* \(4, 4, 1\)'):
        train_batches(source, batch_size=8, seed=0, unlabeled=larger)

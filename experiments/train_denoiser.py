"""Trains a denoiser on the clean training images of a config: for config.eval.preprocess.

    python -m experiments.train_denoiser --config=configs/x.py:natural --workdir=runs/x/denoiser --sigma=0.1

Of the config, data, seed and the lengths under 'train' are read; the net is `models.dncnn`, trained by
Adam. Run the same command again after any interruption. Then put it before any model of the same images:

    python -m experiments.evaluate --config=configs/x.py:natural --workdir=runs/x/natural \
      --config.eval.preprocess="(('denoiser', {'workdir': 'runs/x/denoiser'}),)"
"""
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import build
from medrobust_jax.core import rng
from medrobust_jax.core.types import Forward
from medrobust_jax.data import loader
from medrobust_jax.data.source import Source, read_batch
from medrobust_jax.defenses.denoising import denoising, noised
from medrobust_jax.evaluate.programs import in_chunks, make_layout, make_score
from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.registry import create_model
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.train.loop import FitResult, fit
from medrobust_jax.train.optim import create_optimizer, create_schedule
from medrobust_jax.train.state import create_state

LEARNING_RATE = 1e-3  # Adam's, as the paper's; it falls to 0 along a cosine, which is ours


def train_denoiser(config: ConfigDict, workdir: str | Path, *, sigma: float,
                   options: Mapping[str, Any] | None = None, data_dir: str | None = None,
                   progress: bool | None = None) -> FitResult:
    """Trains a denoiser, keeping the checkpoint of the highest PSNR on validation images.

    Args:
      config: names the data, the seed and the length; its model, defense and optimizer are not read.
      workdir: the denoiser's own folder.
      sigma: the largest standard deviation of the noise, in units of [0, 1] pixels.
      options: of `models.dncnn.DnCNN`: depth, width, norm, ...
      data_dir: where data sets are looked for; None reads MEDROBUST_DATA.
      progress: True for a bar, False for silence, None to decide by the terminal.

    Returns:
      The last state and the best checkpoint's metadata.

    Raises:
      ValueError: for noise among the augmentations, or values out of range.
    """
    build.check_config(config)
    if 'noise' in dict(config.data.augment):
        raise ValueError("config.data.augment adds 'noise' to what the denoiser should restore: leave it out")
    mesh, options = data_mesh(), dict(options or {})
    train = build.load_split(config, config.data.train_split, data_dir)
    validation = build.load_split(config, config.data.validation_split, data_dir)
    shape = train.info.image_shape
    module = create_model('dncnn', shape[-1], **options)
    durations, defense = build.build_durations(config, train), denoising(sigma=sigma)
    optimizer = create_optimizer('adam', create_schedule('cosine', peak=LEARNING_RATE, steps=durations.total))
    forward = apply_model(module)
    state = create_state(forward, *init_variables(module, build.init_key(config.seed), shape), defense, optimizer,
                         num_train=len(train), image_shape=shape, seed=config.seed, mesh=mesh)
    whole = build.training_config(config)
    about = {name: whole[name] for name in ('seed', 'data', 'train')}
    about['denoiser'] = {'num_outputs': shape[-1], 'sigma': sigma, 'options': options}
    return fit(state, forward=forward, defense=defense, optimizer=optimizer,
               train_batches=lambda start: loader.train_batches(
                   train, batch_size=config.train.batch_size, seed=config.seed, start_step=start,
                   process_index=jax.process_index(), process_count=jax.process_count()),
               steps=durations.total, steps_per_epoch=durations.steps_per_epoch,
               evaluate_fn=validator(config, forward, validation, sigma=sigma, mesh=mesh), select_metric='psnr',
               eval_every=durations.steps(config.train.eval_every_epochs),
               checkpoint_every=durations.steps(config.train.checkpoint_every_epochs), workdir=workdir,
               config_dict=about, seed=config.seed, mesh=mesh, log_every=config.train.log_every,
               augment=build.build_augment(config, train), progress=progress)


def validator(config: ConfigDict, model: Forward, source: Source, *, sigma: float, mesh: Mesh) -> Any:
    """`(params, model_state) -> {'psnr', 'psnr_noisy'}`: of denoised and of noisy validation images, in dB.

    `-10 log10 E (u - x)^2`, over the first `config.validation.max_examples`, whose noise is always the same.
    """
    rows = np.arange(min(len(source), config.validation.max_examples or len(source)))
    images = read_batch(source, rows)['image']
    keys = rng.example_keys(config.seed, rows)
    layout = make_layout(mesh, width=config.eval.block_width, chunk=config.eval.chunk)
    noisy = np.asarray(jax.jit(partial(noised, sigma=sigma))(keys, images))

    def forward(variables: Any, images: jax.Array, keys: jax.Array) -> Any:
        return model(*variables, images, batch_norm='eval')[0]

    def psnr(found: np.ndarray) -> float:
        return float(-10 * np.log10(np.mean((found - images) ** 2)))

    score = in_chunks(make_score(forward, layout), layout)
    return lambda params, model_state: {'psnr': psnr(score((params, model_state), keys, noisy)),
                                        'psnr_noisy': psnr(noisy)}


if __name__ == '__main__':
    from absl import flags

    from experiments import main

    FLAGS = flags.FLAGS
    flags.DEFINE_float('sigma', 0.1, 'The largest standard deviation of the noise, in units of [0, 1] pixels.')
    flags.DEFINE_integer('depth', 6, 'Convolutions.')
    flags.DEFINE_integer('width', 32, 'Channels between them.')
    main.launch(lambda config, workdir: train_denoiser(
        config, workdir, sigma=FLAGS.sigma, options={'depth': FLAGS.depth, 'width': FLAGS.width},
        data_dir=FLAGS.data_dir))

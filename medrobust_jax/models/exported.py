"""A forward function in a file: exported by JAX with its weights and its gradient.

Whoever loads the file needs neither the code that defined the model nor the libraries it was written with. The
file is an npz: the serialized program (StableHLO, `jax.export`), its gradient, and what they expect. Nothing in it
is unpickled; it is a program all the same, so load files of those whom you would let run code.

JAX keeps such programs loadable for six months at least across its versions, which is for exchange, not for
archives.

Contents: `save_exported`, `load_exported`, `from_exported`.

Example:

    save_exported(lambda images: model(params, images), 'model.npz', image_shape=(28, 28, 1))
    forward = load_exported('model.npz')                  # elsewhere
    gradient = jax.grad(lambda x: task.loss(forward(x), labels).sum())(images)
"""
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from medrobust_jax.core.blocks import in_blocks
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array, Outputs

FORMAT = 'medrobust_jax forward 1'
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def save_exported(forward: Callable[[Array], Outputs], path: str | Path, *, image_shape: Sequence[int],
                  batch: int | None = None, platforms: Sequence[str] | None = None) -> None:
    """Writes a forward function, with the weights it closes over and its gradient, whole or not at all.

    Args:
      forward: `images [B, *spatial, C] float32 in [0, 1] -> outputs`; rows must not depend on each other.
      path: the file, by custom `*.npz`; its folder is made where missing. The weights are in it twice, for the
        outputs and for the gradient.
      image_shape: `(*spatial, C)`; the file takes no other.
      batch: the number of images that the program computes at once. None leaves it open, which is best where the
        model allows it: one that computes with its batch size in Python may not.
      platforms: of 'cpu', 'cuda', 'rocm', 'tpu'; None for the present one. This project's own models are exported
        with the convolutions of the present platform; they are right on the others, but not the fastest.

    Raises:
      ValueError: for a shape without channels, a batch < 1, an unknown platform, or a forward function that
        cannot be exported: it calls back into Python (as `torch_bridge.from_torch` does), or needs `batch` fixed.
    """
    shape = tuple(map(int, image_shape))
    if len(shape) < 2 or min(shape) < 1 or (batch is not None and batch < 1):
        raise ValueError(f'image_shape {shape} must be (*spatial, channels), and batch {batch} None or at least 1')
    for platform in platforms or ():
        if platform not in PLATFORMS:
            did_you_mean(platform, PLATFORMS, 'platform')
    rows = export.symbolic_shape('batch')[0] if batch is None else batch
    images = jax.ShapeDtypeStruct((rows, *shape), jnp.float32)
    try:
        exported = export.export(jax.jit(lambda images: forward(images)), platforms=platforms)(images)
        blob = exported.serialize(vjp_order=1)
    except Exception as error:
        cure = ('; or, where it computes with its batch size (len(images) instead of images.shape[0]), name one: '
                'batch=8') if batch is None else ''
        raise ValueError(f'the forward function cannot be exported for images {images.shape} ({error}): it must '
                         f'take images alone and never call back into Python, as from_torch does{cure}') from error
    about = {'format': FORMAT, 'image_shape': shape, 'batch': batch, 'platforms': list(exported.platforms),
             'jax': jax.__version__}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f'.{target.name}.{os.getpid()}.partial')
    try:
        with open(partial, 'wb') as file:
            np.savez_compressed(file, about=np.asarray(json.dumps(about)), program=np.frombuffer(blob, np.uint8))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def load_exported(path: str | Path) -> Callable[..., Outputs]:
    """The forward function of a file that `save_exported` wrote, with its gradient.

    Returns:
      `forward(images [B, *spatial, C], keys=None) -> outputs` for any B >= 1, see `from_exported`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is truncated, damaged, or of another kind. When called: for images of another shape, or
        on a platform that the file was not made for; the message names both.
    """
    try:
        with open(path, 'rb') as handle, zipfile.ZipFile(handle):
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as file:
                about, blob = json.loads(str(file['about'])), file['program'].tobytes()
        written = about['format']
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f'{path} holds no exported forward function, or is truncated or damaged: write it again '
                         f'with save_exported. What jax.export serialized itself goes through from_exported'
                         ) from error
    if written != FORMAT:
        raise ValueError(f"{path} has the format '{written}', and this version reads '{FORMAT}': write it again")
    try:
        exported = export.deserialize(bytearray(blob))
    except Exception as error:
        raise ValueError(f'{path} was written by jax {about.get("jax")} and cannot be read by {jax.__version__} '
                         f'({error}): write it again with a version nearer to this one') from error
    return from_exported(exported)


def from_exported(exported: Any) -> Callable[..., Outputs]:
    """A forward function from what `jax.export` exported or deserialized.

    Args:
      exported: a `jax.export.Exported` of one array of images `[B, *spatial, C]`, with B open (symbolic) or
        fixed; if it went through `serialize`, then with `vjp_order=1`.

    Returns:
      `forward(images, keys=None) -> outputs`; `keys` are ignored. Where B is fixed, images are computed in blocks
      of B, padded with copies of the first. Images are cast to the dtype that was exported.

    Raises:
      ValueError: for an artifact without its gradient, or of other arguments. When called: for images of another
        shape, with both.
    """
    avals = exported.in_avals
    if len(avals) != 1 or len(avals[0].shape) < 3 or not jnp.issubdtype(avals[0].dtype, jnp.floating):
        raise ValueError(f'the exported function takes {", ".join(map(str, avals)) or "nothing"}: expected one '
                         f'floating point array [batch, *spatial, channels]; close over the weights first')
    if not exported.has_vjp():
        raise ValueError('the exported artifact was serialized without its gradient, which attacks need: '
                         'use exported.serialize(vjp_order=1)')
    batch, *shape = avals[0].shape
    if not all(isinstance(size, int) for size in shape):
        raise ValueError(f'the exported function leaves image axes open {avals[0].shape}: fix all but the batch')

    def forward(images: Array, keys: Array | None = None) -> Outputs:
        del keys
        images = jnp.asarray(images)
        if images.shape[1:] != tuple(shape):
            raise ValueError(f'the exported model takes images [batch, {", ".join(map(str, shape))}], not '
                             f'{list(images.shape)}')
        images = images.astype(avals[0].dtype)
        rows = images.shape[0]
        if not isinstance(batch, int) or batch == rows:
            return exported.call(images)
        if rows > batch:
            return in_blocks(exported.call, width=batch)(images)
        padded = jnp.concatenate([images, jnp.broadcast_to(images[:1], (batch - rows, *shape))])
        return jax.tree.map(lambda leaf: leaf[:rows], exported.call(padded))

    return forward

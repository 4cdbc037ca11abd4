"""A PyTorch module as a forward function of JAX arrays, with gradients.

PyTorch stays optional: it is imported in this file alone, when `from_torch` is called. The module runs where
its weights are; images and outputs travel through the host (`jax.pure_callback`), and the gradient with
respect to the images is PyTorch's own (`jax.custom_vjp`). A gradient costs one pass forward and one backward,
as in PyTorch: the pass that gave the outputs is remembered until its gradient is asked for.

Contents: `from_torch`.

Example:

    forward = from_torch(module.eval())                   # module takes images [B, C, H, W]
    logits = forward(images)                              # JAX takes images [B, H, W, C] in [0, 1]
    gradient = jax.grad(lambda x: task.loss(forward(x), labels).sum())(images)
"""
from collections.abc import Callable
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.types import Array

PIECE_BYTES = 64 * 1024  # of an array on its way to the host, see `_on_host`


def from_torch(module: Any, *, channels_first: bool = True) -> Callable[..., Array]:
    """The module as `forward(images [B, *spatial, C], keys=None) -> outputs`.

    Works under `jit`, `grad`, `vmap`, `lax.map`, `while_loop` and `shard_map`. First derivatives in reverse mode
    with respect to the images only. The weights are the module's at the time of each call; they must not
    change during an evaluation. Calls from several devices take turns.

    The module computes in its own floating dtype, and outputs come back in float32 (float64 for float64
    images). Its passes take PyTorch's threads, see `torch.set_num_threads`.

    A module that draws at random in eval mode is not supported: its draws are PyTorch's, not the keys', and JAX
    may make one call where two with the same images are meant. `evaluate.sanity.check_randomness` finds such
    modules; write the randomness in JAX, around a deterministic module.

    Args:
      module: a `torch.nn.Module`, all parts in eval mode, that maps images `[B, C, *spatial]` in [0, 1] to one
        tensor `[B, ...]`. Normalization belongs inside it.
      channels_first: whether the module wants channels first, as is the rule in PyTorch; then outputs with
        more than two axes are taken to be `[B, C, *spatial]` too, and come back with channels last.

    Returns:
      The forward function; it ignores `keys`. At the first images of each shape, a pass over two gray ones
      checks the module.

    Raises:
      ImportError: without PyTorch.
      ValueError: if a part of the module is in training mode, now or at a later call. When called: for a module
        that fails on images of this shape, whose outputs are not one tensor with a row per image, or are
        not finite on gray images; when differentiated: for outputs that carry no gradient to the images.
      ValueError or jax.errors.JaxRuntimeError, as JAX pleases: when computed, for outputs that are not finite or a
        module that fails; the message ends in ours or PyTorch's.
    """
    host = _Host(_import_torch(), module, channels_first)
    host.check_mode()

    def outputs_of(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Array], Array]:
        @jax.custom_batching.custom_vmap
        def rows(images: Array) -> Array:
            shape, _ = host.probe(images.shape[1:])
            dtype = jnp.promote_types(images.dtype, jnp.float32)
            return _on_host(function, jax.ShapeDtypeStruct((images.shape[0], *shape), dtype), images)

        @rows.def_vmap
        def several(axis_size: int, batched: Any, images: Array) -> tuple[Array, bool]:
            found = rows(images.reshape(-1, *images.shape[2:]))
            return found.reshape(axis_size, -1, *found.shape[1:]), True

        return rows

    @jax.custom_batching.custom_vmap
    def pull_back(images: Array, cotangents: Array) -> Array:  # cotangents [sets, B, ...]
        like = jax.ShapeDtypeStruct((cotangents.shape[0], *images.shape), images.dtype)
        return _on_host(host.pull_back, like, images, cotangents)

    @pull_back.def_vmap
    def pull_back_several(axis_size: int, batched: Any, images: Array, cotangents: Array) -> tuple[Array, bool]:
        if not batched[0]:  # as for a Jacobian: more sets of the same images
            found = pull_back(images, cotangents.reshape(-1, *cotangents.shape[2:]))
            return found.reshape(axis_size, -1, *images.shape), True
        if not batched[1]:
            cotangents = jnp.broadcast_to(cotangents, (axis_size, *cotangents.shape))
        sets = jnp.moveaxis(cotangents, 0, 1)
        found = pull_back(images.reshape(-1, *images.shape[2:]), sets.reshape(sets.shape[0], -1, *sets.shape[3:]))
        return jnp.moveaxis(found.reshape(-1, *images.shape), 1, 0), True

    alone, remembered = outputs_of(host.outputs), outputs_of(host.outputs_remembered)
    call = jax.custom_vjp(alone)

    def call_and_remember(images: Array) -> tuple[Array, Array]:
        host.check_differentiable(images.shape[1:])
        return remembered(images), images

    call.defvjp(call_and_remember, lambda images, cotangents: (pull_back(images, cotangents[None])[0],))

    def forward(images: Array, keys: Array | None = None) -> Array:
        del keys
        return call(jnp.asarray(images))

    return forward


def _on_host(function: Callable[..., np.ndarray], like: jax.ShapeDtypeStruct, *arrays: Array) -> Array:
    """`function` of NumPy arrays, called from a compiled program.

    JAX hands a callback its arguments as JAX arrays. It copies small ones at once and leaves large ones (on CPU
    above 100 KiB) to threads that may all be waiting in such callbacks themselves: on several devices, or a
    machine with one core, nobody would ever copy. So arrays travel in small pieces, and nothing of JAX is
    called on the other side.
    """
    shapes = [array.shape for array in arrays]

    def call(*pieces: list[Any]) -> np.ndarray:
        return function(*[np.concatenate([np.asarray(piece) for piece in own]).reshape(shape)
                          for own, shape in zip(pieces, shapes, strict=True)])

    return jax.pure_callback(call, like, *[_in_pieces(array) for array in arrays])


def _in_pieces(array: Array) -> list[Array]:
    flat = array.reshape(-1)
    size = PIECE_BYTES // flat.dtype.itemsize
    return [flat[start:start + size] for start in range(0, flat.size, size)]


def _import_torch() -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("from_torch needs PyTorch, which is not installed: pip install 'medrobust_jax[torch]', "
                          'or a build of your choice from pytorch.org') from error
    return torch


class _Host:
    """The module on the host: NumPy arrays in, NumPy arrays out, one call at a time."""

    def __init__(self, torch: Any, module: Any, channels_first: bool):
        self._torch, self._module, self._channels_first = torch, module, channels_first
        self._lock = Lock()
        self._probed: dict[tuple[int, ...], tuple[tuple[int, ...], bool]] = {}
        # Of the last pass that a gradient may be asked of: its rows, leaf and outputs.
        self._remembered: tuple[np.ndarray, Any, Any] | None = None
        tensors = [*module.parameters(), *getattr(module, 'buffers', tuple)()]
        floating = [tensor for tensor in tensors if tensor.is_floating_point()]
        self._dtype = floating[0].dtype if floating else torch.float32
        self._device = tensors[0].device if tensors else torch.device('cpu')

    def check_mode(self) -> None:
        """Raises ValueError where a part of the module is in training mode."""
        training = [name or 'the module itself' for name, part in self._module.named_modules() if part.training]
        if training:
            raise ValueError(f'the PyTorch module is in training mode ({", ".join(training[:3])}'
                             f'{", ..." if len(training) > 3 else ""}): its batch normalization would see the '
                             f'neighbors of an image, and its dropout would draw; call module.eval() first')

    def check_differentiable(self, image_shape: tuple[int, ...]) -> None:
        """Raises ValueError where outputs carry no gradient to the images."""
        if not self.probe(image_shape)[1]:
            raise ValueError("the PyTorch module's outputs carry no gradient to its images: it detaches them, "
                             'rounds to integers, or computes under no_grad or in NumPy. What asks for outputs '
                             'alone (square, hopskipjump, boundary) runs on it through attacks.run')

    def probe(self, image_shape: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
        """The shape of one image's outputs and whether they carry a gradient, from a pass over two gray images."""
        if image_shape not in self._probed:
            gray = np.full((2, *image_shape), .5, np.float32)
            with self._lock:
                leaf = self._leaf(self._owned(gray))
                try:
                    with self._torch.enable_grad():
                        outputs = self._module(leaf.clone())
                except Exception as error:
                    raise ValueError(f'the PyTorch module does not take images of shape {tuple(leaf.shape)}, made '
                                     f'of {gray.shape} [batch, *spatial, channels] with channels_first='
                                     f'{self._channels_first}: {error}') from error
                self._check_outputs(outputs, 2)
                self._probed[image_shape] = self._as_array(outputs).shape[1:], bool(outputs.requires_grad)
        return self._probed[image_shape]

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """Outputs `[B, ...]` of images `[B, *spatial, C]`, without a graph."""
        with self._lock, self._torch.no_grad():
            return self._finish(self._pass(self._leaf(self._owned(images))), images)

    def outputs_remembered(self, images: np.ndarray) -> np.ndarray:
        """`outputs`, and keeps the graph for `pull_back`."""
        with self._lock, self._torch.enable_grad():
            rows = self._owned(images)
            leaf = self._leaf(rows)
            outputs = self._pass(leaf)
            self._remembered = rows, leaf, outputs
            return self._finish(outputs, images)

    def pull_back(self, images: np.ndarray, cotangents: np.ndarray) -> np.ndarray:
        """For each set of cotangents `[sets, B, ...]` the gradient of `sum(outputs * set)` at the images.

        The sets share one pass forward.
        """
        with self._lock, self._torch.enable_grad():
            leaf, outputs = self._recalled(self._owned(images))
            found = []
            for left, cotangent in zip(reversed(range(len(cotangents))), cotangents, strict=True):
                weights = self._torch.from_numpy(self._owned(cotangent)).to(self._device, outputs.dtype)
                gradient, = self._torch.autograd.grad(outputs, leaf, weights, retain_graph=left > 0)
                found.append(self._as_array(gradient))
        return np.stack(found).astype(images.dtype, copy=False)

    def _recalled(self, rows: np.ndarray) -> tuple[Any, Any]:
        """Leaf and outputs of the remembered pass if it was over the same rows, else of a new one.

        Either way what was remembered is let go of, with its memory.
        """
        kept, self._remembered = self._remembered, None
        if kept is not None and np.array_equal(kept[0], rows):
            return kept[1:]
        leaf = self._leaf(rows)
        return leaf, self._pass(leaf)

    def _owned(self, array: np.ndarray) -> np.ndarray:
        """A copy with axes in the module's order, to be kept and written to."""
        moved = np.moveaxis(array, -1, 1) if self._channels_first and array.ndim > 2 else array
        # PyTorch reads none of NumPy's extension types.
        return np.array(moved, np.float32 if array.dtype.name == 'bfloat16' else array.dtype, order='C')

    def _leaf(self, rows: np.ndarray) -> Any:
        return self._torch.from_numpy(rows).to(self._device, self._dtype).requires_grad_()

    def _pass(self, leaf: Any) -> Any:
        self.check_mode()
        outputs = self._module(leaf.clone())  # a module may work in place on what it is given, but never on a leaf
        self._check_outputs(outputs, len(leaf))
        return outputs

    def _check_outputs(self, outputs: Any, rows: int) -> None:
        if not isinstance(outputs, self._torch.Tensor):
            raise ValueError(f'the PyTorch module returns a {type(outputs).__name__}: wrap it in one that returns '
                             f'a single tensor [batch, ...], such as its logits')
        if outputs.ndim < 2 or len(outputs) != rows:
            raise ValueError(f'the PyTorch module returns outputs of shape {tuple(outputs.shape)} for {rows} '
                             f'images, not ({rows}, num_outputs) or ({rows}, num_outputs, *spatial)')
        if not bool(self._torch.isfinite(outputs).all()):
            raise ValueError('the PyTorch module returns outputs that are not finite (NaN or inf): no attack can '
                             'climb them, and no verdict on them means anything')

    def _as_array(self, tensor: Any) -> np.ndarray:
        wide = tensor.dtype if tensor.dtype == self._torch.float64 else self._torch.float32
        array = tensor.detach().to('cpu', wide).numpy()
        return np.moveaxis(array, 1, -1) if self._channels_first and array.ndim > 2 else array

    def _finish(self, outputs: Any, images: np.ndarray) -> np.ndarray:
        return self._as_array(outputs).astype(np.float64 if images.dtype == np.float64 else np.float32)

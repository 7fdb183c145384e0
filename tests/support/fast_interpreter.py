"""Triton's interpreter without the work that it does over again: the same operations on the same numbers.

The interpreter (3.6) puts its own functions in the place of Triton's language before it runs a kernel, and again at
every call that a kernel makes of another function, where all of it is in place already. Each time it looks through
hundreds of names to find those that it has to replace. And every result is given a shape made anew, of the few that
there are. Without that a kernel takes half the time.
"""

import functools
import inspect
import math
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as interpreter


def install() -> None:
    """For the whole process."""
    interpreter.InterpretedFunction.__call__ = _call_in_a_kernel
    interpreter._patch_builtin = _patch_builtins
    interpreter._get_np_dtype = _numpy_type
    tl.core.tensor.__init__ = _make_tensor
    tl.core.block_type.__init__ = _make_block_type


_patch_language = interpreter._patch_lang
_numpy_type_of_scalar = functools.cache(interpreter._get_np_dtype)


@functools.cache
def _languages_of(function: Any) -> tuple[Any, ...]:
    return tuple(language for language in (tl, tl.core) if language in function.__globals__.values())


def _call_in_a_kernel(self: Any, *args: Any, **kwargs: Any) -> Any:
    if any(tl.core.is_builtin(language.load) for language in _languages_of(self.fn)):  # not in place yet
        _patch_language(self.fn)
    try:
        return self.rewrite()(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


@functools.cache
def _names_of_builtins(package: Any) -> tuple[str, ...]:
    return tuple(name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member))


def _patch_builtins(package: Any, builder: Any, scope: Any) -> None:
    for name in _names_of_builtins(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, scope)


def _numpy_type(type_: Any) -> Any:
    scalar = type_.element_ty if isinstance(type_, tl.block_type) else type_
    return np.dtype(np.uint64) if isinstance(scalar, tl.pointer_type) else _numpy_type_of_scalar(scalar)


@functools.cache
def _shape(sizes: tuple[int, ...]) -> tuple[Any, Any]:
    return tl.constexpr(math.prod(sizes)), tl.core.tuple([tl.constexpr(size) for size in sizes])


def _make_tensor(self: Any, handle: Any, type_: Any) -> None:
    self.handle, self.type, self.dtype = handle, type_, type_.scalar
    self.numel, self.shape = _shape(tuple(type_.shape) if type_.is_block() else ())


@functools.cache
def _block_shape(sizes: tuple[int, ...]) -> tuple[Any, int]:
    block = _BlockType(tl.int8, list(sizes))
    return block.shape, block.numel


class _BlockType(tl.core.block_type):
    """Made as Triton makes one, with every check of the shape."""

    __init__ = tl.core.block_type.__init__


def _make_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    sizes = tuple(size.value if isinstance(size, tl.constexpr) else size for size in shape)
    self.element_ty, (self.shape, self.numel) = element_ty, _block_shape(sizes)
    self.name = f"<{self.shape}, {element_ty}>"

"""Sixteen floats in registers, for functions that Numba compiles: LLVM's vector type, on every processor.

Numba's loops keep sums in memory, because it cannot tell that two arrays do not overlap. Its cache does not see changes
in this file: see `compiled`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model
from numba.np.arrayobj import make_array

COUNT = 16
_VECTOR = ir.VectorType(ir.FloatType(), COUNT)
_FUSE = ("contract",)


class Lanes(types.Type):  # type: ignore[misc]
    """Numba's type of the sixteen floats."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


@register_model(Lanes)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


_LANES = Lanes()


def _primitive(function: Any) -> Any:
    return intrinsic(function)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, start: Any) -> Any:
    return builder.gep(make_array(kind)(context, builder, array).data, [start])


@_primitive
def load_one(context: Any, array: Any, index: Any) -> Any:
    """array[index], without the question whether the index is negative."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], *args))

    return types.float32(array, types.intp), code


@_primitive
def load(context: Any, array: Any, start: Any) -> Any:
    """array[start : start + 16] of a contiguous float32 array of one axis."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = _pointer(context, builder, signature.args[0], *args)
        return builder.load(builder.bitcast(first, _VECTOR.as_pointer()), align=4)

    return _LANES(array, types.intp), code


@_primitive
def store(context: Any, array: Any, start: Any, lanes: Any) -> Any:
    """array[start : start + 16] = lanes."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = _pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], builder.bitcast(first, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _LANES), code


@_primitive
def add_scaled(context: Any, total: Any, factor: Any, lanes: Any) -> Any:
    """total + factor * lanes; factor is one float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        index = ir.IntType(32)
        first = builder.insert_element(undefined, args[1], ir.Constant(index, 0))
        all_lanes = builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(index, COUNT), [0] * COUNT))
        return builder.fadd(args[0], builder.fmul(all_lanes, args[2], flags=_FUSE), flags=_FUSE)

    return _LANES(_LANES, types.float32, _LANES), code


@_primitive
def wide(context: Any) -> Any:
    """Lets loops of the function that calls it use registers of 512 bits where a processor has them.

    LLVM prefers 256 bits on all such processors, because the first ones slowed down.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own `add` knows no values
        return context.get_dummy_value()

    return types.void(), code

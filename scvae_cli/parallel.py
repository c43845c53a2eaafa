"""Functions that numba compiles and that run on several threads.

When numba compiles a Python function, numba also compiles a copy of every function that the Python function calls.
Numba compiles a parallel loop four times, so a function that is called in the loop would be compiled five times in all.
A function that is called by its address in memory is compiled only once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numba.extending
import torch
from numba.core import cgutils, errors
from torch import Tensor


def use_threads() -> int:
    """Make numba use the same number of threads as torch, if possible, and return torch's number of threads.

    Callers divide their work according to the returned number alone, so that every run computes sums in the same order.
    """
    n_threads = torch.get_num_threads()
    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]  # numba sets this attribute at run time
    # If numba and torch share one OpenMP library, starting numba's threads changes the number of torch's threads.
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)
    return n_threads


def array(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Any:
    """Return a tensor as a contiguous numpy array of type `dtype`. The values are copied only if necessary."""
    return tensor.detach().to(dtype).contiguous().numpy()


def by_address(function: Any, *types: tuple[Any, ...]) -> tuple[Callable[..., int], Callable[..., None]]:
    """Return a function that looks up the address of `function`, and a function that calls `function` by its address.

    `function` must be compiled by numba and return nothing. `types` are the numba types of the arguments of `function`,
    with one tuple for each combination of types that is allowed. Arguments of types that are not in `types` raise an
    error. Python code calls the first returned function with the index of a tuple in `types`. Compiled code calls the
    second returned function with the address, followed by the arguments.
    """

    @functools.cache
    def address(signature: int = 0) -> int:
        compiled = function.get_compile_result(numba.void(*types[signature]))
        pointer: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
        return pointer

    def call(_: Any, pointer: Any, *given: Any) -> Any:
        if given not in types:
            raise errors.TypingError(f"{function.__name__} takes arguments of the types {types}, not {given}")

        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            kind = context.call_conv.get_function_type(numba.types.none, given)
            target = builder.inttoptr(arguments[0], kind.as_pointer())
            unpacked = cgutils.unpack_tuple(builder, arguments[1])  # type: ignore[no-untyped-call]  # numba has no annotations
            status, _ = context.call_conv.call_function(builder, target, numba.types.none, given, unpacked)
            with cgutils.if_unlikely(builder, status.is_error):  # type: ignore[no-untyped-call]  # numba has no annotations
                context.call_conv.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return numba.void(pointer, numba.types.BaseTuple.from_types(given)), generate  # type: ignore[no-untyped-call]  # numba has no annotations

    return address, numba.extending.intrinsic(call)

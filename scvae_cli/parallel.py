"""Work of compiled functions, shared out among threads.

A compiled function holds a copy of whatever it calls, and one whose loop runs in parallel is compiled four times on the
way: what it calls would be compiled five times. What it calls by its address is compiled once.
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
    """Have numba use as many threads as torch does; returns their number.

    Work is shared out by that number alone, so that sums are taken in the same order run after run.
    """
    n_threads = torch.get_num_threads()
    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]  # set at run time
    # Where both share one OpenMP, numba's first start sets torch's number of threads to its own.
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)
    return n_threads


def array(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Any:
    """A tensor's numbers as compiled code takes them, in one piece and of one type; a copy only where they are not."""
    return tensor.detach().to(dtype).contiguous().numpy()


def by_address(function: Any, *types: tuple[Any, ...]) -> tuple[Callable[..., int], Callable[..., None]]:
    """Two functions: one that gives the address of a compiled function, and one that calls what is at such an address.

    Parameters
    ----------
    function
        Compiled, without a result.
    types
        Of its arguments, in numba's words; one list for every form it is compiled in. Calls with others are refused.

    Returns
    -------
    tuple
        The first is for Python, and takes the form's place in `types` (the first, unless told). The second is for
        compiled code, and takes the address and then the arguments.
    """

    @functools.cache
    def address(form: int = 0) -> int:
        found = function.get_compile_result(numba.void(*types[form]))
        place: int = found.library.get_pointer_to_function(found.fndesc.llvm_func_name)
        return place

    def call(_: Any, where: Any, *given: Any) -> Any:
        if given not in types:
            raise errors.TypingError(f"{function.__name__} takes {types}, not {given}")

        def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            kind = context.call_conv.get_function_type(numba.types.none, given)
            target = builder.inttoptr(arguments[0], kind.as_pointer())
            unpacked = cgutils.unpack_tuple(builder, arguments[1])  # type: ignore[no-untyped-call]  # numba's
            status, _ = context.call_conv.call_function(builder, target, numba.types.none, given, unpacked)
            with cgutils.if_unlikely(builder, status.is_error):  # type: ignore[no-untyped-call]  # numba's
                context.call_conv.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return numba.void(where, numba.types.BaseTuple.from_types(given)), generate  # type: ignore[no-untyped-call]  # numba's

    return address, numba.extending.intrinsic(call)

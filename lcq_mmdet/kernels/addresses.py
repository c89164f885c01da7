"""Memory of tensors as the loops of the CPU kernel see it.

Making a NumPy array of each tensor would take longer than quantizing a few
thousand values.
"""
import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic


@intrinsic
def _pointer(typing_context, address):

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0],
                                context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.intp), generate


@njit(inline='always')
def floats_at(address, size):
    """View the float32 values at ``Tensor.data_ptr()``, shape (N)."""
    return carray(_pointer(address), (size, ), np.float32)

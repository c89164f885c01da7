from .companding import (MIN_DEVIATION, check_arguments, check_bits, compress,
                         deviation, expand, lcq_quantize_reference, levels,
                         num_steps, slopes_and_knots)
from .dispatch import KERNELS, lcq_quantize
from .initialization import (lloyd_max_init, lowest_level, mse_init,
                             quantization_error)
from .requantization import round_to_grid, signed_step, unsigned_grid
from .sampling import sample_stride

__all__ = [
    'KERNELS', 'MIN_DEVIATION', 'check_arguments', 'check_bits', 'compress',
    'deviation', 'expand', 'lcq_quantize',
    'lcq_quantize_reference', 'levels', 'lloyd_max_init', 'lowest_level',
    'mse_init', 'num_steps', 'quantization_error', 'round_to_grid',
    'sample_stride', 'signed_step', 'slopes_and_knots',
    'unsigned_grid'
]

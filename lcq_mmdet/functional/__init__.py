from .companding import (MIN_DEVIATION, check_bits, compress, deviation,
                         expand, is_half, levels, num_steps, slopes_and_knots,
                         widened)
from .dispatch import KERNELS, lcq_quantize
from .initialization import (lloyd_max_init, lowest_level, mse_init,
                             quantization_error)
from .reference import check_arguments, lcq_quantize_reference
from .requantization import round_to_grid, signed_step, unsigned_grid
from .sampling import sample_stride, with_extremes
from .step_size import (grid_of_step, initial_step, scale_gradient,
                        step_gradient_scale)

__all__ = [
    'KERNELS', 'MIN_DEVIATION', 'check_arguments', 'check_bits', 'compress',
    'deviation', 'expand', 'grid_of_step', 'initial_step', 'is_half',
    'lcq_quantize', 'lcq_quantize_reference', 'levels', 'lloyd_max_init',
    'lowest_level', 'mse_init', 'num_steps', 'quantization_error',
    'round_to_grid', 'sample_stride', 'scale_gradient', 'signed_step',
    'slopes_and_knots', 'step_gradient_scale', 'unsigned_grid', 'widened',
    'with_extremes'
]

from .companding import (MIN_DEVIATION, check_arguments, check_bits, compress,
                         deviation, expand, lcq_quantize_reference, levels,
                         num_steps, slopes_and_knots)
from .dispatch import KERNELS, lcq_quantize
from .gradients import input_slope, scale_gradient
from .initialization import (lloyd_max_init, lowest_level, mse_init,
                             quantization_error)
from .sampling import sample_stride

__all__ = [
    'KERNELS', 'MIN_DEVIATION', 'check_arguments', 'check_bits', 'compress',
    'deviation', 'expand', 'input_slope', 'lcq_quantize',
    'lcq_quantize_reference', 'levels', 'lloyd_max_init', 'lowest_level',
    'mse_init', 'num_steps', 'quantization_error', 'sample_stride',
    'scale_gradient', 'slopes_and_knots'
]

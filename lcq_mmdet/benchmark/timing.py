"""Times of several functions, measured side by side."""
import time
from statistics import median
from typing import Any, Callable, Dict, Mapping

import torch


def interleaved_medians(functions: Mapping[str, Callable[[], Any]],
                        rounds: int,
                        warmup: int = 3) -> Dict[str, float]:
    """Call functions in turn, so that all meet the same conditions.

    Args:
        functions: What to time, by name.
        rounds: Number of timed calls of each, 1 or more.
        warmup: Number of calls of each before.

    Returns:
        Median time of a call in seconds, by name. On a GPU the call has
        ended when all that it started has.
    """
    times: Dict[str, list] = {name: [] for name in functions}
    for turn in range(warmup + rounds):
        for name, function in functions.items():
            _wait()
            start = time.perf_counter()
            function()
            _wait()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

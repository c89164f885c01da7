"""Peak memory of a part of a program, on the GPU or, on Linux, the CPU."""
import ctypes
import gc
import json
import os
import re
import tempfile
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Callable, Iterator, List, Optional

import torch
from torch.profiler import ProfilerActivity, profile

_STATUS = '/proc/self/status'


@contextmanager
def peak_memory() -> Iterator[List[Optional[int]]]:
    """Measure how much memory is needed beyond what is held at the start.

    On a GPU it is what torch has allocated, on the CPU the resident memory
    of this process, without its data loading workers.

    Yields:
        A list that gets one element at the end, the peak in bytes; ``None``
        where the system does not tell.
    """
    result: List[Optional[int]] = []
    gc.collect()
    if torch.cuda.is_available():
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield result
        result.append(torch.cuda.max_memory_allocated() - start)
    elif os.access('/proc/self/clear_refs', os.W_OK):
        # Without this, memory freed earlier would be taken again unseen.
        ctypes.CDLL(None).malloc_trim(0)
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')
        start = _resident('VmRSS')
        yield result
        result.append(_resident('VmHWM') - start)
    else:
        yield result
        result.append(None)


def peak_allocation(call: Callable[[], Any]) -> int:
    """Measure what torch allocates in a call, the most at any time.

    On the CPU, too, unlike :func:`peak_memory`: no library's own memory and
    no gaps between tensors, so the number is the same each time. What is
    freed of what was there before does not count there.

    Returns:
        Peak in bytes.
    """
    if torch.cuda.is_available():
        with peak_memory() as result:
            call()
        return result[0] or 0
    gc.collect()
    with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'trace.json')
        record.export_chrome_trace(path)
        with open(path) as file:
            events = json.load(file)['traceEvents']
    changes = sorted((event for event in events
                      if event.get('name') == '[memory]'),
                     key=lambda event: event['ts'])
    return max(
        accumulate((event['args']['Bytes'] for event in changes), initial=0))


def _resident(key: str) -> int:
    with open(_STATUS) as file:
        match = re.search(rf'{key}:\s*(\d+) kB', file.read())
    return 1024 * int(match[1]) if match else 0

"""Times of a detector's network in several engines."""
import tempfile
from typing import Any, Dict, List, Tuple

from mmengine.config import Config

from .engines import Engines
from .timing import interleaved_medians


def inference_rows(case: str, cfg: Config, size: Tuple[int, int],
                   rounds: int) -> List[Dict[str, Any]]:
    """Measure the network on the CPU; evaluate a trained one, too.

    Args:
        case: What the detector is called.
        cfg: Config of a quantized detector; with ``load_from``, it is
            evaluated.
        size: Height and width of the image in pixels.
        rounds: Timed calls of each engine.
    """
    with tempfile.TemporaryDirectory() as folder:
        engines = Engines(cfg, size, folder)
        seconds = interleaved_medians(engines.calls(), rounds)
        metrics = engines.evaluate() if cfg.load_from else {}
    rows = []
    for name, value in seconds.items():
        row: Dict[str, Any] = dict(
            case=f'{case}, {size[0]} x {size[1]}',
            name=name,
            seconds=dict(network=value))
        if name in engines.file_bytes:
            row['file_bytes'] = engines.file_bytes[name]
        if name in metrics:
            row['metrics'] = metrics[name]
        rows.append(row)
    return rows

"""Times of a detector's network in several engines."""
import tempfile
from typing import Any, Dict, List, Sequence, Tuple

from mmengine.config import Config

from lcq_mmdet.export.engines import ENGINES

from .engines import Engines, engine_rows
from .timing import interleaved_medians
from .whole import whole_rows


def inference_rows(case: str,
                   cfg: Config,
                   size: Tuple[int, int],
                   rounds: int,
                   engines: Sequence[str] = ENGINES[:1]
                   ) -> List[Dict[str, Any]]:
    """Measure the network on the CPU.

    A trained one is evaluated, too, and measured from image to boxes.

    Args:
        case: What the detector is called.
        cfg: Config of a quantized detector; with ``load_from``, it is
            evaluated.
        size: Height and width of the image in pixels.
        rounds: Timed calls of each.
        engines: What runs the graphs.
    """
    with tempfile.TemporaryDirectory() as folder:
        contest = Engines(cfg, size, folder, engines)
        seconds = interleaved_medians(contest.calls(), rounds)
        metrics = contest.evaluate() if cfg.load_from else {}
    rows = engine_rows(f'{case}, {size[0]} x {size[1]}', 'network', seconds,
                       contest.file_bytes, metrics)
    return rows + (
        whole_rows(case, cfg, rounds, engines) if cfg.load_from else [])

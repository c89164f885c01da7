"""Engines that run graphs without torch."""
import importlib.util

from lcq_mmdet.errors import LCQError

ENGINES = ('onnxruntime', 'openvino')


def is_installed(engine: str) -> bool:
    """Tell whether an engine can be imported."""
    return importlib.util.find_spec(engine) is not None


def check_engine(engine: str) -> None:
    """Check that an engine is known and installed.

    Raises:
        LCQError: If it is not; says how to install it.
    """
    if engine not in ENGINES:
        raise LCQError(f'engine={engine!r}: must be one of '
                       f'{", ".join(map(repr, ENGINES))}')
    if not is_installed(engine):
        extra = 'onnx' if engine == 'onnxruntime' else engine
        raise LCQError(f'engine={engine!r}: is not installed: '
                       f"pip install 'lcq_mmdet[{extra}]'")

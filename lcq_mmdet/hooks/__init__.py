from .distill_hook import LCQDistillHook
from .evaluation_hook import EvaluationCheckpointHook
from .lcq_hook import LCQHook
from .monitor_hook import LCQMonitorHook

__all__ = [
    'EvaluationCheckpointHook', 'LCQDistillHook', 'LCQHook', 'LCQMonitorHook'
]

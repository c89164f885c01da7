from .dampening_hook import LCQDampeningHook
from .distill_hook import LCQDistillHook, keep_teacher
from .evaluation_hook import EvaluationCheckpointHook
from .lcq_hook import LCQHook
from .monitor_hook import LCQMonitorHook
from .precise_bn_hook import LCQPreciseBNHook

__all__ = [
    'EvaluationCheckpointHook', 'LCQDampeningHook', 'LCQDistillHook',
    'LCQHook', 'LCQMonitorHook', 'LCQPreciseBNHook', 'keep_teacher'
]

from .distill_hook import LCQDistillHook
from .lcq_hook import LCQHook
from .monitor_hook import LCQMonitorHook

__all__ = ['LCQDistillHook', 'LCQHook', 'LCQMonitorHook']

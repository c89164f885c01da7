from .lcq_hook import LCQHook
from .monitor_hook import LCQMonitorHook

__all__ = ['LCQHook', 'LCQMonitorHook']

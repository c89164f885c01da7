from .lcq_hook import LCQHook

__all__ = ['LCQHook']

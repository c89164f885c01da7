"""The state of a quantizer: what it holds, and how it is loaded."""
from functools import partial
from typing import Any, Callable, Optional

import torch
from mmengine.dist import broadcast
from torch import Tensor, nn

from .config import QuantizerConfig
from .loading import Misfit, adapt_, settings_of
from .precision import not_halved


class QuantizerState(nn.Module):
    """Hold clip, compander and offset of one tensor.

    The state is the parameters ``clip``, shape (), ``theta``, shape (K), and
    ``offset``, shape (), the buffers ``signed``, ``initialized`` and for a
    weight ``packed``, shape () and bool, and the buffer ``settings``, shape
    (2) and int64, which says what the others were fitted for. All have their
    final shape from the start and are only ever filled in place.

    A state that was fitted for other settings is loaded as one that is not
    initialized; ``misfit`` tells why.

    ``packed`` says that the weight came from a packed file, which has its
    quantized values and no others: it is used as it is, and not trained.

    Args:
        config: Settings of the layer.
        is_weight: Whether the tensor is the layer's weight, which is signed
            and normalized, or its input.
    """
    clip: nn.Parameter
    theta: Tensor
    offset: Optional[nn.Parameter]
    signed: Tensor
    initialized: Tensor
    packed: Optional[Tensor]
    settings: Tensor

    def __init__(self, config: QuantizerConfig, is_weight: bool) -> None:
        super().__init__()
        self.config = config
        self.is_weight = is_weight
        self.bits = config.weight_bits if is_weight else config.act_bits
        self.weight_norm = config.weight_norm if is_weight else 'none'
        #: Let the input pass as it is, as calibration does.
        self.bypass = False
        #: Why what was loaded last is not used, if so.
        self.misfit: Optional[Misfit] = None
        self._add_parameters()
        self.register_buffer('signed', torch.tensor(True))
        self.register_buffer('initialized', torch.tensor(False))
        self.register_buffer('packed',
                             torch.tensor(False) if is_weight else None)
        self.register_buffer('settings',
                             settings_of(self.bits, self.weight_norm))
        self._read_buffers()

    def _add_parameters(self) -> None:
        config = self.config
        self.clip = nn.Parameter(torch.ones(()))
        self.theta = nn.Parameter(
            torch.zeros(config.num_intervals),
            requires_grad=config.quantizer == 'lcq')
        kind = config.signed_weight if self.is_weight else config.signed_act
        self.register_parameter(
            'offset',
            None if kind == 'symmetric' else nn.Parameter(torch.zeros(())))

    def _read_buffers(self) -> None:
        """Mirror the buffers on the host, so that forward never waits."""
        self.is_signed = bool(self.signed)
        self.is_initialized = bool(self.initialized)
        self.is_packed = self.packed is not None and bool(self.packed)

    def _load_from_state_dict(self, state_dict: Any, prefix: str,
                              *args: Any) -> None:
        self.misfit = adapt_(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._read_buffers()

    @torch.no_grad()
    def discard_(self, misfit: Misfit) -> None:
        """Make the values those of a quantizer not initialized, in place."""
        self.misfit = misfit
        self.initialized.fill_(False)
        self._read_buffers()

    @torch.no_grad()
    def keep_(self) -> None:
        """Use what was loaded, although it was fitted for other bits."""
        self.misfit = None
        self.initialized.fill_(True)
        self._read_buffers()

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        # A rounded clip or compander would move every threshold.
        return super()._apply(partial(not_halved, fn), *args, **kwargs)

    def broadcast_(self) -> None:
        """Take over the state of rank 0, in place."""
        for tensor in (*self.parameters(), *self.buffers()):
            broadcast(tensor.data)
        self._read_buffers()

"""One input quantizer for each level of a feature pyramid."""
from typing import Any, Dict, List

from torch import Tensor, nn

from lcq_mmdet.errors import LCQError

from .config import QuantizerConfig
from .kinds import make_quantizer
from .quantizer import LCQQuantizer


class LevelQuantizers(nn.Module):
    """Quantize the input of a layer that a head calls once a level.

    The first call in a forward pass of the head gets the first quantizer,
    and so on. They are children of their own, named as parameter groups and
    hooks expect it of quantizers: ``level0_quantizer``, ...

    Args:
        config: Settings of the layer.
        num_levels: Number of levels, 2 or more.
    """

    def __init__(self, config: QuantizerConfig, num_levels: int) -> None:
        super().__init__()
        for level in range(num_levels):
            self.add_module(f'level{level}_quantizer',
                            make_quantizer(config, is_weight=False))
        self._next = 0

    def levels(self) -> List[LCQQuantizer]:
        """List the quantizers from the first level to the last."""
        return list(self.children())  # type: ignore[arg-type]

    @property
    def bits(self) -> int:
        """Bit-width of all levels."""
        return self.levels()[0].bits

    @property
    def num_levels(self) -> int:
        """Count the output values, most of all levels."""
        return max(level.num_levels for level in self.levels())

    @property
    def is_signed(self) -> bool:
        """Whether any level has negative values."""
        return any(level.is_signed for level in self.levels())

    @property
    def is_initialized(self) -> bool:
        """Whether all levels are calibrated."""
        return all(level.is_initialized for level in self.levels())

    def begin(self) -> None:
        """Make the next call the one of the first level."""
        self._next = 0

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x``, any shape, with the quantizer of its level.

        Raises:
            LCQError: If there are more calls than levels.
        """
        levels = self.levels()
        if self._next == len(levels):
            raise LCQError(
                f'per_level=True: a layer with {len(levels)} levels is called '
                'once more in one forward pass of its head; turn activation '
                'checkpointing off in the head, or set per_level=False in '
                'overrides for the layers that are called more often')
        self._next += 1
        return levels[self._next - 1](x)


def count_levels(model: nn.Module) -> Dict[str, int]:
    """Count the levels of the pyramid that each head of a detector takes.

    Args:
        model: Any module; mmdet's dense heads have a ``prior_generator``,
            which knows.

    Returns:
        Numbers of two and more, by the head's qualified name.
    """
    found = {}
    for name, module in model.named_modules():
        prior_generator: Any = getattr(module, 'prior_generator', None)
        num_levels = getattr(prior_generator, 'num_levels', 1)
        if num_levels > 1:
            found[name] = num_levels
    return found


def begin_levels(model: nn.Module, inputs: Any) -> None:
    """Begin with the first level again; a hook before a forward pass."""
    for module in model.modules():
        if isinstance(module, LevelQuantizers):
            module.begin()

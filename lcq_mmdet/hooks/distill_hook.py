from typing import Any, Dict, Iterator, List, Optional, Sequence

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lcq_mmdet.conversion.building import build_model, without_weights
from lcq_mmdet.conversion.checkpoint import (match_keys, read_checkpoint,
                                             state_of)
from lcq_mmdet.conversion.model import float_config
from lcq_mmdet.conversion.selection import unwrap
from lcq_mmdet.errors import LCQError, some

_KEY = 'default_hooks.lcq_distill'


@HOOKS.register_module()
class LCQDistillHook(Hook):
    """Train a quantized detector to have the float detector's features.

    The loss ``loss_distill`` is added to the detector's own: for each map of
    the neck, or of the backbone without one, the squared difference to the
    float detector's map over the variance of that one, averaged over the
    maps. With ``scores`` the first output of the dense head, which has the
    class scores before the sigmoid or softmax, is compared in the same way.

    The float detector (the teacher) is held by this hook alone: it is in no
    state dict, optimizer, average of weights or exported file. It runs in
    eval mode without gradients on the images of each training step. With
    both weights 0 the hook does nothing, so that an option on the command
    line is enough to train without it: mmengine takes no ``None`` for a hook
    that it does not register itself.

    Args:
        teacher: Checkpoint of the float detector. Default: the one that
            training starts from, the config's ``load_from``. Where another
            takes its place, as when a run is resumed,
            :func:`keep_teacher` writes it here first.
        features: Weight of the features, 0 or more.
        scores: Weight of the class scores, 0 or more.

    Raises:
        LCQError: If a weight is negative; before training, if there is no
            checkpoint or it does not fit, or the detector has no dense head
            to take scores from.
    """

    def __init__(self,
                 teacher: Optional[str] = None,
                 features: float = 1.,
                 scores: float = 0.) -> None:
        for key, value in (('features', features), ('scores', scores)):
            if isinstance(value, bool) or not isinstance(
                    value, (int, float)) or not 0 <= value < float('inf'):
                raise LCQError(f'{_KEY}.{key}={value!r}: must be a number of '
                               '0 or more')
        self.teacher, self.features, self.scores = teacher, features, scores
        self._teacher: Any = None
        self._handles: List[RemovableHandle] = []
        self._seen: Optional[Dict[str, Any]] = None

    def before_train(self, runner: Runner) -> None:
        """Load the teacher, and watch the detector's forward passes.

        Not before: copies of the model that other hooks make in ``before_run``
        are to have no part in this.
        """
        if not self.features and not self.scores:
            return
        model = unwrap(runner.model)
        head = _dense_head(model)
        if self.scores and head is None:
            raise LCQError(f'{_KEY}.scores={self.scores!r}: a '
                           f'{type(model).__name__} has no dense head that '
                           'takes feature maps; set it to 0')
        path = self.teacher or runner.cfg.get('load_from')
        if not path:
            raise LCQError(f'{_KEY}.teacher: there is no load_from; name the '
                           'checkpoint of the float detector')
        self._teacher = _load_teacher(runner.cfg, path)
        self._teacher.to(next(model.parameters()).device)
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._add_loss, with_kwargs=True),
            _last_of_features(model).register_forward_hook(
                self._remember('features')),
        ]
        if self.scores:
            self._handles.append(
                head.register_forward_hook(self._remember('scores')))
        runner.logger.info(f'LCQ: distilling from {path}')

    def after_train(self, runner: Runner) -> None:
        """Let go of the teacher."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._teacher = [], None

    def _remember(self, name: str) -> Any:

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            if self._seen is not None:
                self._seen[name] = output

        return remember

    def _begin(self, model: nn.Module, args: Any,
               kwargs: Dict[str, Any]) -> None:
        is_loss = kwargs.get('mode') == 'loss' and torch.is_grad_enabled()
        self._seen = {} if is_loss else None

    def _add_loss(self, model: nn.Module, args: Any, kwargs: Dict[str, Any],
                  losses: Any) -> Any:
        seen, self._seen = self._seen, None
        if seen is None:
            return losses
        inputs = kwargs['inputs'] if 'inputs' in kwargs else args[0]
        with torch.no_grad():
            maps = self._teacher.extract_feat(inputs)
        loss: Any = 0.
        if self.features:
            loss = self.features * relative_error(seen['features'], maps)
        if self.scores:
            with torch.no_grad():
                expected = _dense_head(self._teacher)(maps)[0]
            loss = loss + self.scores * relative_error(
                seen['scores'][0], expected)
        return dict(losses, loss_distill=loss)


def keep_teacher(cfg: Config) -> None:
    """Name the teacher, before something else is loaded than the float model.

    Args:
        cfg: Config of a run; its hook gets ``load_from`` as teacher unless it
            has one.
    """
    hook = (cfg.get('default_hooks') or {}).get('lcq_distill')
    if hook and not hook.get('teacher'):
        hook['teacher'] = cfg.get('load_from')


def relative_error(found: Any, expected: Any) -> Tensor:
    """Compute the squared error of maps over the variance of what is expected.

    Args:
        found: A tensor of any shape, or a sequence of them.
        expected: The same of the teacher.

    Returns:
        The mean over the tensors, shape (), float32.

    Examples:
        >>> relative_error([torch.tensor([1., 2.])], [torch.tensor([0., 2.])])
        tensor(0.5000)
    """
    errors = [
        (y.float() - t.float()).square().mean() / t.float().var(correction=0)
        .clamp(min=1e-12) for y, t in zip(_tensors(found), _tensors(expected))
    ]
    return torch.stack(errors).mean()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Sequence):
        for part in value:
            yield from _tensors(part)


def _load_teacher(cfg: Config, path: str) -> nn.Module:
    cfg = float_config(cfg)
    cfg.model = without_weights(cfg.model)
    teacher = build_model(cfg)
    checkpoint = read_checkpoint(path, f'{_KEY}.teacher')
    missing = match_keys(teacher, checkpoint).missing
    if missing:
        raise LCQError(f'{_KEY}.teacher={path!r}: is no checkpoint of the '
                       f'float detector, it lacks {some(missing)} keys; train '
                       f'that first, or set {_KEY}.features=0')
    state = state_of(checkpoint)
    if any('_quantizer.' in key for key in state):
        raise LCQError(f'{_KEY}.teacher={path!r}: is of a quantized detector; '
                       'name the float one')
    teacher.load_state_dict(state, strict=False)
    return teacher.eval().requires_grad_(False)


def _last_of_features(model: Any) -> nn.Module:
    return model.neck if getattr(model, 'with_neck', False) else model.backbone


def _dense_head(model: Any) -> Any:
    """Return the head that sees whole feature maps, if there is one."""
    for name in ('bbox_head', 'rpn_head'):
        head = getattr(model, name, None)
        if hasattr(head, 'prior_generator'):
            return head
    return None

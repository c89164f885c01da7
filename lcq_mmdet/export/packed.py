"""The packed file: what is in it, and how one tells that it is whole.

It is a safetensors file: the length of a header, a header in JSON, and raw
tensors. Nothing in it is ever executed or unpickled; any safetensors reader
can open it.

**Tensors.** Those of the model's state dict, under their keys, except that a
quantized layer L has, in place of its float weight,

========================  ======================================  =========
L.weight                  codes of weight_bits each, as           uint8
                          :mod:`~lcq_mmdet.export.bits` packs     (bytes)
                          them, in the order of the weight
L.weight_quantizer
.codebook                 the values that the codes stand for,    float32
                          ascending; codes are indices of it      (n)
L.weight_quantizer        with ``weight_norm='channel'`` only:    float32
.scale                    what the values of each output channel  (out)
                          are multiplied by
========================  ======================================  =========

The weight that the convolution used in training is, bit by bit,
``codebook[codes]`` in the manifest's shape, times ``scale``. Clips, thetas,
offsets and flags of all layers, in the manifest's order, are the rows of
``*.weight_quantizer.clip``, ``*.act_quantizer.theta`` and so on; a layer
whose tensor has another shape keeps it under its own key, and is left out
there. ``packed`` among them is true, and ``settings`` is not there, as the
manifest has them. Keys that share a tensor have it once.

**Metadata**, all of them text:

``format``     ``lcq_mmdet.packed``
``version``    of this layout, an integer; a reader refuses others
``manifest``   JSON: the fields of :class:`Manifest`
``config``     the full config as a Python literal: data, no code
``meta``       more of what a checkpoint calls ``meta``, as a literal
``checksum``   of the metadata without itself

A checksum is BLAKE2b, 8 bytes in hexadecimal, over the UTF-8 text of key and
value, sorted by key; for a module over the name, dtype, shape and bytes of
its tensors, without stacks, sorted by name. A layer and its quantizers are one
module.
"""
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

import torch
from torch import Tensor

from lcq_mmdet.errors import LCQError
from lcq_mmdet.functional import check_bits
from lcq_mmdet.quantization.weight import packed_size

from .files import check_version, checksum_of_text, from_literal, to_literal

FORMAT = 'lcq_mmdet.packed'
VERSION = 3
CODEBOOK, SCALE = '.weight_quantizer.codebook', '.weight_quantizer.scale'


@dataclass(frozen=True)
class PackedLayer:
    """A quantized layer in the manifest.

    Attributes:
        shape: Shape of the weight, (out, in / groups, height, width).
        weight_bits: Bits of a code.
        act_bits: Bits of the input.
        signed_act: How an input with negative values is quantized.
        out_bits: Bits of the integers that levels are rounded to, if any.
        bytes: Size of the packed codes.
    """
    shape: Tuple[int, ...]
    weight_bits: int
    act_bits: int
    signed_act: str
    out_bits: Optional[int]
    bytes: int

    def __post_init__(self) -> None:
        check_bits(self.weight_bits, 'weight_bits')
        check_bits(self.act_bits, 'act_bits')
        if not all(type(n) is int and 0 < n < 2**31 for n in self.shape):
            raise ValueError(f'shape={self.shape!r}')
        if self.bytes != packed_size(self.count, self.weight_bits):
            raise ValueError(f'bytes={self.bytes!r} for {self.count} codes')

    @property
    def count(self) -> int:
        """Count the elements of the weight."""
        count = 1
        for n in self.shape:
            count *= n
        return count


@dataclass(frozen=True)
class Manifest:
    """What a packed file says of itself.

    Attributes:
        layers: Quantized layers by name.
        checksums: Checksums by module.
        aliases: Keys of the state dict that share another key's tensor.
        half: Whether float tensors are kept in half precision; a tensor that
            does not fit into it stays as it is.
        producer: Version of the package that wrote it.
    """
    layers: Mapping[str, PackedLayer]
    checksums: Mapping[str, str]
    aliases: Mapping[str, str]
    half: bool
    producer: str

    def __post_init__(self) -> None:
        for table in (self.checksums, self.aliases):
            if not all(isinstance(text, str) for text in table.values()):
                raise ValueError('checksums and aliases are not text')
        if not isinstance(self.half, bool):
            raise ValueError(f'half={self.half!r}')


def write_metadata(manifest: Manifest, config: Mapping[str, Any],
                   meta: Mapping[str, Any]) -> Dict[str, str]:
    """Write the metadata of a packed file.

    Raises:
        LCQError: If the config or ``meta`` holds what is not plain data.
    """
    metadata = dict(
        format=FORMAT,
        version=str(VERSION),
        manifest=json.dumps(asdict(manifest), separators=(',', ':')),
        config=to_literal(config),
        meta=to_literal(meta))
    return dict(metadata, checksum=checksum_of_text(metadata))


def read_metadata(
        metadata: Mapping[str, str]
) -> Tuple[Manifest, Dict[str, Any], Dict[str, Any]]:
    """Read manifest, config and meta from the metadata of a packed file.

    Raises:
        LCQError: If it is of another or a newer format, or altered; the
            message does not name the file.
    """
    metadata = dict(metadata)
    if metadata.get('format') != FORMAT:
        raise LCQError('is not a packed checkpoint of lcq export')
    check_version(metadata, VERSION)
    if metadata.pop('checksum', None) != checksum_of_text(metadata):
        raise LCQError('is altered: its header does not fit its checksum')
    try:
        fields = json.loads(metadata['manifest'])
        layers = {
            name: PackedLayer(**dict(layer, shape=tuple(layer['shape'])))
            for name, layer in fields.pop('layers').items()
        }
        manifest = Manifest(layers=layers, **fields)
        config = from_literal(metadata['config'])
        meta = from_literal(metadata['meta'])
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError,
            RecursionError, MemoryError) as error:
        raise LCQError(f'is broken, its header cannot be read: {error!r}'
                       ) from None
    return manifest, config, meta


def checksums(tensors: Mapping[str, Tensor]) -> Dict[str, str]:
    """Compute the checksum of each module.

    Args:
        tensors: Tensors on the CPU, by name.
    """
    digests: Dict[str, Any] = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        digest = digests.setdefault(
            owner(name), hashlib.blake2b(digest_size=8))
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode(
            errors='surrogatepass'))
        digest.update(raw_bytes(tensor).numpy())
    return {module: digest.hexdigest() for module, digest in digests.items()}


def owner(key: str) -> str:
    """Name the module that a key belongs to, a layer for its quantizers."""
    return re.sub(r'\.(weight|act)_quantizer(\.level\d+_quantizer)?$', '',
                  key.rpartition('.')[0])


def raw_bytes(tensor: Tensor) -> Tensor:
    """View a tensor's bytes, uint8, shape (N)."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

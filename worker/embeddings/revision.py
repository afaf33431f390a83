"""The revision of a model: a digest of all that an embedding depends on besides the image."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import torch
import transformers
from torch import Tensor

from maskfleet.worker.sam.model import SegmentationModel

#: Of what this program does to an image before and after the network; to be raised when that changes.
_FORMAT = 1


def embedding_revision(model: SegmentationModel) -> str:
    """Return the revision in hex: another for other weights or preprocessing, and for an encoder that rounds otherwise.

    The weights count as they were loaded, wherever they came from.  Rounding depends on the encoder's precision, on the
    kind of device (a CPU, a GPU) and on whether it is compiled.  Different models of a kind share a revision.
    """
    family = model.family
    rounding = [str(family.encoder_dtype), model.device.type, family.encoder_is_compiled]
    settings = [_FORMAT, transformers.__version__, family.network_class, *rounding]
    digest = hashlib.sha256(json.dumps([*settings, asdict(family.preprocessing)]).encode())
    for name, weight in sorted(family.network.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(bytes_of(weight))
    return digest.hexdigest()[:32]


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's values as bytes, in its own order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

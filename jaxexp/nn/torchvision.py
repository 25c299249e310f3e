"""PyTorch and torchvision, imported when they are needed and not before."""

import importlib.util
from pathlib import Path
from types import ModuleType

from jaxexp.base.errors import UserError

INSTALL = "pip install 'jaxexp[vision]'"
_kept: list[object] = []  # operators are gone with the library that declares them


def import_torch() -> ModuleType:
    """PyTorch; raises UserError where it is missing."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"PyTorch cannot be imported ({error}): {INSTALL}") from error
    return torch


def import_torchvision() -> ModuleType:
    """torchvision; raises UserError where it or PyTorch is missing or the two do not fit."""
    torch = import_torch()
    _declare_operators(torch)
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise UserError(f"torchvision cannot be imported ({error}): {INSTALL}") from error
    found: ModuleType = torchvision
    return found


def _declare_operators(torch: ModuleType) -> None:
    """Declare what torchvision's Python expects of its extension, where that does not load.

    The usual wheel's extension wants CUDA libraries, which a CPU-only PyTorch comes without. Models
    and transforms call no operator of it, but importing torchvision names two.
    """
    spec = importlib.util.find_spec("torchvision")
    if _kept or spec is None or spec.origin is None:
        return
    try:
        for extension in sorted(Path(spec.origin).parent.glob("_C*.*")):
            torch.ops.load_library(str(extension))  # torchvision's own import finds it loaded
            return
    except OSError:
        pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)

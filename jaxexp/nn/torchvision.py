"""PyTorch and torchvision, imported only when they are needed."""

import importlib.util
from pathlib import Path
from types import ModuleType

from jaxexp.base.errors import UserError

INSTALL = "pip install 'jaxexp[vision]'"
_kept: list[object] = []  # operators disappear with the library object that declares them


def import_torch() -> ModuleType:
    """Import PyTorch; raises UserError if it cannot be imported."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"PyTorch cannot be imported ({error}): {INSTALL}") from error
    return torch


def import_torchvision() -> ModuleType:
    """Import torchvision; raises UserError if it or PyTorch is missing or they do not match."""
    torch = import_torch()
    _declare_operators(torch)
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise UserError(f"torchvision cannot be imported ({error}): {INSTALL}") from error
    found: ModuleType = torchvision
    return found


def _declare_operators(torch: ModuleType) -> None:
    """Declare the operators that torchvision expects of its extension, if that does not load.

    The extension in the usual wheel needs CUDA libraries, which a CPU-only PyTorch lacks. Models
    and transforms call none of its operators, but importing torchvision refers to two of them.
    """
    spec = importlib.util.find_spec("torchvision")
    if _kept or spec is None or spec.origin is None:
        return
    try:
        for extension in sorted(Path(spec.origin).parent.glob("_C*.*")):
            torch.ops.load_library(str(extension))  # torchvision's own import will find it loaded
            return
    except OSError:
        pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)

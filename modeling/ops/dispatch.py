"""Which form of a recurrence runs where: the only file that knows of devices, tracing and optional kernels.

Every recurrence is written several times and all forms agree to rounding error: the choice is one of speed.

======================  ==========================================================================================
``"step"``              one token: decoding
``"chunkwise"``         plain PyTorch over all chunks at once: exported programs, accelerators
``"fast"``              a loop over cache-sized blocks with its own backward: the processor
``"sequential"``        the recurrence read aloud, one token after the other; never chosen, only asked for
``"parallel"``          the quadratic form; never chosen, only asked for
======================  ==========================================================================================

The environment variable ``NORIA_KERNELS``, read once at import, switches optional paths off: ``torch`` forbids kernels
of other packages, ``plain`` forbids also the hand-written loops, so that autograd sees every operation.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from importlib import import_module

import torch

FORMS = ("sequential", "parallel", "chunkwise", "fast")

_KERNELS = os.environ.get("NORIA_KERNELS") or "auto"
_forced: str | None = None


@contextmanager
def forced_form(form: str | None) -> Iterator[None]:
    """Make every recurrence inside the ``with`` block use ``form``; ``None`` gives the choice back to dispatch.

    An explicit ``form=`` argument of a recurrence still wins. Raises ValueError for an unknown form.
    """
    global _forced
    before, _forced = _forced, None if form is None else check_form(form)
    try:
        yield
    finally:
        _forced = before


def check_form(form: str) -> str:
    """Return ``form`` if it is one of ``FORMS``; raise ValueError otherwise."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)} or None, not {form!r}")
    return form


def choose_form(device: torch.device, length: int) -> str:
    """Return the form for ``length`` tokens on ``device``: one of ``FORMS``, or ``"step"`` for a single token."""
    if _KERNELS not in ("auto", "torch", "plain"):
        raise ValueError(f"the environment variable NORIA_KERNELS must be torch or plain, not {_KERNELS!r}")
    if _forced is not None:
        return _forced
    if length == 1:
        return "step"
    if device.type != "cpu" or _KERNELS == "plain" or is_tracing_graph():
        return "chunkwise"
    return "fast"


def is_tracing_graph() -> bool:
    """Return whether a portable graph is recorded (torch.export, ONNX, TorchScript): no place for own operators."""
    exporting = getattr(torch.compiler, "is_exporting", None)
    return bool(exporting and exporting()) or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def library_name(module: str) -> str:
    """Where the operators of ``module`` (its ``__name__``) are registered.

    Each copy of this code has a place of its own: an operator stays bound to the file that registered it.
    """
    return "noria_" + sha256(module.encode()).hexdigest()[:16]


def optional_kernel(module: str, name: str, device: torch.device) -> Callable | None:
    """Return function ``name`` of the optional package's ``module``, or None where it is absent or may not be used.

    Kernels of other packages run eagerly on CUDA only: inside a compiled or exported graph they would be opaque.
    """
    if device.type != "cuda" or _KERNELS != "auto" or _forced is not None:
        return None
    return None if torch.compiler.is_compiling() or is_tracing_graph() else _import_kernel(module, name)


@cache
def _import_kernel(module: str, name: str) -> Callable | None:
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, RuntimeError):
        return None

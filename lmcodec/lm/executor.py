"""Which program computes a language model's steps: the kernel, NumPy, or torch on a device.

All give the same integers, so that no byte of a frame depends on the choice. Importing this module loads none
of them.
"""

from __future__ import annotations

from typing import Any

from lmcodec.errors import ConfigError, reason_of

KERNEL = "kernel"
# Names, and of the torch executors their devices.
EXECUTORS: dict[str, str | None] = {KERNEL: None, "numpy": None, "torch": "cpu", "torch-cuda": "cuda"}
# What the command line calls devices.
OF_DEVICE = {"cpu": KERNEL, "cuda": "torch-cuda"}


def checked(name: Any) -> str:
    """`name`, if it is an executor's; whether that can run here is not asked.

    Raises:
        TypeError, ValueError
    """
    if not isinstance(name, str):
        raise TypeError(f"executor must be a str, not {type(name).__name__}")
    if name not in EXECUTORS:
        raise ValueError(f"executor must be {', '.join(EXECUTORS)}, not {name!r}")
    return name


def require(name: str) -> None:
    """Refuse an executor that cannot run here.

    Raises:
        ConfigError: torch is not installed, or finds no such device.
    """
    device = EXECUTORS[name]
    if device is None:
        return
    try:
        import torch
    except Exception as error:  # it may be there and not load
        missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        why = "which is not installed" if missing else f"which cannot be loaded ({reason_of(error)})"
        raise ConfigError(f"executor {name} needs PyTorch, {why}; pip install 'lmcodec[torch]'") from None
    if device == "cuda":
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of drivers; what follows says all that matters
            n_device = torch.cuda.device_count()
        if not n_device:
            raise ConfigError(
                f"executor {name} needs a CUDA device, and PyTorch {torch.__version__} finds none here"
            )

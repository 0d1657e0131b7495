"""What runs here: versions, driver and GPU, as a bug report needs them."""

import importlib
import platform

import torch

from kernels._version import __version__


def versions(device: torch.device) -> dict[str, str]:
    """By name; of the GPU where `device` is one."""
    found = {
        "lenet-kernels": __version__,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "torch": str(torch.__version__),
        "triton": version("triton"),
        "cupy": version("cupy"),
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found |= {
            "GPU": torch.cuda.get_device_name(device),
            "compute capability": f"{major}.{minor}",
            "CUDA runtime": torch.version.cuda or f"HIP {torch.version.hip}",
            "CUDA driver": driver(),
        }
    return found


def version(package: str) -> str:
    """Of an importable package; "not installed", or why it cannot be imported."""
    try:
        return importlib.import_module(package).__version__
    except ModuleNotFoundError:
        return "not installed"
    except ImportError as error:
        return str(error).strip().partition("\n")[0]


def driver() -> str:
    """The newest CUDA that the driver supports; torch for ROCm does not ask for it."""
    if torch.version.cuda is None:
        return "none"
    number = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    return f"supports {number // 1000}.{number % 1000 // 10}"

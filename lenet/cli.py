"""The command line's way in and out: one clear line for what a user can mend, and the exit status."""

import gc
import sys

from lenet.messages import LenetError, print_error, rank

EXTRAS = {
    "lenet": {"matplotlib", "PIL", "pooch", "scipy", "sklearn", "tomlkit", "tqdm", "typer"},
    "export": {"onnx", "onnx_ir", "onnxruntime", "onnxscript", "safetensors"},
    "tune": {"optuna", "sqlalchemy"},
    "tensorboard": {"tensorboard"},
}


def main(arguments: list[str] | None = None) -> int:
    """Run `lenet` with `arguments`, by default the process's; 0 for success, 2 for bad input, 130 after Ctrl-C."""
    status = status_of(arguments)
    if rank() is not None:
        gc.collect()  # what holds the process group, so that gloo's threads end before Python does
    return status


def status_of(arguments: list[str] | None) -> int:
    try:
        from lenet.commands import call

        return call(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        if rank() in (None, "0"):
            print("lenet: interrupted", file=sys.stderr)
        return 130
    except LenetError as error:
        message = str(error)
    except OSError as error:
        message = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
    except ImportError as error:
        if not (message := what_is_missing(error)):
            raise
    print_error(message)
    return 2


def what_is_missing(error: ImportError) -> str:
    """What a user has to install, or what kernels.clash says about our own files; "" for other errors."""
    if error.name == "lenet-kernels":
        return str(error)
    extra = next((extra for extra, names in EXTRAS.items() if error.name in names), None)
    return "" if extra is None else f"{error.name} is missing: pip install 'lenet-kernels[{extra}]'"

"""The options of the command line: what each means, where its value is checked, what it is by default."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from lenet.settings import Settings

OUT, TUNE_OUT = Path("lenet-run"), Path("lenet-tune")
CHECKPOINT = OUT / "checkpoint.pt"
BATCH_SIZE, MOMENTUM = 64, 0.9
SCHEDULE: Literal["one-cycle", "constant"] = "one-cycle"
DATA_HELP = "digits (scikit-learn's, offline), mnist, fashion-mnist, or a folder with the four IDX files."


def config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        from lenet.settings import use_config

        use_config(ctx, path)
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        is_eager=True,
        callback=config_file,
        help="TOML file with options, as `lenet tune` writes it; those on the command line go before.",
    ),
]
DataName = Annotated[str, typer.Option(metavar="NAME|DIR", help=DATA_HELP)]
DataDir = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Folder with the four files of mnist or fashion-mnist.",
        show_default="$MNIST_DIR or $FASHION_MNIST_DIR, else downloaded once",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images a step.")]
LearningRate = Annotated[
    float | None,
    typer.Option(
        min=0, help="Learning rate; with one-cycle the highest.", show_default="0.5 for mse, 0.05 for cross-entropy"
    ),
]
Momentum = Annotated[float, typer.Option(min=0, help="Momentum of gradient descent.")]
Schedule = Annotated[
    Literal["one-cycle", "constant"],
    typer.Option(help="Whether the learning rate rises and falls once over the run or stays."),
]
LossName = Annotated[
    Literal["mse", "cross-entropy"], typer.Option(help="Mean squared error to one-hot targets, or cross-entropy.")
]
Amp = Annotated[
    Literal["off", "bf16", "fp16"],
    typer.Option(help="Mixed precision: convolutions and layers in bfloat16, or in float16 with scaled gradients."),
]
CudaGraph = Annotated[
    bool, typer.Option("--cuda-graph", help="Record the training step once, and replay it as one CUDA graph.")
]
NoFused = Annotated[
    bool, typer.Option("--no-fused", help="Take steps of one operation after the other where fused ones would do.")
]
Backend = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Whose kernels compute: numpy, triton or cupy.",
        show_default="triton on a GPU, else numpy",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda, cuda:1 ...", show_default="cuda if there is a GPU, else cpu"),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out with its own settings; without one, begin it.")
]
New = Annotated[
    bool, typer.Option("--new", help="Where --out holds a run, take the next free folder: OUT-2, OUT-3 ...")
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write the figures of every epoch for TensorBoard, into --out.")
]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"], typer.Option(help="How much of what happens is said on stderr.")
]
Checkpoint = Annotated[Path, typer.Option(metavar="FILE", help="The checkpoint.pt that `lenet train` left.")]


def epochs(of: str) -> Any:
    """The option --epochs, for passes over the images of a training."""
    return typer.Option(min=1, help=f"Passes over the training images{of}.", show_default="20 for digits, else 4")


def seed(help: str) -> Any:
    return typer.Option(min=0, max=2**32 - 1, help=help)


def folder(help: str) -> Any:
    return typer.Option(metavar="DIR", help=help)


def settings_for(
    data: str, data_dir: str | None, epochs: int | None, loss: str, lr: float | None = None, **others: Any
) -> "Settings":
    """The settings that the options of `lenet train` mean."""
    from lenet.data import SOURCES
    from lenet.settings import Settings

    return Settings(
        data=data if data in ("digits", *SOURCES) else str(Path(data).resolve()),
        data_dir=str(Path(data_dir).resolve()) if data_dir else None,
        epochs=epochs or (20 if data == "digits" else 4),
        lr=lr if lr is not None else (0.5 if loss == "mse" else 0.05),
        loss=loss,
        **others,
    )


def given(ctx: typer.Context, names: set[str]) -> set[str]:
    """Which of the options stand on the command line, or in the file of --config."""
    return {
        name
        for name in names
        if (source := ctx.get_parameter_source(name)) and source.name in ("COMMANDLINE", "DEFAULT_MAP")
    }

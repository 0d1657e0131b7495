"""The commands `lenet train`, `tune`, `evaluate`, `predict`, `export` and `info`.

Each imports what it needs when it runs, so that --help answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lenet.errors import LenetError

if TYPE_CHECKING:
    from lenet.settings import Settings

app = typer.Typer(
    help="Train and use LeNet, a small convolutional network, on hand-written kernels.",
    epilog="Example: `lenet train`, then `lenet predict seven.png`",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

OUT, TUNE_OUT = Path("lenet-run"), Path("lenet-tune")
BATCH_SIZE, MOMENTUM = 64, 0.9
SCHEDULE: Literal["one-cycle", "constant"] = "one-cycle"
DATA_HELP = "digits (scikit-learn's, offline), mnist, fashion-mnist, or a folder with the four IDX files."

DataDir = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Folder with the four files of mnist or fashion-mnist.",
        show_default="$MNIST_DIR or $FASHION_MNIST_DIR, else downloaded once",
    ),
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


def config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        from lenet.config import use_config

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
Checkpoint = Annotated[Path, typer.Option(metavar="FILE", help="The checkpoint.pt that `lenet train` left.")]


@app.command(epilog="Example: `lenet train --data mnist --epochs 4 --out mnist-run`")
def train(
    ctx: typer.Context,
    config: Config = None,
    data: Annotated[str, typer.Option(metavar="NAME|DIR", help=DATA_HELP)] = "digits",
    data_dir: DataDir = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training images.", show_default="20 for digits, else 4"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = BATCH_SIZE,
    lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Learning rate; with one-cycle the highest.",
            show_default="0.5 for mse, 0.05 for cross-entropy",
        ),
    ] = None,
    momentum: Annotated[float, typer.Option(min=0, help="Momentum of gradient descent.")] = MOMENTUM,
    schedule: Annotated[
        Literal["one-cycle", "constant"],
        typer.Option(help="Whether the learning rate rises and falls once over the run or stays."),
    ] = SCHEDULE,
    loss: Annotated[
        Literal["mse", "cross-entropy"], typer.Option(help="Mean squared error to one-hot targets, or cross-entropy.")
    ] = "mse",
    amp: Annotated[
        Literal["off", "bf16", "fp16"],
        typer.Option(help="Mixed precision: convolutions and layers in bfloat16, or in float16 with scaled gradients."),
    ] = "off",
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Record the training step once, and replay it as one CUDA graph.")
    ] = False,
    backend: Backend = None,
    device: Device = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides first weights and order of images.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for checkpoint, metrics and pictures.")] = OUT,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out with its own settings; without one, begin it."),
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write the figures of every epoch for TensorBoard, into --out.")
    ] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="How much of what happens is said on stderr.")
    ] = "warning",
) -> None:
    """Train the network and measure it.

    Leaves in --out: checkpoint.pt, metrics.jsonl (one line an epoch; accuracies from 0 to 1), curves.png,
    confusion.png and filters.png. The same seed on the same machine gives the same weights, bit for bit, also if the
    run was stopped (Ctrl-C) or killed at any moment and continued with --resume.
    """
    from lenet.board import Board
    from lenet.checkpoint import load_checkpoint, settings_of
    from lenet.compute import computing
    from lenet.data import load
    from lenet.graph import GraphedStep, check_recordable
    from lenet.logs import log_to_stderr
    from lenet.plots import save_pictures
    from lenet.processes import joined
    from lenet.run import Run
    from lenet.settings import resumed
    from lenet.step import Step
    from lenet.train import train as train_run

    log_to_stderr(log_level)
    settings = settings_for(
        data=data,
        data_dir=data_dir,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        schedule=schedule,
        loss=loss,
        seed=seed,
        amp=amp,
    )
    path = out / "checkpoint.pt"
    with joined(device) as processes, computing(backend, processes.device(device), settings.amp) as where:
        if processes.size > batch_size:
            raise LenetError(f"--batch-size {batch_size}: there are {processes.size} processes, which share each batch")
        begun = processes.of_first(path.exists)
        if begun and not resume:
            raise LenetError(
                f"{out} already holds a run: continue it with --resume, or choose another folder with --out"
            )
        checkpoint = processes.of_first(lambda: load_checkpoint(path)) if begun else None
        if checkpoint:
            given = {name for name in vars(settings) if is_given(ctx, name)}
            settings = resumed(settings_of(checkpoint, path), checkpoint["epoch"], settings, given)
        if cuda_graph:
            check_recordable(where, processes, settings.amp)
        dataset = processes.in_turn(lambda: load(settings.data, settings.data_dir)).to(where)
        run = Run(settings, len(dataset.train_labels), where)
        if checkpoint:
            run.restore(checkpoint, path)
        step = (GraphedStep if cuda_graph else Step)(run, processes)
        board = None
        if processes.first:
            out.mkdir(parents=True, exist_ok=True)
            if resume and not checkpoint:
                print(f"{out} holds no run yet: beginning one")
            if tensorboard:
                board = Board(out, run.epoch)
        train_run(run, dataset, out, step, board)
        if processes.first:
            save_pictures(out, run, dataset)
            accuracy = run.history[-1]["test_accuracy"]
            print(f"test accuracy {accuracy:.2%} after {run.epoch} epochs; results are in {out}")


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


def is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")  # the latter: in the file of --config


@app.command(epilog="Example: `lenet tune`, then `lenet train --config lenet-tune/best.toml`")
def tune(
    data: Annotated[str, typer.Option(metavar="NAME|DIR", help=DATA_HELP)] = "digits",
    data_dir: DataDir = None,
    trials: Annotated[int, typer.Option(min=1, help="Trainings in all, those cut short included.")] = 50,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training images a trial.", show_default="20 for digits, else 4"),
    ] = None,
    loss: Annotated[
        Literal["mse", "cross-entropy"], typer.Option(help="Mean squared error to one-hot targets, or cross-entropy.")
    ] = "mse",
    backend: Backend = None,
    device: Device = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of every training; the choice of trials varies.")
    ] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the study and what it found.")] = TUNE_OUT,
) -> None:
    """Look for the learning rate, momentum, batch size and schedule that train best.

    Leaves in --out: best.toml for `lenet train --config`, study.db, study.png and parameters.png. A fifth of the
    training images is held out to judge the trials; the test set is not looked at. The same command continues a study
    that was stopped or killed, and several processes may work on one.
    """
    from lenet.compute import computing
    from lenet.data import load
    from lenet.tune import tune as search

    settings = settings_for(
        data=data,
        data_dir=data_dir,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        momentum=MOMENTUM,
        schedule=SCHEDULE,
        loss=loss,
        seed=seed,
    )
    with computing(backend, device) as where:
        dataset = load(settings.data, settings.data_dir).to(where)
        out.mkdir(parents=True, exist_ok=True)
        study = search(settings, dataset, where, trials, out)
    print(f"best: trial {study.best_trial.number}, validation accuracy {study.best_value:.2%}; {out}/best.toml has it")


@app.command(epilog="Example: `lenet evaluate --checkpoint mnist-run/checkpoint.pt`")
def evaluate(
    checkpoint: Checkpoint = OUT / "checkpoint.pt",
    data: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help=DATA_HELP, show_default="what the network was trained on")
    ] = None,
    data_dir: DataDir = None,
    backend: Backend = None,
    device: Device = None,
) -> None:
    """Measure a trained network on a test set.

    Prints loss, accuracy, a table of the classes and the confusion matrix: a row for each true class, a column for
    each predicted one.
    """
    from sklearn.metrics import classification_report, confusion_matrix

    from lenet.checkpoint import load_trained
    from lenet.compute import computing
    from lenet.data import class_names, load
    from lenet.evaluate import loss_and_accuracy, scores_of

    with computing(backend, device) as where:
        model, settings = load_trained(checkpoint, where)
        if data is None:
            data, data_dir = settings.data, data_dir or settings.data_dir
        dataset = load(data, data_dir).to(where)
        scores = scores_of(model, dataset.test_images)
        loss, accuracy = loss_and_accuracy(scores, dataset.test_labels, settings.loss)
    print(f"{len(scores)} test images of {data}: loss {loss:.4f} ({settings.loss}), accuracy {accuracy:.2%}\n")
    labels, predicted = dataset.test_labels.cpu(), scores.argmax(1).cpu()
    every = range(10)
    names = class_names(data)
    print(classification_report(labels, predicted, labels=every, target_names=names, digits=3, zero_division=0))
    print(confusion_matrix(labels, predicted, labels=every))


@app.command(epilog="Example: `lenet predict seven.png photo.jpg`")
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files with one digit each.")],
    checkpoint: Checkpoint = OUT / "checkpoint.pt",
    backend: Backend = None,
    device: Device = None,
) -> None:
    """Say which digit is on each image, with the probability of every class.

    Any size and any kind of image, dark on light or light on dark, on a plain background.
    """
    import torch

    from lenet.checkpoint import load_trained
    from lenet.compute import computing
    from lenet.data import class_names
    from lenet.evaluate import scores_of
    from lenet.image import load_image
    from lenet.losses import LOSSES

    digits = torch.stack([load_image(path) for path in images])
    with computing(backend, device) as where:
        model, settings = load_trained(checkpoint, where)
        rows = LOSSES[settings.loss].probabilities(scores_of(model, digits.to(where))).tolist()
    names = class_names(settings.data)
    for path, row in zip(images, rows, strict=True):
        print(f"{path}: {names[row.index(max(row))]}")
        print("  " + "  ".join(f"{name} {probability:.1%}" for name, probability in zip(names, row, strict=True)))


@app.command(epilog="Example: `lenet export lenet.onnx`")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to write; it ends in .onnx or .safetensors.")],
    checkpoint: Checkpoint = OUT / "checkpoint.pt",
) -> None:
    """Write a trained network as ONNX or as safetensors.

    The ONNX network takes any number of images and consists of standard operators; its scores are compared with ours
    before the file is put in place. `lenet evaluate` and `predict` read safetensors too.
    """
    from lenet.export import export as write

    write(checkpoint, file)
    print(f"the network of {checkpoint} is in {file}")


@app.command(epilog="Example: `lenet info`")
def info() -> None:
    """Show versions, backends, devices and the network."""
    import platform

    import numpy
    import torch

    import kernels
    from lenet.model import LeNet

    print(
        f"lenet-kernels {kernels.__version__}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {numpy.__version__}"
    )
    for backend in kernels.backends():
        print(f"backend {backend.name}: {'available' if backend.available else backend.why_not}")
    print(f"device cpu: {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        print(f"device cuda:{index}: {torch.cuda.get_device_name(index)}")
    model = LeNet()
    print(model)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")


def run(arguments: list[str]) -> int:
    """Run the command that `arguments` name; the exit status. LenetError: they name none, or bad ones."""
    try:
        status = app(arguments or ["--help"], prog_name="lenet", standalone_mode=False) or 0
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise LenetError(error.format_message()) from error  # a usage error: click's, or Typer's own since 0.29
    if status == 130:  # what newer versions of Typer make of Ctrl-C
        raise KeyboardInterrupt
    return status

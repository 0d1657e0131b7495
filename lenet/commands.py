"""The commands `lenet train`, `tune`, `speedrun`, `evaluate`, `predict`, `export` and `info`.

Each imports what it needs when it runs, so that --help answers at once.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from lenet import options as opt
from lenet.messages import LenetError, print_error

SURE = 0.4  # by how much the probability of the answer must exceed the next

app = typer.Typer(
    help="Train and use LeNet, a small convolutional network, on hand-written kernels.",
    epilog="Example: `lenet train`, then `lenet predict seven.png`",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(asked: bool) -> None:
    if asked:
        print(f"lenet-kernels {version('lenet-kernels')}")
        raise typer.Exit


@app.callback()
def options_of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: `lenet train --data mnist --epochs 4 --out mnist-run`")
def train(
    ctx: typer.Context,
    config: opt.Config = None,
    data: opt.DataName = "digits",
    data_dir: opt.DataDir = None,
    epochs: Annotated[int | None, opt.epochs("")] = None,
    batch_size: opt.BatchSize = opt.BATCH_SIZE,
    lr: opt.LearningRate = None,
    momentum: opt.Momentum = opt.MOMENTUM,
    schedule: opt.Schedule = opt.SCHEDULE,
    loss: opt.LossName = "mse",
    amp: opt.Amp = "off",
    cuda_graph: opt.CudaGraph = False,
    no_fused: opt.NoFused = False,
    backend: opt.Backend = None,
    device: opt.Device = None,
    seed: Annotated[int, opt.seed("Decides first weights and order of images.")] = 0,
    out: Annotated[Path, opt.folder("Folder for checkpoint, metrics and pictures.")] = opt.OUT,
    resume: opt.Resume = False,
    new: opt.New = False,
    tensorboard: opt.TensorBoard = False,
    log_level: opt.LogLevel = "warning",
) -> None:
    """Train the network and measure it.

    Leaves in --out: checkpoint.pt, metrics.jsonl (one line an epoch; accuracies from 0 to 1), curves.png,
    confusion.png and filters.png. The same seed on the same machine gives the same weights, bit for bit, also if the
    run was stopped (Ctrl-C) or killed at any moment and continued with --resume.
    """
    from lenet.compute import computing
    from lenet.data import check_name, load
    from lenet.files import unused
    from lenet.fused import best_step
    from lenet.graph import GraphedStep, check_recordable
    from lenet.messages import log_to_stderr
    from lenet.plots import Board, save_pictures
    from lenet.processes import joined
    from lenet.run import Run, load_checkpoint, settings_of
    from lenet.settings import resumed
    from lenet.train import Step, train_epochs

    log_to_stderr(log_level)
    settings = opt.settings_for(
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
    check_name(data, data_dir)
    if new and resume:
        raise LenetError("--resume goes on with the run in --out, --new takes another folder: choose one of them")
    with joined(device) as processes, computing(backend, processes.device(device), settings.amp) as where:
        if processes.size > batch_size:
            raise LenetError(f"--batch-size {batch_size}: there are {processes.size} processes, which share each batch")
        if new:
            out = processes.of_first(lambda: unused(out, "checkpoint.pt"))
        path = out / "checkpoint.pt"
        begun = processes.of_first(path.exists)
        if begun and not resume:
            raise LenetError(
                f"{out} already holds a run: go on with it (--resume), or begin another in a folder you name "
                "(--out DIR) or in the next that is free (--new)"
            )
        checkpoint = processes.of_first(lambda: load_checkpoint(path)) if begun else None
        if checkpoint:
            given = opt.given(ctx, set(vars(settings)))
            settings = resumed(settings_of(checkpoint, path), checkpoint["epoch"], settings, given)
        if cuda_graph:
            check_recordable(where, processes, settings.amp)
        dataset = processes.in_turn(lambda: load(settings.data, settings.data_dir)).to(where)
        run = Run(settings, len(dataset.train_labels), where)
        if checkpoint:
            run.restore(checkpoint, path)
        if cuda_graph:
            step: Step = GraphedStep(run, processes)
        else:
            step = Step(run, processes) if no_fused else best_step(run, processes)
        show = None
        if processes.first:
            out.mkdir(parents=True, exist_ok=True)
            if resume and not checkpoint:
                print(f"{out} holds no run yet: beginning one")
            if tensorboard:
                show = Board(out, run.epochs_done).add
        train_epochs(run, dataset, out, step, show)
        if processes.first:
            save_pictures(out, run, dataset)
            accuracy = run.history[-1]["test_accuracy"]
            print(f"test accuracy {accuracy:.2%} after {run.epochs_done} epochs; results are in {out}")


@app.command(epilog="Example: `lenet tune`, then `lenet train --config lenet-tune/best.toml`")
def tune(
    ctx: typer.Context,
    data: opt.DataName = "digits",
    data_dir: opt.DataDir = None,
    trials: Annotated[int, typer.Option(min=1, help="Trainings in all, those cut short included.")] = 50,
    epochs: Annotated[int | None, opt.epochs(" a trial")] = None,
    batch_size: opt.BatchSize = opt.BATCH_SIZE,
    lr: opt.LearningRate = None,
    momentum: opt.Momentum = opt.MOMENTUM,
    schedule: opt.Schedule = opt.SCHEDULE,
    loss: opt.LossName = "mse",
    backend: opt.Backend = None,
    device: opt.Device = None,
    seed: Annotated[int, opt.seed("Of every training; the choice of trials varies.")] = 0,
    out: Annotated[Path, opt.folder("Folder for the study and what it found.")] = opt.TUNE_OUT,
) -> None:
    """Look for the learning rate, momentum, batch size and schedule that train best.

    Those of them that are given stay as they are in every trial.
    Leaves in --out: best.toml for `lenet train --config`, study.db, study.png and parameters.png. A fifth of the
    training images is held out to judge the trials; the test set is not looked at. The same command continues a study
    that was stopped or killed, and several processes may work on one.
    """
    from lenet.compute import computing
    from lenet.data import load
    from lenet.tune import VARIED
    from lenet.tune import tune as search

    settings = opt.settings_for(
        data=data,
        data_dir=data_dir,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        schedule=schedule,
        loss=loss,
        seed=seed,
    )
    varied = set(VARIED) - opt.given(ctx, set(VARIED))
    with computing(backend, device) as where:
        dataset = load(settings.data, settings.data_dir).to(where)
        out.mkdir(parents=True, exist_ok=True)
        study = search(settings, dataset, where, trials, out, varied)
    print(f"best: trial {study.best_trial.number}, validation accuracy {study.best_value:.2%}; {out}/best.toml has it")


@app.command(epilog="Example: `lenet speedrun --data mnist --seeds 30`")
def speedrun(
    config: opt.Config = None,
    data: opt.DataName = "mnist",
    data_dir: opt.DataDir = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings, each with another seed.")] = 30,
    target: Annotated[float, typer.Option(min=0, max=1, help="The mean accuracy to reach on the test set.")] = 0.99,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 3,
    batch_size: opt.BatchSize = opt.BATCH_SIZE,
    lr: opt.LearningRate = None,
    momentum: opt.Momentum = opt.MOMENTUM,
    schedule: opt.Schedule = opt.SCHEDULE,
    loss: opt.LossName = "cross-entropy",
    amp: opt.Amp = "off",
    seed: Annotated[int, opt.seed("Of the first training; those after it have the next ones.")] = 0,
    backend: opt.Backend = None,
    device: opt.Device = None,
) -> None:
    """Time how long training takes to a mean accuracy over many seeds.

    Only the steps count: the data are on the device, the kernels compiled, and the test set waits until the clock
    has stopped. Nothing is written.
    """
    from lenet.compute import computing
    from lenet.data import load
    from lenet.speedrun import summary, trainings

    settings = opt.settings_for(
        data=data,
        data_dir=data_dir,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        schedule=schedule,
        loss=loss,
        amp=amp,
        seed=seed,
    )
    results = []
    with computing(backend, device) as where:
        for seconds, accuracy in trainings(settings, load(settings.data, settings.data_dir).to(where), where, seeds):
            results.append((seconds, accuracy))
            print(f"seed {seed + len(results) - 1}: {seconds:.3g} s, accuracy {accuracy:.2%}", flush=True)
    print(summary(results, target))


@app.command(epilog="Example: `lenet evaluate --checkpoint mnist-run/checkpoint.pt`")
def evaluate(
    checkpoint: opt.Checkpoint = opt.CHECKPOINT,
    data: Annotated[
        str | None, typer.Option(metavar="NAME|DIR", help=opt.DATA_HELP, show_default="what the network was trained on")
    ] = None,
    data_dir: opt.DataDir = None,
    backend: opt.Backend = None,
    device: opt.Device = None,
) -> None:
    """Measure a trained network on a test set.

    Prints loss, accuracy, a table of the classes and the confusion matrix: a row for each true class, a column for
    each predicted one.
    """
    from sklearn.metrics import classification_report, confusion_matrix

    from lenet.compute import computing
    from lenet.data import class_names, load
    from lenet.export import load_trained
    from lenet.train import loss_and_accuracy, scores_of

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
    checkpoint: opt.Checkpoint = opt.CHECKPOINT,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each image, one a line.")] = False,
    save_input: Annotated[
        Path | None, opt.folder("Folder for pictures of what the network sees, 32 x 32 pixels for each image.")
    ] = None,
    backend: opt.Backend = None,
    device: opt.Device = None,
) -> None:
    """Say which digit is on each image, with the probability of every class.

    Any size and any kind of image, dark on light or light on dark, also in uneven light. The answer is "not sure" where
    two classes are about as likely. An image without a digit, or with more than one object, and a file that cannot be
    read are named on stderr; the other images are answered, and the exit status is 2.
    """
    import json

    import torch

    from lenet.compute import computing
    from lenet.data import class_names
    from lenet.export import load_trained
    from lenet.image import as_picture, load_image
    from lenet.train import LOSSES, scores_of

    digits, errors = {}, {}
    for path in images:
        try:
            digits[path] = load_image(path)
        except LenetError as error:
            errors[path] = str(error)
            print_error(str(error))
    rows: list[list[float]] = []
    if digits:
        with computing(backend, device) as where:
            model, settings = load_trained(checkpoint, where)
            scores = scores_of(model, torch.stack(list(digits.values())).to(where))
            rows = LOSSES[settings.loss].probabilities(scores).tolist()
        names = class_names(settings.data)
    if save_input:
        save_input.mkdir(parents=True, exist_ok=True)
        for number, (path, digit) in enumerate(digits.items(), 1):
            as_picture(digit).save(save_input / f"{number}-{path.stem}.png")
    answers = dict(zip(digits, rows, strict=True))
    for path in images:
        if path in errors:
            if as_json:
                print(json.dumps({"image": str(path), "error": errors[path]}))
            continue
        row = dict(zip(names, answers[path], strict=True))
        first, second, *_ = sorted(row, key=row.__getitem__, reverse=True)
        sure = row[first] - row[second] >= SURE
        if as_json:
            print(json.dumps({"image": str(path), "class": first, "sure": sure, "probabilities": row}))
        else:
            print(f"{path}: {first}" if sure else f"{path}: not sure, {first} or {second}")
            print("  " + "  ".join(f"{name} {probability:.1%}" for name, probability in row.items()))
    if errors:
        raise typer.Exit(2)


@app.command(epilog="Example: `lenet export lenet.onnx`")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to write; it ends in .onnx or .safetensors.")],
    checkpoint: opt.Checkpoint = opt.CHECKPOINT,
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


def call(arguments: list[str]) -> int:
    """Call the command that `arguments` name; the exit status. LenetError: they name none, or bad ones."""
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

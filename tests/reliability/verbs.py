"""Verbs, flags, and the arguments of each verb."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.reliability.bad import Bad, Kind, folder, text
from tests.runs.made_runs import make_run


def _two_runs(here: Path) -> None:
    make_run(here / "runs" / "a", 0.5)
    make_run(here / "runs" / "b", 0.6, seed=1)


def _picture(here: Path) -> None:
    Image.new("RGB", (8, 8)).save(here / "a.png")


WORDS = Kind(
    "Words and flags",
    "refused with the closest valid word; no directory is left",
    (
        Bad("trian", "There is no verb 'trian'. Did you mean train"),
        Bad("--verbose", "'--verbose' is not a verb: put one first"),
        Bad("train alexnet_lrn", "Did you mean model=alexnet_lrn"),
        Bad("train --epochs 5", "There is no flag --epochs"),
        Bad("train --multirn", "There is no flag --multirn. Did you mean --multirun"),
        Bad("train --cfg", "expected one argument"),
        Bad("train --cfg everything", "invalid choice"),
        Bad("models alexnett", "There is no model 'alexnett'. Did you mean alexnet"),
        Bad("models alexnet caffenet", "'caffenet' is not KEY=VALUE"),
        Bad("models format=xml", "invalid format='xml': expected table or json"),
        Bad("models num_classes=0", "expected an integer >= 1"),
        Bad("models input_size=64", "input_size needs a network"),
        Bad("models alexnet input_size=8", "its 11x11 kernel does not fit"),
    ),
)

CHECKPOINT_VERBS = Kind(
    "evaluate, predict, figures, export",
    "refused before anything is computed; no directory is left",
    (
        Bad("evaluate", "ckpt is required: set ckpt=VALUE"),
        Bad("evaluate ckpt=[]", "invalid ckpt=[]: expected at least one checkpoint"),
        Bad("evaluate gone.ckpt", "ckpt=gone.ckpt: there is no such file or run directory"),
        Bad("evaluate empty", "empty has no checkpoints/best.ckpt", given=folder("empty")),
        Bad("evaluate x split=all", "expected one of auto, test, val, train"),
        Bad("evaluate x views=nine", "expected one of centre, flip, flip_translate, ten_crop, or null"),
        Bad("evaluate x logger=tensorboard", "evaluate logs to W&B or not at all"),
        Bad("evaluate x data.mean=[0]", "data.mean is fixed by the checkpoint: leave it out"),
        Bad("evaluate x model.input_size=9", "model.input_size is fixed by the checkpoint"),
        Bad("evaluate x batchsize=8", "There is no setting batchsize. Did you mean batch_size"),
        Bad("evaluate RUN data.rooot=x device=cpu", "The checkpoint's data set has no setting data.rooot"),
        Bad(
            "evaluate RUN data.val_size=0 split=val device=cpu",
            "split=val: the data has no val images, only train, test",
        ),
        Bad("predict x", "images is required: set images=VALUE"),
        Bad("predict x gone.jpg", "No image found in gone.jpg: pass a file, a folder, a pattern"),
        Bad("predict x empty", "No image found in empty", given=folder("empty")),
        Bad("predict x notes", "No image found in notes", "a folder with a text", text("notes/a.txt", "a")),
        Bad(
            "predict x -",
            "No image found in standard input",
            "`predict x -` with nothing on standard input",
        ),
        Bad(
            "predict x -",
            "No image found in standard input",
            "`predict x -` with names of files that are gone",
            entered="a.png\nb.png\n",
        ),
        Bad(
            "predict x a.png device=abacus", "device=abacus is not available: set device=cpu", given=_picture
        ),
        Bad("predict a.png a.png", "a.png cannot be read", given=_picture),
        Bad("figures x which=everything", "expected all, or some of [filters, top5"),
        Bad("figures x augment=flip", "augment is fixed by the checkpoint: leave it out"),
        Bad("export x format=tflite", "expected one of onnx, torch_export, safetensors"),
        Bad("export x format=safetensors preprocess=true", "format=safetensors contains only weights"),
        Bad("predict RUN a.png hydra.run.dir=RUN", "RUN holds a run already", given=_picture),
    ),
)

OTHER_VERBS = Kind(
    "compare, benchmark, dashboard, prepare",
    "refused before anything is read, measured or sent; no directory is left",
    (
        Bad("compare", "No runs given: try alexnet-exp compare outputs/runs"),
        Bad("compare gone", "gone: there is no such directory"),
        Bad("compare empty", "empty holds no training run", given=folder("empty")),
        Bad(
            "compare runs where=seed",
            "where='seed' cannot be read at 'seed': write KEY OP VALUE",
            given=_two_runs,
        ),
        Bad(
            "compare runs where=sed=1",
            "no run has a setting or metric sed. Did you mean seed",
            given=_two_runs,
        ),
        Bad(
            "compare runs where=seed>many",
            "invalid where=seed>many: expected a number after >",
            given=_two_runs,
        ),
        Bad("compare runs where=seed=7", "matches none of the 2 runs", given=_two_runs),
        Bad(
            "compare runs metric=test/topp1", "no run has logged it. Did you mean test/top1", given=_two_runs
        ),
        Bad("compare runs sort=speed", "sort=speed: no run has a setting or metric speed", given=_two_runs),
        Bad(
            "compare runs format=xml",
            "expected one of table, csv, markdown, json, or null",
            given=_two_runs,
        ),
        Bad("compare runs out=table.txt", "set format=csv, markdown or json", given=_two_runs),
        Bad("compare runs out=gone/table.csv", "gone/table.csv cannot be written", given=_two_runs),
        Bad("benchmark everything", "invalid what='everything': expected one of all, step"),
        Bad("benchmark lrn repeats=3", "run python benchmarks/lrn.py repeats=3"),
        Bad("benchmark step.layout=nhwc", "expected one of contiguous, channels_last, or a list of them"),
        Bad("benchmark data.batch_size=none", "invalid data.batch_size='none': expected"),
        Bad("benchmark ckpt=old.ckpt", "A benchmark starts a new run: leave out resume= and ckpt="),
        Bad("dashboard mine", "invalid project=mine: expected ENTITY/PROJECT"),
        Bad("dashboard me/mine parts=[menu]", "expected a list, each one of workspace, report"),
        Bad("dashboard me/mine parts=[]", "parts=[] selects nothing"),
        Bad("prepare", "data.root is required: set data.root=VALUE"),
        Bad("prepare data.root=photos", "Set either out=DIR_OR_URL for chunks, or cache=true"),
        Bad("prepare data.root=photos out=x cache=true", "for chunks, or cache=true for the cache"),
        Bad("prepare data=cifar10 data.root=x out=y", "expected one of folder, imagenet"),
        Bad("prepare data.root=x out=y quality=101", "expected an integer in [1, 100]"),
        Bad("prepare data.root=gone cache=true", "gone does not exist: set data.root to a folder of images"),
    ),
)

KINDS = (WORDS, CHECKPOINT_VERBS, OTHER_VERBS)

"""The Weights & Biases logger: one W&B run per run directory, also offline and after a resume."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import string
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from alexnet_exp.errors import UserError, in_one_line, shell_command
from alexnet_exp.tracking.environment import code_state, versions
from alexnet_exp.tracking.metrics_csv import FILE_NAME, metrics_row
from alexnet_exp.tracking.redact import redact
from alexnet_exp.tracking.run_reader import read_metrics
from alexnet_exp.tracking.wandb.internals import find_run_id, run_folders
from alexnet_exp.tracking.wandb.media import confusion_panels, image_panel, model_artifact, table
from alexnet_exp.tracking.wandb.mode import ModeChoice, base_url, choose_mode, forget_service, is_of_network

if TYPE_CHECKING:
    import numpy as np
    from wandb import Run, Settings

log = logging.getLogger(__name__)

INIT_SECONDS = 8.0  # probe, failed start and offline start together stay under 15 s
FINISH_SECONDS = 60.0
FINISH_UPLOAD_SECONDS = 600.0  # with a checkpoint of some hundred MB to send


class WandbTracker(Logger):
    """Lightning logger on `wandb.init`.

    Lightning's own WandbLogger hangs for 90 s without a network and lets the runs of a sweep mix. Ranks above
    0 and mode=disabled do nothing. `finish` ends the run; the trainer's `finalize` does not, since testing
    follows fitting.
    """

    def __init__(
        self,
        run_dir: Path,
        config: dict[str, Any],
        mode: str = "auto",
        project: str = "alexnet_exp",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        name: str | None = None,
        run_id: str | None = None,
        log_model: bool = False,
        save_code: bool = True,
    ) -> None:
        """Start the W&B run, or go on with the one in `run_dir`.

        Args:
            run_dir: the run directory; W&B's files go to `run_dir`/wandb.
            config: the resolved configuration, plain values; recorded once, without secrets.
            mode: auto, online, offline or disabled.
            project: W&B project.
            entity: user or team; None takes the account's own.
            group: name that the runs of a sweep share.
            tags: labels.
            notes: a longer text.
            name: name of the run; None takes the name of the run directory.
            run_id: 8 letters and digits; None takes the id found in `run_dir`, or else WANDB_RUN_ID or a new one.
            log_model: whether `log_checkpoint` keeps the file as an artifact.
            save_code: whether the uncommitted changes of the checkout are kept.

        Raises:
            UserError: if wandb is missing, or mode=online has no valid API key.
        """
        super().__init__()
        self._run_dir = Path(run_dir).absolute()
        self._project = project
        self._log_model = log_model
        self._run: Run | None = None
        self._behind = False  # a part before this one was killed
        self.url: str | None = None
        self.run_id = run_id or find_run_id(self._run_dir) or id_of_environment() or new_run_id()
        choice = ModeChoice("disabled", "not rank 0") if rank_zero_only.rank else choose_mode(mode)
        self.mode = choice.mode
        if self.mode != "disabled":
            about = {"entity": entity, "group": group, "notes": notes, "tags": list(tags) or None}
            self._start(choice, mode, redact({**about, "name": name or self._run_dir.name}))
            assert self._run is not None
            with self._recording():
                self._describe(self._run, config, save_code)

    def _describe(self, run: Run, config: dict[str, Any], save_code: bool) -> None:
        """Record what `run`, just begun, is to say of itself."""
        describe(run, config, save_code)

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self.run_id

    @property
    def save_dir(self) -> str:
        return str(self._run_dir)

    @property
    def run_dir_sync(self) -> Path | None:
        """Folder of this part of the run: what `wandb sync` takes."""
        folders = run_folders(self._run_dir, self.run_id)
        return folders[-1] if folders else None

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log nothing: the configuration went in at the start, whole."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._log(metrics_row(metrics, step))

    @rank_zero_only
    def truncate(self, step: int, num_rows: int | None = None) -> None:
        """Record the rows of metrics.csv once more where a part of the run was killed; of two records the later counts.

        Args:
            step: Unused, as num_rows: metrics.csv, which comes first, ends there.
        """
        if self._behind:
            for row in read_metrics(self._run_dir / FILE_NAME):
                self._log(row)
        self._behind = False

    def log_images(self, key: str, images: Sequence[tuple[Path | np.ndarray, str]]) -> None:
        """Log pictures, each with its caption, as the panel `key`: paths of png files or uint8 arrays."""
        if self._run is not None:
            self._log({key: image_panel(images)})

    def log_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; each row has one value per column."""
        if self._run is not None:
            self._log({key: table(columns, rows)})

    def log_confusion(self, matrix: np.ndarray, classes: Sequence[str]) -> None:
        """Log a confusion matrix (K, K) of counts (rows: true classes) with the names of its classes."""
        if self._run is not None:
            self._log(confusion_panels(matrix, classes))

    def log_splits(self, splits: Mapping[str, Any]) -> None:
        """Record what each split holds (data/identity.py) in the summary."""
        if self._run is not None:
            with self._recording():
                self._run.summary["splits"] = redact(dict(splits))

    def log_checkpoint(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Record a checkpoint in the summary and, with log_model, its file as the artifact model-ID.

        Args:
            path: the checkpoint; it must stay where it is until the run is synced.
            metadata: plain values, such as the epoch and the validation accuracy.
        """
        if self._run is None:
            return
        about = redact(dict(metadata))
        with self._recording():
            self._run.summary["checkpoint"] = {"file": Path(path).name, **about}
            if self._log_model:
                self._run.log_artifact(model_artifact(f"model-{self.run_id}", Path(path), about))

    def finish(self, exit_code: int = 0) -> None:
        """End the W&B run, within a minute (ten with a checkpoint to upload). A second call does nothing.

        Args:
            exit_code: 0 if the training ended well.
        """
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=exit_code)
            mark_ended(self.run_dir_sync)
        except (
            Exception
        ) as error:  # the results of the training are safe, and its own error must stay visible
            log.warning("W&B could not end the run (%r). To upload it later: %s", error, self._sync_command())

    def _log(self, row: Mapping[str, Any]) -> None:
        if self._run is not None:
            with self._recording():
                self._run.log(dict(row))

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Go on without W&B when its service dies: days of training are worth more than its curves."""
        try:
            yield
        except Exception as error:
            if not is_of_network(error):
                raise
            log.warning("W&B stopped recording (%s); %s goes on", in_one_line(error), FILE_NAME)
            self._run = None
            forget_service()

    def _start(self, choice: ModeChoice, requested: str, about: dict[str, Any]) -> None:
        """Begin the run as chosen, or offline if the server fails after all; say what came of it."""
        reason = self._start_online(requested, about) if self.mode == "online" else choice.reason
        if self._run is not None:
            return
        self.mode = "offline"
        try:
            self._run = self._init(self.mode, about)
        except Exception as error:
            if not is_of_network(error):
                raise
            said = in_one_line(error)
            raise UserError(f"W&B cannot begin a run ({said}): fix it, or train with logger=csv.") from error
        self._say_offline(reason)

    def _say_offline(self, reason: str) -> None:
        log.info("W&B offline (%s). To upload it later: %s", reason, self._sync_command())

    def _start_online(self, requested: str, about: dict[str, Any]) -> str:
        """Begin the run online; where the server or the way to it fails, return why.

        Raises:
            UserError: If the key is refused, and online was asked for.
        """
        from wandb.errors import AuthenticationError

        try:
            self._run = self._init("online", about)
        except Exception as error:
            if not is_of_network(error):
                raise
            said = in_one_line(error)
            refused = (
                isinstance(error, AuthenticationError) or "not logged in" in str(error) or "API key" in said
            )
            if refused and requested == "online":
                raise UserError(f"W&B refused the API key ({said}): `wandb login` sets another.") from error
            forget_service()  # it keeps the id of the run that failed
            return f"{base_url()} failed: {said}"
        self.url = self._run.url
        log.info("W&B online: %s", self.url)
        return ""

    def _init(self, mode: str, about: dict[str, Any]) -> Run:
        import wandb

        before = run_folders(self._run_dir, self.run_id)
        self._behind = any(map(was_killed, before))
        try:
            with _arguments_without_secrets():
                return wandb.init(
                    dir=str(self._run_dir),
                    project=self._project,
                    id=self.run_id,
                    mode="online" if mode == "online" else "offline",
                    resume="allow" if before else None,
                    reinit="finish_previous",  # else a run that somebody left open would take our metrics
                    settings=self._settings(),
                    **about,
                )
        except BaseException:
            for folder in set(run_folders(self._run_dir, self.run_id)) - set(before):
                shutil.rmtree(folder)  # an empty run under our id
            raise

    def _settings(self) -> Settings:
        import wandb

        return wandb.Settings(
            base_url=base_url(),
            console="off",
            silent=True,
            disable_git=True,  # code_state does it, bounded and without secrets
            save_code=False,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_UPLOAD_SECONDS if self._log_model else FINISH_SECONDS,
            finish_timeout_raises=True,  # else a network that went away would be told to nobody
        )

    def _sync_command(self) -> str:
        """Return the command that uploads every part of the run (a resumed one has several)."""
        return shell_command(["wandb", "sync", *map(str, run_folders(self._run_dir, self.run_id))])


X_AXES = {
    "train/*": "epoch",
    "val/*": "epoch",
    "test/*": "epoch",
    "train/loss_step": "step",
    "lr": "step",
    "images_per_second": "step",
}


def describe(run: Run, config: dict[str, Any], save_code: bool) -> None:
    """Record what is known before the first step, without secrets.

    Args:
        run: Just begun.
        config: The resolved configuration.
        save_code: Whether the uncommitted changes of the checkout are kept.
    """
    code = code_state()
    environment: dict[str, Any] = {**versions()}
    if code is not None:
        environment |= {"git_commit": code.commit, "git_dirty": code.dirty}
    run.config.update({**redact(config), "_environment": environment}, allow_val_change=True)
    if code is not None and code.diff and save_code:
        path = Path(run.dir) / "code.diff"
        path.write_text(code.diff, encoding="utf-8")
        run.save(str(path), base_path=run.dir, policy="now")
    for axis in ("epoch", "step"):
        run.define_metric(axis, hidden=True)
    for metric, axis in X_AXES.items():
        run.define_metric(metric, step_metric=axis)


_ENDED = "ended"  # an empty file beside what W&B writes: everything has arrived there


def new_run_id() -> str:
    """Return a W&B run id: 8 letters and digits, from the system's randomness, so that seeded runs differ."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def id_of_environment() -> str | None:
    """Return the id that WANDB_RUN_ID names: the agent of a W&B sweep gives its job one."""
    return os.environ.get("WANDB_RUN_ID") or None


def mark_ended(folder: Path | None) -> None:
    """Note that a part has come to its end."""
    if folder is not None:
        with contextlib.suppress(OSError):  # without the note its rows are recorded once more
            (folder / _ENDED).touch()


def was_killed(folder: Path) -> bool:
    """Say whether a part may lack what was logged last: W&B writes blocks of 32 KB, and a kill takes the open one."""
    return not (folder / _ENDED).exists()


@contextlib.contextmanager
def _arguments_without_secrets() -> Iterator[None]:
    """Hide secrets in the command line meanwhile: wandb records sys.argv as a run begins."""
    typed, sys.argv = sys.argv, redact(sys.argv)
    try:
        yield
    finally:
        sys.argv = typed

"""The Weights & Biases logger: one W&B run per run directory, online or offline, also when resumed."""

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

INIT_SECONDS = 8.0  # probe, failed online start and offline start together stay under 15 s
FINISH_SECONDS = 60.0
FINISH_UPLOAD_SECONDS = 600.0  # with a checkpoint of a few hundred MB


class WandbTracker(Logger):
    """Lightning logger on `wandb.init`.

    Lightning's own WandbLogger hangs for 90 s without a network, and mixes up the runs of a sweep. This one does
    nothing on ranks above 0 and with mode=disabled. `finish` ends the run; Lightning's `finalize` does not, because the
    test follows the fit.
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
        """Start the W&B run, or resume the one in `run_dir`.

        Args:
            run_dir: the run directory; W&B's files go to `run_dir`/wandb.
            config: the resolved configuration, plain values; logged once, redacted.
            mode: auto, online, offline or disabled.
            project: W&B project.
            entity: user or team; None: the account's default.
            group: shared by the runs of a sweep.
            tags: labels.
            notes: free text.
            name: name of the run; None: that of the run directory.
            run_id: 8 letters and digits; None: the ID found in `run_dir`, else WANDB_RUN_ID, else a new one.
            log_model: whether `log_checkpoint` uploads the file as an artifact.
            save_code: whether to save uncommitted changes of the checkout.

        Raises:
            UserError: if wandb is missing, or mode=online has no valid API key.
        """
        super().__init__()
        self._run_dir = Path(run_dir).absolute()
        self._project = project
        self._log_model = log_model
        self._run: Run | None = None
        self._behind = False  # an earlier part was killed, and may lack its last rows
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
        """Log what is known before the first step; a subclass has its own."""
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
        """The folder of the current part of the run, for `wandb sync`."""
        folders = run_folders(self._run_dir, self.run_id)
        return folders[-1] if folders else None

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the whole config was logged at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._log(metrics_row(metrics, step))

    @rank_zero_only
    def truncate(self, step: int, num_rows: int | None = None) -> None:
        """Log the rows of metrics.csv again if an earlier part was killed; for W&B the last value of a step wins.

        Args:
            step: Unused, like num_rows: the metrics.csv logger comes first and has truncated the file.
        """
        if self._behind:
            for row in read_metrics(self._run_dir / FILE_NAME):
                self._log(row)
        self._behind = False

    def log_images(self, key: str, images: Sequence[tuple[Path | np.ndarray, str]]) -> None:
        """Log (image, caption) pairs as the panel `key`; an image is the path of a png or a uint8 array."""
        if self._run is not None:
            self._log({key: image_panel(images)})

    def log_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; each row has one value per column."""
        if self._run is not None:
            self._log({key: table(columns, rows)})

    def log_confusion(self, matrix: np.ndarray, classes: Sequence[str]) -> None:
        """Log a confusion matrix (K, K) of counts, rows: true classes, with K class names."""
        if self._run is not None:
            self._log(confusion_panels(matrix, classes))

    def log_splits(self, splits: Mapping[str, Any]) -> None:
        """Record the identity of each split (data/identity.py) in the summary."""
        if self._run is not None:
            with self._recording():
                self._run.summary["splits"] = redact(dict(splits))

    def log_checkpoint(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Record a checkpoint in the summary and, with log_model, upload it as the artifact model-ID.

        Args:
            path: The checkpoint; it must not move until the run is synced.
            metadata: Plain values, such as epoch and validation accuracy.
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
            exit_code: 0 if the training succeeded.
        """
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=exit_code)
            mark_ended(self.run_dir_sync)
        except Exception as error:  # never fail a finished training, nor hide the error of a failed one
            log.warning(
                "W&B could not finish the run (%r). To upload it later: %s", error, self._sync_command()
            )

    def _log(self, row: Mapping[str, Any]) -> None:
        if self._run is not None:
            with self._recording():
                # Without step=, which W&B requires to increase: the x axes are columns of the row (X_AXES).
                self._run.log(dict(row))

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Continue without W&B if its service dies: days of training matter more than its curves."""
        try:
            yield
        except Exception as error:
            if not is_of_network(error):
                raise
            log.warning("W&B stopped recording (%s); %s continues", in_one_line(error), FILE_NAME)
            self._run = None
            forget_service()

    def _start(self, choice: ModeChoice, requested: str, about: dict[str, Any]) -> None:
        """Start the run as chosen, or offline if the server fails after all, and log which."""
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
            raise UserError(f"W&B cannot start a run ({said}): fix it, or train with logger=csv.") from error
        self._say_offline(reason)

    def _say_offline(self, reason: str) -> None:
        """Log that the run is offline; a subclass says what it adds to the run."""
        log.info("W&B offline (%s). To upload it later: %s", reason, self._sync_command())

    def _start_online(self, requested: str, about: dict[str, Any]) -> str:
        """Start the run online; if server or network fail, return the reason.

        Raises:
            UserError: If the key is rejected and mode=online was requested.
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
                raise UserError(f"W&B rejected the API key ({said}): `wandb login` sets another.") from error
            forget_service()  # it would reject the ID of the failed run as a duplicate
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
                    # "allow", not "must": a first part that was recorded offline may not be on the server.
                    resume="allow" if before else None,
                    reinit="finish_previous",  # else a run left open in this process would receive our metrics
                    settings=self._settings(),
                    **about,
                )
        except BaseException:  # also a Ctrl-C while wandb waits for the server
            for folder in set(run_folders(self._run_dir, self.run_id)) - set(before):
                shutil.rmtree(folder)  # an empty run with our ID
            raise

    def _settings(self) -> Settings:
        import wandb

        return wandb.Settings(
            base_url=base_url(),
            console="off",
            silent=True,
            disable_git=True,  # code_state does it, bounded and redacted
            save_code=False,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_UPLOAD_SECONDS if self._log_model else FINISH_SECONDS,
            finish_timeout_raises=True,  # else a lost connection would go unnoticed
        )

    def _sync_command(self) -> str:
        """Return the command that uploads every part of the run; a resumed run has several."""
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
    """Log what is known before the first step, redacted.

    Args:
        run: Just started.
        config: The resolved configuration.
        save_code: Whether to save uncommitted changes of the checkout.
    """
    code = code_state()
    environment: dict[str, Any] = {**versions()}
    if code is not None:
        environment |= {"git_commit": code.commit, "git_dirty": code.dirty}
    # allow_val_change: a run may be resumed with other settings, such as more epochs.
    run.config.update({**redact(config), "_environment": environment}, allow_val_change=True)
    if code is not None and code.diff and save_code:
        path = Path(run.dir) / "code.diff"
        path.write_text(code.diff, encoding="utf-8")
        run.save(str(path), base_path=run.dir, policy="now")
    for axis in ("epoch", "step"):
        run.define_metric(axis, hidden=True)
    for metric, axis in X_AXES.items():
        run.define_metric(metric, step_metric=axis)


_ENDED = "ended"  # an empty file in W&B's folder: the part was written completely


def new_run_id() -> str:
    """Return a W&B run ID: 8 letters and digits, from OS randomness so that seeded runs differ."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def id_of_environment() -> str | None:
    """Return WANDB_RUN_ID, which the agent of a W&B sweep sets for its job."""
    return os.environ.get("WANDB_RUN_ID") or None


def mark_ended(folder: Path | None) -> None:
    """Mark a part as completely written."""
    if folder is not None:
        with contextlib.suppress(OSError):  # without the mark, a resumed run logs its rows again
            (folder / _ENDED).touch()


def was_killed(folder: Path) -> bool:
    """Return whether a part may lack its last rows: W&B writes blocks of 32 KB, and a kill loses the open one."""
    return not (folder / _ENDED).exists()


@contextlib.contextmanager
def _arguments_without_secrets() -> Iterator[None]:
    """Redact sys.argv temporarily: wandb records it when a run starts."""
    typed, sys.argv = sys.argv, redact(sys.argv)
    try:
        yield
    finally:
        sys.argv = typed

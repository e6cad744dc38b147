"""The directory of one run: who may write there, and what lies in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from alexnet_exp.errors import UserError
from alexnet_exp.files import is_locked, locked, write_atomically
from alexnet_exp.tracking.redact import redact, without_passwords

_LOCK = ".lock"
_RECORD = ("overrides.yaml", "config.yaml", "metrics.csv", "result.json")
_MAX_NESTED = 1000  # brackets or dashes: below that nothing is nested too deep for the loader in C
MAX_YAML = 10_000_000  # characters; a run's settings have some thousand


class RunDirectory:
    """Files of one run, written so that a reader never meets half of one.

    Args:
        path: The directory; made when the lock is taken.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @contextlib.contextmanager
    def lock(self, key: str = "hydra.run.dir") -> Iterator[None]:
        """Hold the directory for this process alone; the system lets go when the process dies.

        Where the file system has no locks, a warning says so, and a second run is not noticed.

        Args:
            key: Setting that names the directory, for messages.

        Raises:
            UserError: If it cannot be written or locked, or a live run holds it.
        """
        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                mine = held.enter_context(locked(self.path / _LOCK, remove=True))
            except OSError as error:
                raise UserError(
                    f"{self.path} cannot be written ({error.strerror}); {self._what_to_do(key)}."
                ) from error
            if not mine:
                raise UserError(f"{self.path} belongs to a run that is still going on.")
            yield

    def _what_to_do(self, key: str) -> str:
        if any(os.path.exists(self.path / name) for name in ("config.yaml", "sweep.json")):
            return "make it writable: what has begun there goes on nowhere else"
        return f"say {key}=DIR or paths.output_dir=DIR"

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Hold the directory, which must not be another run's, not even an unfinished one's.

        Raises:
            UserError: If it is.
        """
        with self.lock():
            if (self.path / "config.yaml").exists() or (self.path / "result.json").exists():
                raise UserError(f"{self.path} holds a run already; choose another directory.")
            yield

    def write_settings(self, config: Mapping[str, Any], overrides: list[str]) -> None:
        """Write overrides.yaml and config.yaml: all as it is but for passwords in URLs."""
        write_atomically(self.path / "overrides.yaml", to_yaml(without_passwords(overrides)))
        write_atomically(self.path / "config.yaml", to_yaml(without_passwords(config)))

    def config(self) -> dict[str, Any]:
        """Read config.yaml.

        Raises:
            UserError: If it is not there or is no YAML mapping.
        """
        return _read_yaml(self.path / "config.yaml", dict)

    def overrides(self) -> list[str]:
        """Read overrides.yaml."""
        return _read_yaml(self.path / "overrides.yaml", list)

    def result(self) -> dict[str, Any] | None:
        """Read result.json; None while the run has not ended.

        Raises:
            UserError: If it is not what a run writes.
        """
        file = self.path / "result.json"
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(result, dict) or "status" not in result:
            raise UserError(f"{file} does not hold what a run writes there.")
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, last of all files, without secrets."""
        text = json.dumps(_json_safe(redact(result)), indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.path / "result.json", text)

    def record(self) -> dict[str, bytes]:
        """Return the content of the files that say what a run is and what came of it, of those that are there."""
        files = [self.path / name for name in _RECORD if (self.path / name).exists()]
        return {file.name: file.read_bytes() for file in files}

    def put_back(self, record: Mapping[str, bytes]) -> None:
        """Write the files that `record` returned, and remove those that were not there."""
        for name in _RECORD:
            if name in record:
                write_atomically(self.path / name, record[name])
            else:
                (self.path / name).unlink(missing_ok=True)

    def begin(self) -> None:
        """Take away the result of an earlier, unfinished attempt: a directory with a result has ended."""
        (self.path / "result.json").unlink(missing_ok=True)


def is_held(directory: Path) -> bool:
    """Return whether a live run holds a directory."""
    return is_locked(directory / _LOCK)


def check_out(out: str, ckpt: Path | None = None) -> Path:
    """Return the file that `out=` names, which must not be one that a run or a checkpoint needs.

    Args:
        out: As typed.
        ckpt: The checkpoint that is read.

    Raises:
        UserError: If it is.
    """
    path = Path(os.path.expanduser(out))
    if ckpt is not None and path.exists() and path.samefile(ckpt):
        raise UserError(f"out={out} is the checkpoint itself: choose another name.")
    folder = path.parent.resolve()
    folder = folder.parent if folder.name == "checkpoints" else folder
    if any((folder / name).exists() for name in ("config.yaml", "result.json")):
        raise UserError(f"out={out} lies in the directory of a run: choose another folder.")
    return path


def to_yaml(value: Any) -> str:
    """Write plain values as YAML that reads back unchanged."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(value))


class _Loader(yaml.SafeLoader):
    """Reads what OmegaConf writes: 1e-4 is a number, which YAML takes for a text."""


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same in C, seven times as fast; it has no guard against values nested so deep that they end the process."""


for _loader in (_Loader, _FastLoader):
    _loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _read_yaml(path: Path, kind: type) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        # An alias (*name) stands for a whole part again: a few lines of them are more than any memory.
        if len(text) > MAX_YAML or (
            "*" in text and any(isinstance(t, yaml.AliasToken) for t in yaml.scan(text))
        ):
            raise UserError(f"{path} does not hold what a run writes there.")
        value = yaml.load(text, _Loader if max(map(text.count, "[{-?")) > _MAX_NESTED else _FastLoader)
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a run directory: it has no {path.name}.") from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} does not hold what a run writes there.")
    return value


def _json_safe(value: Any) -> Any:
    """Replace what JSON cannot say (NaN, infinity) by null."""
    if isinstance(value, Mapping):
        return {str(k): _json_safe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(v) for v in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value

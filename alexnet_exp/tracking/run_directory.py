"""The directory of a run: its lock and its files."""

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
_MAX_NESTED = 1000  # brackets or dashes; fewer cannot nest too deep for the C loader
MAX_YAML = 10_000_000  # characters; a run's config has a few thousand


class RunDirectory:
    """The files of one run, written atomically.

    Args:
        path: The directory; created when it is locked.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @contextlib.contextmanager
    def lock(self, key: str = "hydra.run.dir") -> Iterator[None]:
        """Lock the directory for this process; the OS releases the lock when the process dies.

        On a file system without locks this warns, and cannot detect a second run.

        Args:
            key: The setting that names the directory, for messages.

        Raises:
            UserError: If the directory cannot be written or locked, or a live run holds it.
        """
        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                mine = held.enter_context(locked(self.path / _LOCK, remove=True))
            except OSError as error:
                begun = any(os.path.exists(self.path / name) for name in ("config.yaml", "sweep.json"))
                fix = (
                    "make it writable to resume there" if begun else f"set {key}=DIR or paths.output_dir=DIR"
                )
                raise UserError(f"{self.path} cannot be written ({error.strerror}): {fix}.") from error
            if not mine:
                raise UserError(f"{self.path} is in use by a run that is still running.")
            yield

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Lock the directory for a new run.

        Raises:
            UserError: If it holds another run, finished or not.
        """
        with self.lock():
            if (self.path / "config.yaml").exists() or (self.path / "result.json").exists():
                raise UserError(f"{self.path} holds a run already: choose another directory.")
            yield

    def write_settings(self, config: Mapping[str, Any], overrides: list[str]) -> None:
        """Write overrides.yaml and config.yaml, without URL passwords."""
        write_atomically(self.path / "overrides.yaml", to_yaml(without_passwords(overrides)))
        # Second: a directory with a config.yaml is a run, and a run has both files.
        write_atomically(self.path / "config.yaml", to_yaml(without_passwords(config)))

    def config(self) -> dict[str, Any]:
        """Read config.yaml.

        Raises:
            UserError: If it is missing or not a YAML mapping.
        """
        return _read_yaml(self.path / "config.yaml", dict)

    def overrides(self) -> list[str]:
        """Read overrides.yaml."""
        return _read_yaml(self.path / "overrides.yaml", list)

    def result(self) -> dict[str, Any] | None:
        """Read result.json; None while the run has not ended.

        Raises:
            UserError: If it is damaged.
        """
        file = self.path / "result.json"
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(result, dict) or "status" not in result:
            raise UserError(f"{file} was not written by a run.")
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, redacted; it comes last: a directory that has one is complete."""
        text = json.dumps(_json_safe(redact(result)), indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.path / "result.json", text)

    def record(self) -> dict[str, bytes]:
        """Return the content of the existing files that a resumed run overwrites."""
        files = [self.path / name for name in _RECORD if (self.path / name).exists()]
        return {file.name: file.read_bytes() for file in files}

    def put_back(self, record: Mapping[str, bytes]) -> None:
        """Restore the files that `record` returned, and remove the others."""
        for name in _RECORD:
            if name in record:
                write_atomically(self.path / name, record[name])
            else:
                (self.path / name).unlink(missing_ok=True)

    def begin(self) -> None:
        """Remove the result of an earlier attempt: a directory with a result counts as complete."""
        (self.path / "result.json").unlink(missing_ok=True)


def is_held(directory: Path) -> bool:
    """Return whether a live run holds a directory."""
    return is_locked(directory / _LOCK)


def check_out(out: str, ckpt: Path | None = None) -> Path:
    """Return the path of `out=`, which must not overwrite a checkpoint or a file of a run.

    Args:
        out: As typed.
        ckpt: The checkpoint that is read.

    Raises:
        UserError: If it would.
    """
    path = Path(os.path.expanduser(out))
    if ckpt is not None and path.exists() and path.samefile(ckpt):
        raise UserError(f"out={out} is the checkpoint itself: choose another name.")
    folder = path.parent.resolve()
    folder = folder.parent if folder.name == "checkpoints" else folder
    if any((folder / name).exists() for name in ("config.yaml", "result.json")):
        raise UserError(f"out={out} is in the directory of a run: choose another folder.")
    return path


def to_yaml(value: Any) -> str:
    """Format plain values as YAML that loads unchanged."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(value))


class _Loader(yaml.SafeLoader):
    """Read what OmegaConf writes: 1e-4 is a float there, but a string in YAML 1.1."""


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same in C, seven times as fast; deep nesting overflows its stack and kills the process."""


for _loader in (_Loader, _FastLoader):
    _loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def _read_yaml(path: Path, kind: type) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        # No aliases (*name): a few lines of nested ones expand beyond any memory.
        if len(text) > MAX_YAML or (
            "*" in text and any(isinstance(t, yaml.AliasToken) for t in yaml.scan(text))
        ):
            raise UserError(f"{path} was not written by a run.")
        value = yaml.load(text, _Loader if max(map(text.count, "[{-?")) > _MAX_NESTED else _FastLoader)
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a run directory: it has no {path.name}.") from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} was not written by a run.")
    return value


def _json_safe(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None."""
    if isinstance(value, Mapping):
        return {str(k): _json_safe(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(v) for v in value]
    if isinstance(value, float) and value - value != 0.0:  # inf - inf is NaN
        return None
    return value

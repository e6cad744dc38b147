"""Turn errors that a user can fix (settings, files, the machine) into one line that names the fix.

Frequent errors of Hydra and OmegaConf get our own wording; all others keep the library's.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from alexnet_exp.config import words
from alexnet_exp.config.compose import compose, conf_dir, options
from alexnet_exp.config.groups import RULES
from alexnet_exp.config.overrides import resumed_directory
from alexnet_exp.errors import (
    UserError,
    in_one_line,
    is_out_of_memory,
    library_of,
    nearest,
    of_the_machine,
    shell_command,
    unreadable,
)
from alexnet_exp.settings import GROUPS, parse


def explain(error: BaseException, verb: str = "train") -> str | None:
    """Return one line that tells the user what to fix, or None for an error in our code.

    Args:
        error: Raised while composing or running.
        verb: The verb that was composed.
    """
    if isinstance(error, UserError):
        return str(error)
    # The next two subclass HydraException and OmegaConfBaseException, so they are asked first.
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is required: set {error.full_key}=VALUE."
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _readable(error, verb)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}, is not YAML: {error.problem}."
    if isinstance(error, UnicodeDecodeError) and _raised_in(error) in _READERS:
        # The error does not name the file; the stack frame of Hydra's loader does.
        files = [frame.f_locals["full_path"] for frame in _frames(error) if "full_path" in frame.f_locals]
        return f"{files[-1] if files else 'A config file'} is not UTF-8 ({error.reason}): save it as UTF-8."
    if is_out_of_memory(error):
        return _out_of_memory(error, verb)
    return of_the_machine(error) or _of_torch(error) or _of_a_library(error)


# Whatever is raised inside these is about what was typed, built-in exceptions included.
_READERS = ("hydra", "omegaconf", "antlr4", "yaml")
# The exception classes of these are about their input: settings, files, accounts.
_JUDGES = (*_READERS, "pydantic", "pydantic_core", "wandb", "PIL", "optuna", "sqlalchemy", "safetensors")


def _of_a_library(error: BaseException) -> str | None:
    library = library_of(error)
    # MisconfigurationException is Lightning's; by name, since importing Lightning takes seconds.
    if library not in _JUDGES and type(error).__name__ != "MisconfigurationException":
        library = _raised_in(error)
        if library not in _READERS:
            return None
    names = {"pydantic_core": "pydantic", "PIL": "Pillow", "wandb": "W&B", "hydra": "Hydra"}
    said = in_one_line(error)
    stop = "" if said.endswith((".", "!", "?")) else "."
    return _known(str(error)) or f"{names.get(library, library)} error: {said}{stop}"


def _raised_in(error: BaseException) -> str:
    """Return the package of the innermost frame outside the standard library."""
    names = [str(frame.f_globals.get("__name__", "")) for frame in _frames(error)]
    packages = [name.partition(".")[0] for name in names]
    # The standard library only acts for its caller: `codecs` fails inside Hydra's loader.
    return next((name for name in reversed(packages) if name not in sys.stdlib_module_names), "")


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


_TRAINING = (
    "set a smaller data.batch_size (trainer.accumulate_grad_batches=N keeps the effective batch size), "
    "trainer.precision=bf16-mixed, a smaller model.input_size, or data.resident=off"
)
_ROOM = {  # the fix, by verb
    "train": _TRAINING,
    "benchmark": f"{_TRAINING}; or step.batch_size=auto",
    "evaluate": "set a smaller batch_size, or precision=bf16-mixed",
    "predict": "set a smaller batch_size",
    "figures": "set a smaller batch_size or sample",
}


def _out_of_memory(error: BaseException, verb: str) -> str:
    said = in_one_line(error)
    # "2.00 GiB" on CUDA, "8589934592 bytes" on CPU
    amount = re.search(r"allocate ([\d.]+ ?(?:[KMGT]?i?B|bytes))", str(error))
    why = f"no room for {amount[1]} more" if amount else said[:120]
    # torch's CPU allocator reports itself as DefaultCPUAllocator.
    main = isinstance(error, MemoryError | OSError) or "cpu" in said.lower() or "bad_alloc" in said
    where, others = ("CPU", "") if main else ("GPU", "; nvidia-smi shows other processes on it")
    return f"Out of {where} memory ({why}): {_ROOM.get(verb, 'close other programs, or use a larger machine')}{others}."


# Errors of torch about the machine or a setting, not the code -> our message with the fix.
_MORE_SHARED = "set data.num_workers=0, or give the container more shared memory (--shm-size=8g)."
_TORCH = {
    r"no kernel image is available": (
        "This build of torch has no kernels for this GPU: install another (pytorch.org), or set trainer=cpu."
    ),
    r"driver (?:version is insufficient|on your system is too old)": (
        "The GPU driver is too old for this torch: update it, install an older torch, or set trainer=cpu."
    ),
    r"busy or unavailable": (
        "The GPU is in use by another process: end it (see nvidia-smi), or use another GPU with trainer.devices=[N]."
    ),
    r"uncorrectable ECC|hardware error|fallen off the bus|device is lost": (
        "The GPU failed: resume from the last checkpoint with resume=RUN_DIR, on another GPU or after a reboot."
    ),
    r"(\S+) does not have a deterministic implementation": (
        "trainer.deterministic=true: {0} has no deterministic implementation here; set trainer.deterministic=warn."
    ),
    r"CUBLAS_WORKSPACE_CONFIG": (
        "trainer.deterministic=true needs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8."
    ),
    r"DataLoader worker .*(?:killed by signal|exited unexpectedly)": (
        f"A DataLoader worker was killed, most likely out of memory: {_MORE_SHARED}"
    ),
    # torch's shared memory files are called /torch_PID_NUMBER.
    r"unable to .*shared memory|</?torch_\d+": f"Out of shared memory: {_MORE_SHARED}",
    r"EADDRINUSE|address already in use": (
        "The port for the ranks is in use: set the environment variable MASTER_PORT to another."
    ),
}


def _of_torch(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, RuntimeError):
        for pattern, message in _TORCH.items():
            if found := re.search(pattern, text, re.DOTALL):
                return message.format(*found.groups())
    # By name: an error of torch implies that it is loaded, but not which of its parts.
    module = type(error).__module__
    if module.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile failed ({in_one_line(error)[:200]}): set compile=false."
    if type(error).__name__ in ("DistNetworkError", "DistStoreError", "DistBackendError"):
        return (
            f"The ranks of this run lost contact ({in_one_line(error)[:200]}): resume it with resume=RUN_DIR."
        )
    return None


def of_composing(error: Exception, arguments: Sequence[str]) -> Exception:
    """Convert an error that Hydra raised before any run: creating the directory, or reading settings.

    Args:
        error: Raised outside a run.
        arguments: As typed.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    if isinstance(error, OSError) and str(error.filename).endswith((".yaml", ".yml")):
        return unreadable(error.filename, error)
    if isinstance(error, OSError) and error.filename is not None:
        key = "hydra.sweep.dir" if sweep else "hydra.run.dir"
        other = "another resume=DIR" if resumed_directory(arguments) else f"{key}=DIR or paths.output_dir=DIR"
        return UserError(f"{error.filename} cannot be written ({error.strerror}): set {other}.")
    if explain(error) is not None or sweep:
        return error  # of a sweep: it may come from a job, not from reading settings
    return UserError(f"Hydra cannot read {shell_command(arguments)}: {in_one_line(error)[:200]}")


# Errors of Hydra and OmegaConf -> our messages, called with the groups of the pattern.
_KINDS = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false"}
_PATTERNS: list[tuple[str, Callable[..., str]]] = [
    (r"Cannot find primary config '([^']+)'", lambda name: f"There is no file {name}.yaml in conf/."),
    (
        r"Only one of --run, --multirun, --cfg, --info",
        lambda: "--cfg and --info show the settings of one run: omit -m, and give each key one value.",
    ),
    (
        r"Additional config directory '(.+)' not found",
        lambda path: f"There is no folder {path} for --config-dir.",
    ),
    (
        r"Ambiguous value for argument '([^=]+)=([^']*)'",
        lambda key, value: (
            f"{key}={value} has several values: -m {key}={value} sweeps over them, "
            f"'{key}=[{value}]' is a list, and '{key}=\"{value}\"' a string."
        ),
    ),
    (
        r"Multiple values for ([\w/]+)\.",
        lambda group: f"{group} is set twice, or with a needless +: set {group}=NAME once.",
    ),
    (
        r"Could not append to config\. An item is already at '([^']+)'",
        lambda key: f"+{key}: the setting exists; omit the +.",
    ),
    (r"Could not delete from config\. '([^']+)'", lambda key: f"~{key}: there is no such setting to delete."),
    (
        r"Environment variable '([^']+)' not found.*?full_key: (\S+)",
        lambda variable, key: f"{key}: the environment variable {variable} is not set.",
    ),
    (
        r"resolving interpolation: Index '(\w+)' \(str\) is not an int.*?full_key: (\S+)",
        lambda wanted, key: (
            f"{key} needs {wanted} of a file that holds a list: expected lines such as {wanted}: VALUE."
        ),
    ),
    (
        r"Unsupported interpolation type (\w+).*?full_key: (\S+)",
        lambda kind, key: (
            f"{key}: unknown interpolation ${{{kind}:...}}; use ${{KEY}} or ${{oc.env:VARIABLE,DEFAULT}}."
        ),
    ),
    (
        r"Interpolation key '([^']+)' not found.*?full_key: (\S+)",
        lambda wanted, key: f"{key}=${{{wanted}}}: there is no setting {wanted}.",
    ),
    (
        r"Value '([^']*)'.*? could not be converted to (\w+).*?full_key: (\S+)",
        lambda value, kind, key: f"invalid {key}={value!r}: expected {_KINDS.get(kind, kind.lower())}.",
    ),
    (
        r"Value '([^']*)' is not a valid bool.*?full_key: (\S+)",
        lambda value, key: f"invalid {key}={value!r}: expected true or false.",
    ),
    # Comes before the general "Invalid type assigned", which would match this one, too.
    (
        r"Error merging override \+{1,2}model\.(features|classifier)\.([^.=\s]+).*?"
        r"Invalid type assigned: dict is not a subclass",
        lambda part, name: (
            f"+model.{part}.{name}: adding a layer takes a yaml that extends the network: "
            f"my_conf/model/mine.yaml with 'defaults: [NETWORK, _self_]' and '{part}: {{{name}: {{KEY: VALUE}}}}', "
            "then --config-dir my_conf model=mine."
        ),
    ),
    (
        r"Error merging override ([^=\s]+)=(.*?)\s+Invalid value assigned: \w+ is not a ListConfig",
        lambda key, value: f"invalid {key}={value}: expected a list; set '{key}=[{value}]'.",
    ),
    (
        r"Error merging override ([^=\s]+)=(.*?)\s+Invalid type assigned: \w+ is not a subclass of (\w+)",
        lambda key, value, _: f"invalid {key}={value}: it is a group of settings; set {key}.KEY=VALUE.",
    ),
    (
        r"Error merging override ([^=\s]+)=(.*?)\s+field '[^']+' is not Optional",
        lambda key, _: f"invalid {key}=null: expected a value.",
    ),
]


def _readable(error: BaseException, verb: str) -> str:
    # Hydra says which override failed, and the OmegaConf error that it wraps says why.
    text = f"{error}\n{error.__cause__}" if error.__cause__ is not None else str(error)
    if found := re.search(r"Could not (?:find|load) '(.+)/([^'/]*)'", text):
        return _unknown_option(found[1], found[2], getattr(error, "options", None) or options(found[1]))
    if said := _known(text):
        return said
    if found := re.search(r"Could not override '([^']+)'", text):
        # Hydra's hint is the only place that has the value: "To append to your config use +KEY=VALUE".
        typed = re.search(rf"use \+{re.escape(found[1])}=(.*)", text)
        return _unknown_key(found[1], verb, typed[1] if typed else None)
    if found := re.search(
        r"Key '[^']+' (?:not in '\w+'|is not in struct).*?full_key: (\S+)", text, re.DOTALL
    ):
        file = re.match(r"In '([^']+)'", text)
        return (f"{file[1]}.yaml: " if file else "") + _unknown_key(found[1], verb)
    return " ".join([line.strip() for line in text.splitlines() if line.strip()][:3])


def _known(text: str) -> str | None:
    """Return our message for an error text of Hydra or OmegaConf, if there is one."""
    for pattern, message in _PATTERNS:
        if found := re.search(pattern, text, re.DOTALL):
            return message(*found.groups())
    return None


def _unreadable(error: OverrideParseException) -> str:
    mark, key, value = parse(error.override)
    if value is None:
        return _without_value(f"{mark}{key}")
    return (
        f"cannot parse {error.override}: close every bracket and quote, and quote a string with special characters "
        f"twice: '{mark}{key}=\"...\"'."
    )


def _without_value(word: str) -> str:
    """Return the message about a word without =: an option's name, a setting without its value, or `lr:0.1`."""
    key, _, value = word.partition(":")
    close = [f"{group}={word}" for group in GROUPS if word in options(group)]
    if not close and (conf_dir() / f"{word}.yaml").exists() and word != "train":
        return f"{word!r} is not a setting: the command is alexnet-exp {word}."
    if not close and len(key) > 1:
        meant = words.meant(key, value.strip() or "VALUE")
        close = [each if "=" in each else f"{each}=VALUE" for each in meant]
    if close and key not in RULES:
        return f"{word!r} is not KEY=VALUE. Did you mean {' or '.join(close)}?"
    return f"{word!r} is not KEY=VALUE: write {key}={value.strip() or 'VALUE'}."


def _unknown_option(group: str, option: str, known: Sequence[str]) -> str:
    known = [
        each for each in known if not each.startswith("__")
    ]  # how resume= composes a run's recorded settings
    close = nearest(option, known) or nearest(option.lower(), known)  # model=AlexNet: names are lower-case
    if not close and group in GROUPS:
        meant = [each for each in words.meant(group, option) if not each.endswith("=NAME")]
        close = f" Did you mean {' or '.join(meant)}?" if meant else ""
    listed = f" It has {', '.join(known)}." if known and (not close or len(known) <= 8) else ""
    return f"{group}={option}: conf/{group} has no file {option}.yaml.{close}{listed}"


def _unknown_key(key: str, verb: str, value: str | None = None) -> str:
    from alexnet_exp.config import checks

    if key == "hydra.sweeper.params":  # it exists, but overriding it would merge with the chosen sweep's
        return "The chosen sweep sets hydra.sweeper.params itself: add others as KEY=VALUES."
    if key.startswith("hydra."):
        return f"There is no setting {key}. alexnet-exp {verb} --cfg hydra lists all."
    if verb == "train":
        return checks.unknown(key, value)
    known = [str(known) for known in compose(verb, [])]
    meant = words.meant(key, value) if verb == "benchmark" else words.meant_by_a_verb(key, value, known)
    close = f" Did you mean {' or '.join(meant)}?" if meant else nearest(key, known)
    return f"There is no setting {key}.{close} alexnet-exp {verb} has {', '.join(known)}."

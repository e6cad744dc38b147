"""What the user typed, made safe for Hydra's override grammar."""

from __future__ import annotations

# Their values are paths: spaces, commas, '=' and a leading '/' are meant as they stand.
PATH_KEYS = (
    "resume", "ckpt", "weights", "data.root", "data.data_dir", "paths.data_dir", "paths.output_dir",
    "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip


def prepare(arguments: list[str]) -> list[str]:
    """Quote the values of path keys, and let a resumed run keep its directory.

    Args:
        arguments: As typed, without the program and the verb.

    Returns:
        Arguments for Hydra.
    """
    sweep = "-m" in arguments or "--multirun" in arguments
    prepared = [_quoted(argument, sweep) for argument in arguments]
    typed = {argument.split("=", 1)[0]: argument.split("=", 1)[1] for argument in prepared if "=" in argument}
    resumed = typed.get("resume", "null")
    if resumed not in ("null", "") and "hydra.run.dir" not in typed:
        prepared.append(f"hydra.run.dir={resumed}")
    return prepared


def _quoted(argument: str, sweep: bool) -> str:
    key, equals, value = argument.partition("=")
    if key.lstrip("+") not in PATH_KEYS or not equals or value in ("", "null", "none", "???"):
        return argument
    if value[0] in "'\"" or "${" in value or (sweep and "," in value):
        return argument  # already quoted, an interpolation, or several values of a sweep
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"

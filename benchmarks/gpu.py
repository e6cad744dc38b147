"""One command for a day with a GPU: limits of the device, GPU tests, kernels, rates, overhead, and the timed recipes.

    python benchmarks/gpu.py                             # about nine minutes on an H200 at most
    python benchmarks/gpu.py --parts ceilings kernels    # adds to what --out has already
    python benchmarks/gpu.py --rehearse                  # the same steps on a CPU, in small sizes

Every part is a process of its own with its own limit: one that fails or takes too long leaves the others their time.
Results are in OUT/gpu.json, and as a page in OUT/gpu.html.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LIMITS = {  # seconds; nine minutes together
    "ceilings": 40, "tests": 150, "kernels": 70, "rates": 80, "overhead": 60, "fast": 55, "resnet18": 85,
}  # fmt: skip
SMALL_LIMIT = 300  # of each part of a rehearsal, on a CPU that others may be using

Result = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, and write what they found after each of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--rehearse", action="store_true", help="on CPU, in small sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "gpu")
    parser.add_argument("--one", choices=LIMITS, help=argparse.SUPPRESS)  # a part, in this process
    options = parser.parse_args(arguments)
    if options.one:
        print("RESULT " + json.dumps(PARTS[options.one](options.rehearse)), flush=True)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "gpu.json"
    results: Result = json.loads(file.read_text()) if file.exists() else {}
    for part in options.parts:
        print(f"{part} ...", flush=True)
        results[part] = run_part(part, options.rehearse)
        results[part]["rehearsal"] = options.rehearse
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(temporary, file)
        write_page(options.out / "gpu.html", results)
        print(f"  {results[part]['status']} after {results[part]['seconds']} s", flush=True)
    print(f"results: {file}, {options.out / 'gpu.html'}")
    return int(any(results[part]["status"] != "done" for part in options.parts))


def run_part(part: str, rehearse: bool) -> Result:
    """Run a part in a process of its own; its group is killed at the limit."""
    limit = SMALL_LIMIT if rehearse else LIMITS[part]
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--one",
        part,
        *(["--rehearse"] if rehearse else []),
    ]
    environment = dict(
        os.environ, PYTHONPATH=str(ROOT), WANDB_MODE="offline", CUBLAS_WORKSPACE_CONFIG=":4096:8"
    )
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
        status = "done" if process.returncode == 0 else f"failed ({process.returncode})"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        status = f"stopped at its limit of {limit} s"
    except BaseException:  # Ctrl-C reaches this process alone
        os.killpg(process.pid, 9)
        raise
    found = re.findall(r"^RESULT (.*)$", output, re.MULTILINE)
    result: Result = {"status": status, "seconds": round(time.monotonic() - started, 1), "limit": limit}
    result["found"] = json.loads(found[-1]) if found else None
    if status != "done":
        result["output"] = output[-4000:]
    return result


# ------------------------------------------------------------------------------------------------ parts


def ceilings(rehearse: bool) -> Result:
    """Measure the fastest matrix product, copy inside the device, and launch of an empty kernel."""
    import torch

    device, size = ("cpu", 256) if rehearse else ("cuda", 8192)
    a = torch.randn(size, size, device=device).bfloat16()
    numbers = torch.empty(size * size * (1 if rehearse else 8), device=device)
    target, one = torch.empty_like(numbers), torch.zeros(1, device=device)
    seconds = {
        "matmul": least(lambda: a @ a, device),
        "copy": least(lambda: target.copy_(numbers), device),
        "launch": least(lambda: [one.add_(1) for _ in range(1000)], device) / 1000,
    }
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "lightning")},
        "matmul_tflops": 2 * size**3 / seconds["matmul"] / 1e12,
        "copy_gb_per_second": 2 * numbers.nbytes / seconds["copy"] / 1e9,
        "launch_microseconds": 1e6 * seconds["launch"],
    }


def tests(rehearse: bool) -> Result:
    """Run the tests that need a GPU, and count what came of them; a rehearsal collects them."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", "-W", "default", "-rfE"]
    own = ["tests/training", "tests/models/test_lrn.py", "tests/data"]
    done = subprocess.run(
        [*command, *own, *(["--collect-only"] if rehearse else [])], capture_output=True, text=True
    )
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
    warned = re.findall(r"^  (\S.*Warning: .*)$", done.stdout, re.MULTILINE)
    last = (done.stdout.strip().splitlines() or [done.stderr[-500:]])[-1]
    return {"summary": last, "failed": failed, "warnings": sorted(set(warned))}


def kernels(rehearse: bool) -> Result:
    """List the kernels of a training step of alexnet_lrn, eager and compiled, and the share of LRN in a step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    device = "cpu" if rehearse else "cuda"
    activities = [ProfilerActivity.CPU if rehearse else ProfilerActivity.CUDA]
    forms: Result = {}
    for how in (False, "lrn", True):
        step = step_of(how, 4 if rehearse else 1024, rehearse)
        step()
        milliseconds = 1e3 * least(step, device)
        with profile(activities=activities) as profiler:
            step()
            wait(device)
        events = profiler.key_averages()
        key = "self_cpu_time_total" if rehearse else "self_device_time_total"
        top = sorted(events, key=lambda event: -getattr(event, key))[:25]
        forms[f"compile={str(how).lower()}"] = {
            "milliseconds": milliseconds,
            "kernels": [[event.key[:90], event.count, getattr(event, key) / 1e3] for event in top],
        }
        torch.compiler.reset()
    plain = 1e3 * least(step_of(False, 4 if rehearse else 1024, rehearse, lrn=False), device)
    forms["without LRN"] = {"milliseconds": plain, "kernels": []}
    return {"forms": forms, "lrn_share": 1 - plain / forms["compile=lrn"]["milliseconds"]}


def rates(rehearse: bool) -> Result:
    """Measure images per second of a step of alexnet_lrn on one batch, by batch size and compilation."""
    import torch

    found: Result = {}
    for how in ("lrn", True):
        for size in (2, 4) if rehearse else (512, 1024, 2048):
            step = step_of(how, size, rehearse)
            step()
            found[f"compile={str(how).lower()}, batch {size}"] = size / least(
                step, "cpu" if rehearse else "cuda"
            )
            torch.compiler.reset()
    return found


def overhead(rehearse: bool) -> Result:
    """Compare Trainer with the loop written by hand, on the data of the run."""
    large = ["model=alexnet_lrn", "data=cifar10", "data.batch_size=1024", "steps=40", "repeats=5"]
    small = ["model=alexnet_cifar", "data=digits", "data.batch_size=8", "steps=2", "repeats=1", "device=cpu"]
    result = command_result(["benchmarks/overhead.py", *(small if rehearse else large)])
    return {"rows": result["rows"], "notes": result["notes"]}


def fast(rehearse: bool) -> Result:
    """Train cifar10_fast with as many seeds as fit."""
    return recipe("cifar10_fast", 2, rehearse)


def resnet18(rehearse: bool) -> Result:
    """Train cifar10_fast_resnet18."""
    return recipe("cifar10_fast_resnet18", 1, rehearse)


PARTS: dict[str, Callable[[bool], Result]] = {
    "ceilings": ceilings, "tests": tests, "kernels": kernels, "rates": rates, "overhead": overhead, "fast": fast,
    "resnet18": resnet18,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ tools


def wait(device: str) -> None:
    """Wait until the device has done its work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def least(act: Callable[[], object], device: str) -> float:
    """Return the fewest seconds that something took, after one turn that does not count."""
    seconds = []
    for _ in range(8 if device == "cuda" else 3):
        wait(device)
        start = time.perf_counter()
        act()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def step_of(how: bool | str, size: int, rehearse: bool, lrn: bool = True) -> Callable[[], object]:
    """Return a training step of alexnet_lrn in bfloat16 and channels-last on one batch.

    Args:
        how: The run's `compile`.
        size: Images.
        rehearse: On CPU, on small images, with few units, and traced rather than compiled.
        lrn: Whether the network has its normalisation.
    """
    import torch
    from torch import nn

    from alexnet_exp import create_model
    from alexnet_exp.models.layers import LocalResponseNorm
    from alexnet_exp.runs.benchmark.loop import step_of as written
    from alexnet_exp.training.automatic import compile_network

    device, side = ("cpu", 67) if rehearse else ("cuda", 227)
    torch.manual_seed(0)
    few: dict[str, Any] = (
        {"classifier": {name: {"out_features": 64} for name in ("fc6", "fc7")}} if rehearse else {}
    )
    model = create_model("alexnet_lrn", num_classes=10, input_size=side, **few)
    if not lrn:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, LocalResponseNorm):
                    setattr(module, name, nn.Identity())
    model = model.to(device, memory_format=torch.channels_last).train()
    if not rehearse:
        compile_network(model, how)
    elif how is True:
        model.compile(dynamic=False, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    step = written(model, optimizer, "bf16-mixed")
    images = torch.randn(size, 3, side, side, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(size, device=device) % 10
    return lambda: step(images, labels)


def recipe(name: str, seeds: int, rehearse: bool) -> Result:
    """Train an experiment; return test accuracy and seconds of training of each seed."""
    tiny = [
        "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
        "trainer.limit_test_batches=1", "data.resident=auto", "data.batch_size=8",
    ]  # fmt: skip
    runs = []
    for seed in range(1 if rehearse else seeds):
        result = command_result(
            ["train.py", f"experiment={name}", f"seed={seed}", "logger=csv", *(tiny if rehearse else [])]
        )
        seconds, accuracy = result["training_seconds"], result["metrics"]["test/top1"]
        runs.append({"seed": seed, "training_seconds": seconds, "test_accuracy": accuracy})
        print(
            "RESULT " + json.dumps({"runs": runs}), flush=True
        )  # what is there if the next one takes too long
    return {"runs": runs}


def command_result(command: list[str]) -> Result:
    """Run a script of the repository, and return its result.json."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="alexnet_exp_gpu_") as folder:
        subprocess.run([sys.executable, *command, f"hydra.run.dir={folder}/run"], cwd=ROOT, check=True)
        found: Result = json.loads(Path(folder, "run", "result.json").read_text())
        return found


# ------------------------------------------------------------------------------------------------ page


def write_page(path: Path, results: Result) -> None:
    """Write the results as a page: the goals first, then each part."""
    from alexnet_exp.report.html import environment

    ceiling = (results.get("ceilings") or {}).get("found") or {}
    versions = ceiling.get("versions", {}).items()
    text = (
        environment()
        .from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
        .render(
            title=ceiling.get("device", "GPU"),
            chips=[f"{name} {version}" for name, version in versions],
            rehearsal=any(result["rehearsal"] for result in results.values()),
            goals=goals({part: result["found"] or {} for part, result in results.items()}),
            results={part: results[part] for part in LIMITS if part in results},
        )
    )
    path.write_text(text, encoding="utf-8")


def goals(found: Result) -> list[tuple[str, str, str, bool | None]]:
    """Return what was to be reached: what, goal, what was measured, and whether that is enough (None: not measured)."""
    fastest = max(found.get("rates", {}).values(), default=None)
    share = found.get("kernels", {}).get("lrn_share")
    overheads = [row["overhead"] for row in found.get("overhead", {}).get("rows", []) if "overhead" in row]
    rows = [
        ("alexnet_lrn at 227, images/s", ">= 40,000", fastest, "{:,.0f}", lambda x: x >= 40_000),
        ("share of LRN in a step", "<= 10 %", share, "{:.1%}", lambda x: x <= 0.10),
        (
            "Trainer over a hand-written loop",
            "<= 3 %",
            next(iter(overheads), None),
            "{:+.1%}",
            lambda x: x <= 0.03,
        ),
    ]
    made = [(what, goal, "–", None) if x is None else (what, goal, form.format(x), reached(x))
            for what, goal, x, form, reached in rows]  # fmt: skip
    return [*made, *(_recipe_goal(found, *goal) for goal in RECIPES)]


RECIPES = (("fast", "cifar10_fast", 0.90, 15), ("resnet18", "cifar10_fast_resnet18", 0.94, 30))


def _recipe_goal(
    found: Result, part: str, name: str, accuracy: float, seconds: int
) -> tuple[str, str, str, bool | None]:
    goal = f">= {accuracy:.0%} in <= {seconds} s"
    runs = found.get(part, {}).get("runs", [])
    if not runs:
        return name, goal, "–", None
    reached, took = (fmean(run[key] for run in runs) for key in ("test_accuracy", "training_seconds"))
    text = f"{reached:.2%} in {took:.1f} s (n = {len(runs)})"
    return name, goal, text, reached >= accuracy and took <= seconds


if __name__ == "__main__":
    sys.exit(main())

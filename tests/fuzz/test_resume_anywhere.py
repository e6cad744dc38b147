"""Runs with random settings, stopped anywhere and resumed, end like an uninterrupted run."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alexnet_exp.errors import UserError
from tests.fuzz.refusal import check_sentence
from tests.training.small_runs import DROPOUT, assert_same_end, resume, run, train_until

BASE = ["test=false", "trainer.max_epochs=3", "trainer.log_every_n_steps=2", "data.train_subset=120"]
# At most one of each line.
CHOICES = (
    ("scheduler=none", "scheduler=step", "scheduler=poly", "scheduler=onecycle", "scheduler=multistep",
     "scheduler=plateau", "scheduler=dexp", "scheduler=cosine"),
    ("optimizer=adam", "optimizer=adamw", "optimizer=lars", "optimizer=sgd_paper"),
    ("augment=none", "augment=mixup", "augment=cutmix", "augment=erasing", "augment=randaugment",
     "augment=resized_crop", "augment=fast", "augment=zoom", "augment=flip_crop"),
    ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=3"),
    ("trainer.gradient_clip_val=0.1",),
    ("trainer.val_check_interval=2", "trainer.val_check_interval=0.5", "trainer.check_val_every_n_epoch=2"),
    ("trainer.limit_train_batches=3", "trainer.limit_train_batches=0.5", "trainer.overfit_batches=2"),
    ("trainer.max_steps=7",),
    ("trainer.precision=bf16-mixed",),
    ("trainer.limit_val_batches=1", "trainer.limit_val_batches=0", "data.val_size=0"),
    ("callbacks.ema.enabled=true",),
    ("callbacks.early_stopping.enabled=true",),
    ("callbacks.checkpoint.monitor=train/loss",),
    ("callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.every_n_steps=3"),
    ("label_smoothing=0.1",),
    ("seed=7",),
    ("data.batch_size=50", "data.batch_size=33"),
)  # fmt: skip
MORE = {
    "scheduler=multistep": ["scheduler.epochs=[1]"],
    "scheduler=plateau": ["scheduler.patience=0"],
    "scheduler=step": ["scheduler.every_epochs=1"],
    "callbacks.checkpoint.monitor=train/loss": ["callbacks.checkpoint.mode=min"],
    "callbacks.early_stopping.enabled=true": ["callbacks.early_stopping.patience=1"],
}


@settings(max_examples=max(3, settings.default.max_examples // 10))  # two trainings each
@given(
    chosen=st.tuples(*(st.none() | st.sampled_from(options) for options in CHOICES)),
    dropout=st.booleans(),
    share=st.floats(0.0, 1.0, exclude_max=True),
)
def test_a_run_resumed_anywhere_ends_as_one_that_never_stopped(
    tmp_path_factory: pytest.TempPathFactory, chosen: tuple[str | None, ...], dropout: bool, share: float
) -> None:
    typed = [setting for option in chosen if option for setting in (option, *MORE.get(option, ()))]
    typed = [*BASE, *typed, *(DROPOUT if dropout else ())]
    folder = tmp_path_factory.mktemp("resumed")
    try:
        steps = run(folder / "whole", *typed)["steps"]
    except UserError as error:  # settings that do not go together
        check_sentence(error)
        return
    assume(steps > 1)
    train_until(folder / "parts", 1 + int(share * (steps - 1)), *typed)
    result = resume(folder / "parts")
    assert result is not None and result["status"] == "finished"
    assert_same_end(folder / "whole", folder / "parts")

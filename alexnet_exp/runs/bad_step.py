"""What made a bad step again is gone: `python -m alexnet_exp.runs.bad_step` says what to do instead."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.exit(
        "error: alexnet_exp.runs.bad_step is gone: train with resume=RUN_DIR trainer.detect_anomaly=true to come to "
        "the step again."
    )

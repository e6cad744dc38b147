"""Train a network: `python train.py model=alexnet_lrn data=cifar10 trainer.devices=2`.

Same as `alexnet-exp train ...`; `python train.py --help` lists the settings.
"""

import os
import sys
from pathlib import Path

from alexnet_exp.cli import main
from alexnet_exp.startup import use_utf8

if __name__ == "__main__":
    use_utf8()
    # Sweep jobs and ranks are separate processes: let them import this checkout from any folder, installed or not.
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    sys.exit(main(["train", *sys.argv[1:]]))

"""Train a network: `python train.py model=alexnet_lrn data=cifar10 trainer.devices=2`.

The same as `alexnet-exp train ...`; `python train.py --help` says what can be set.
"""

import sys

from alexnet_exp.cli import main
from alexnet_exp.utf8 import use_utf8

if __name__ == "__main__":
    use_utf8()
    sys.exit(main(["train", *sys.argv[1:]]))

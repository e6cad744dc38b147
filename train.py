"""Train a network: `python train.py model=alexnet_lrn data=cifar10 trainer.devices=2`.

The same as `alexnet-exp train ...`; `python train.py --help` says what can be set.
"""

import sys

from alexnet_exp.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

"""The verbs of `alexnet-exp`: one file each, or a folder whose command.py is the verb."""

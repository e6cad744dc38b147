"""Invalid settings: types, ranges, names, combinations, networks, yaml files."""

from __future__ import annotations

from tests.reliability.bad import Bad, Kind, folder, text

SETTINGS = Kind(
    "Settings",
    "refused from the text alone, before torch is imported; no directory is left",
    (
        Bad("data.mean=[0.5,0.5]", "data.mean and data.std need 3 values each"),
        Bad("data.channels=2", "expected 1 or 3"),
        Bad("data.root=photos", "The chosen data has no setting data.root. It belongs to data=folder"),
        Bad("data=folder data.root=x data.num_workers=1000", "expected an integer in [0, 256], or null"),
        Bad("data=[digits,mnist]", "data takes one name; -m data=digits,mnist runs them one by one"),
        Bad("data.batch_size=4,8", "has several values: -m data.batch_size=4,8 sweeps over them"),
        Bad("data.chanels=1", "Did you mean data.channels"),
        Bad("+model=alexnet", "model is set twice, or with a needless +"),
        Bad("+seed=1", "+seed: the setting exists; omit the +"),
        Bad("~nothing", "~nothing: there is no such setting to delete"),
        Bad("seed=5000000000", "expected an integer in [0, 4294967295]"),
        Bad("'seed=${oc.env:NOT_SET}'", "the environment variable NOT_SET is not set"),
        Bad("'seed=${twice:1}'", "seed: unknown interpolation ${twice:...}; use ${KEY} or"),
        Bad("trainer.max_time=1h", "expected a duration DD:HH:MM:SS, or null"),
        Bad("trainer=cpu trainer.sync_batchnorm=true", "trainer.sync_batchnorm=true needs GPUs"),
        Bad("trainer.max_epochs=null", "scheduler=cosine needs an end"),
        Bad("augment.erasing=true", "expected {probability: in [0, 1], scale: [min, max]"),
        Bad("'augment.resized_crop={scale:[1.0,0.1],ratio:[1.0,1.0]}'", "expected {scale: [min, max]"),
        Bad("logger=mlflow", "conf/logger has no file mlflow.yaml"),
        Bad("callbacks.checkpoint.monitor=val/loss", "keeps the worst: set callbacks.checkpoint.mode=min"),
        Bad("callbacks.early_stopping=true", "is a group of settings: callbacks.early_stopping.enabled"),
        Bad("scheduler.gamma=0.1", "It belongs to scheduler=multistep and scheduler=step"),
        Bad("+scheduler.gamma=0.1", "scheduler=cosine has no gamma: leave it out"),
        Bad("scheduler.name=step", "also needs every_epochs, gamma: set scheduler=step"),
        Bad("scheduler=table 'scheduler.changes=[{lr:0.1}]'", "expected a list of {epoch, lr, bias_lr, layer, but}"),
        Bad("optimizer.lr=1e400", "invalid optimizer.lr=inf: expected"),
        Bad("optimizer=adam optimizer.betas=[0.9]", "expected a list of 2, each a number in [0, 1)"),
        Bad("optimizer.momentum=0", "optimizer.nesterov=true needs momentum: set optimizer.nesterov=false"),
        Bad("+optimizer.layers.fc8.lr_faktor=1", "expected {LAYER: {lr_factor, weight_decay"),
        Bad("ckpt=old.ckpt weights=other.ckpt", "set either ckpt= or weights="),
        Bad("ckpt=gone.ckpt", "ckpt=gone.ckpt: there is no such file or run directory"),
        Bad("sweep=lr_wd", "This sweeps over optimizer.lr, optimizer.weight_decay: add -m"),
        Bad("sweep.resume=old", "sweep.resume= resumes a sweep: add -m"),
        Bad("hydra.nothing=1", "There is no setting hydra.nothing. alexnet-exp train --cfg hydra lists all"),
    ),
    base=("train",),
)  # fmt: skip

NETWORKS = Kind(
    "Networks",
    "refused from the text alone, before torch is imported; no directory is left",
    (
        Bad("+model.features.conv6.out_channels=3", "adding a layer takes a yaml"),
        Bad("model.features.conv2.then=relu", "expected a list; set 'model.features.conv2.then=[relu]'"),
        Bad("model.features.conv2.bias=maybe", "expected true or false"),
        Bad("model.init=xavier", "invalid model.init='xavier': expected one of"),
        Bad("model.input=[max_pool]", "model.input cannot pool: pool after conv1"),
        Bad("model.classifier.fc8.out_features=10", "the last layer has model.num_classes outputs; set that"),
        Bad("model.classifier.fc8.then=[max_pool]", "max_pool needs a feature map"),
        Bad("model=alexnet model.classifier.fc6.out_features=null", "every layer but the last needs out_features"),
        Bad("~model.classifier.fc8", "model.classifier is empty: add at least the last layer"),
        Bad("model.features.conv3.local=true model.features.conv3.groups=2", "a local layer does not support groups"),
        Bad("model.features.conv2.bias=false model.features.conv2.bias_init=1", "the layer has bias=false"),
        Bad("model.features.conv3.dropout=0.5", "does nothing: this layer has dropout neither in before nor in then"),
        Bad("model.spatial_norm.size=4", "invalid model.spatial_norm.size=4: expected an odd integer"),
        Bad("model.max_pool.padding=2", "a window could lie outside the map"),
        Bad("model.avg_pool.padding=same", "avg_pool does not support padding=same"),
        Bad("model=resnet18 model.stem=big", "expected one of imagenet, cifar"),
    ),
    base=("train",),
)  # fmt: skip


def _network(tried: str, content: str | bytes, said: str) -> Bad:
    return Bad("--config-dir own model=mine", said, tried, text("own/model/mine.yaml", content))


_CIFAR = "defaults: [alexnet_cifar, _self_]\n"
YAMLS = Kind(
    "Files of settings",
    "refused by name or key; no directory is left",
    (
        _network("a network's yaml that ends in a bracket", "features: [\n", "is not YAML"),
        _network("one with a key twice", "input_size: 32\ninput_size: 64\n", "found duplicate key input_size"),
        _network("one that is empty", "", "there is no setting model.input_size"),
        _network("one that is a list", "- alexnet\n- alexnet_lrn\n", "needs input_size of a file that holds a list"),
        _network("one in UTF-16", _CIFAR.encode("utf-16"),
                 "is not UTF-8"),
        _network("one that starts from an unknown network", "defaults: [alexnett, _self_]\n",
                 "has no file alexnett.yaml"),
        _network(
            "one with an unknown key in a layer",
            f"{_CIFAR}features: {{conv1: {{kernl_size: 3}}}}\n",
            "Did you mean kernel_size",
        ),
        _network("one with a stride of text", f"{_CIFAR}features: {{conv1: {{stride: fast}}}}\n", "an integer"),
        _network("one with two last layers", f"{_CIFAR}classifier: {{fc9: {{}}}}\n", "needs out_features"),
        Bad(
            "--config-dir own experiment=mine",
            "There is no setting modle. Did you mean model",
            "an experiment that overrides a group that is none",
            text("own/experiment/mine.yaml", "# @package _global_\ndefaults: [{override /modle: alexnet}]\n"),
        ),
        Bad("--config-dir own model=mine", "conf/model has no file mine.yaml",
            "an empty `--config-dir`", folder("own")),
        Bad("--config-dir own", "There is no folder", "a `--config-dir` that is a file", text("own", "")),
    ),
    base=("train",),
)  # fmt: skip

KINDS = (SETTINGS, NETWORKS, YAMLS)

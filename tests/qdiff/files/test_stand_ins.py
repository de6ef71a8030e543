"""Which names a pickle may hold beside its tensors. How files with them are read is tested in test_pickles.py."""

import pytest

from qdiff.files.stand_ins import StandIns, may_be_named


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "omegaconf.dictconfig.DictConfig",
        "argparse.Namespace",
        "pathlib.PosixPath",
        "pathlib._local.WindowsPath",
        "datetime.datetime",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy.dtypes.Float32DType",
        "torch.optim.lr_scheduler.LambdaLR",
        "__main__.TrainConfig",
        "builtins.set",
    ],
)
def test_what_trainers_leave(name):
    assert may_be_named(name)


@pytest.mark.parametrize(
    "name",
    [
        "posix.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.getattr",
        "builtins.__import__",
        "importlib.import_module",
        "shutil.rmtree",
        "socket.socket",
        "torch.hub.load",
        "torch.nn.modules.conv.Conv2d",
        "torch.serialization.load",
        "numpy.load",
        "numpy.testing._private.utils.runstring",
        "dnnlib.util.call_func_by_name",
        "some_package.run",
        "system",
    ],
)
def test_functions_and_modules(name):
    assert not may_be_named(name)


def test_not_more_classes_than_trainers_leave():
    stand_ins = StandIns()
    learned = [stand_ins.learn(ValueError(f"GLOBAL package.Class{i} was not")) for i in range(1000)]
    assert sum(learned) == 200 and all(learned[:200])


def test_a_class_changes_its_kind_at_most_once():
    """Whatever a hostile pickle makes torch say, learning ends."""
    stand_ins, name = StandIns(), "package.Thing"
    assert stand_ins.learn(ValueError(f"Unsupported global: GLOBAL {name} was not allowed"))
    assert not stand_ins.learn(ValueError(f"Unsupported global: GLOBAL {name} was not allowed"))
    assert stand_ins.learn(ValueError(f"Can only SETITEMS for dict, but got <class '{name}'>"))
    assert not stand_ins.learn(ValueError(f"Can only append to lists, but got <class '{name}'>"))
    assert not stand_ins.learn(ValueError("something else"))
    [(cls, path)] = stand_ins.classes
    assert path == name and cls(1, 2) == {}

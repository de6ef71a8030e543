"""What a latent model is trained to show: the category of a picture, or its name."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from qdiff.adapters.ldm.models import ClassEmbedder, FrozenCLIPEmbedder, LatentDiffusion
from qdiff.checkpoints.weights import load_weights
from qdiff.errors import UserError
from qdiff.files.tokenizer import VOCABULARY, has_vocabulary, load_tokenizer
from qdiff.training.pictures import Pictures
from qdiff.training.sections import classes_of
from qdiff.training.vocabulary import write_vocabulary


class TrainingCondition(ABC):
    """The condition of each picture, as whole numbers that the model's conditioner turns into a context.

    Attributes:
        conditioner: is trained with the UNet.
        none: what stands for no condition, shaped as one picture's.
        files: what the conditioner needs beside the weights.
        mirrored: whether a mirror image has the same condition as its picture.
    """

    conditioner: nn.Module
    none: Tensor
    files: Sequence[Path] = ()
    mirrored: bool

    @abstractmethod
    def of(self, pictures: Pictures) -> Tensor:
        """int64, shape (N, ...). Raises UserError for pictures that the model is not for."""

    @abstractmethod
    def embed(self, numbers: Tensor) -> Tensor:
        """Conditions of B pictures, (B, ...) -> context of the UNet, (B, tokens, width)."""


class Categories(TrainingCondition):
    """Categories in the order of the alphabet; each is one of the model's real classes, and its null class is none.

    Args:
        conditioner: the model's.
        config, path: of the model, and its file.

    Raises:
        UserError: the configuration names no classes, or another number of them than the model has, or no null class.
    """

    mirrored = True

    def __init__(self, conditioner: ClassEmbedder, config: DictConfig, path: Path):
        self.conditioner, self.classes = conditioner, classes_of(config, path)
        known = conditioner.embedding.num_embeddings
        if not self.classes:
            raise UserError(f"{path} describes no model that can be trained here: it must name its `classes`")
        if known != len(self.classes) + 1:
            wanted = f"make it {len(self.classes) + 1}: `classes`, and one for no class"
            raise UserError(f"{path}: n_classes is {known}, {wanted}")
        if conditioner.null_class is None:
            raise UserError(f"{path} says of no class that it stands for none: give its number as null_class")
        self.none, self.numbers = torch.tensor(conditioner.null_class), torch.tensor(conditioner.classes)

    def of(self, pictures: Pictures) -> Tensor:
        if pictures.classes != self.classes:
            raise UserError(
                f"{pictures.path} has the categories {pictures.classes}, the configuration's `classes` are "
                f"{self.classes}"
            )
        return self.numbers[pictures.labels]

    def embed(self, numbers: Tensor) -> Tensor:
        return self.conditioner({self.conditioner.key: numbers})


class Names(TrainingCondition):
    """Names as tokens of a vocabulary that is made from them; the empty name stands for none.

    A mirror image has another name where that says left or right, so there are no mirror images.

    Args:
        conditioner: the model's, which gets a tokenizer, and parameters that are trained.
        pictures: whose names the vocabulary is made from.
        folder: where the vocabulary is written to.
        init: weights of a model to start from; if its vocabulary lies beside, that is taken, and its conditioner.

    Raises:
        UserError: the names make no vocabulary of the conditioner's size.
    """

    mirrored = False

    def __init__(self, conditioner: FrozenCLIPEmbedder, pictures: Pictures, folder: Path, init: Path | None):
        if init and has_vocabulary(init.parent):
            load_weights(conditioner, init)
            folder.mkdir(parents=True, exist_ok=True)
            for name in VOCABULARY:
                shutil.copyfile(init.parent / name, folder / name)
        else:
            write_vocabulary(sorted(set(pictures.names)), conditioner.vocab_size, folder)
        self.conditioner, self.files = conditioner.requires_grad_(True), [folder / name for name in VOCABULARY]
        conditioner.tokenizer = load_tokenizer(folder, conditioner.max_length, conditioner.vocab_size)
        self.none = conditioner.tokenizer([""])[0]

    def of(self, pictures: Pictures) -> Tensor:
        return self.conditioner.tokenizer(pictures.names)

    def embed(self, numbers: Tensor) -> Tensor:
        return self.conditioner.encode_tokens(numbers)


def condition_of(
    latent: LatentDiffusion, pictures: Pictures, config: DictConfig, path: Path, run_dir: Path, init: Path | None
) -> TrainingCondition:
    """The conditions that a model takes.

    Args:
        latent: the model.
        pictures: what it is trained on.
        config, path: its configuration, and the file.
        run_dir: folder of the training.
        init: weights of a model to start from.

    Raises:
        UserError: another kind of conditioner, or what the kinds raise.
    """
    conditioner = latent.cond_stage_model
    if isinstance(conditioner, ClassEmbedder):
        return Categories(conditioner, config, path)
    if isinstance(conditioner, FrozenCLIPEmbedder):
        return Names(conditioner, pictures, run_dir / "tokenizer", init)
    raise UserError(
        f"{path} describes no model that can be trained here: its conditioner must be a ClassEmbedder or a "
        "FrozenCLIPEmbedder"
    )

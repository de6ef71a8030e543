"""What a latent model is trained to show: the category of an image, or its name."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from qdiff.adapters.ldm.models import (
    ClassConditioner,
    LatentDiffusion,
    TextConditioner,
    class_conditioner_of,
    text_conditioner_of,
)
from qdiff.checkpoints.load import load_weights
from qdiff.errors import UserError
from qdiff.files.tokenizer import VOCABULARY, has_vocabulary, load_tokenizer
from qdiff.training.images import ImageDataset
from qdiff.training.sections import classes_of
from qdiff.training.vocabulary import write_vocabulary


class TrainingCondition(ABC):
    """The condition of each image, as whole numbers that the model's conditioner turns into a context.

    Attributes:
        conditioner: is trained with the UNet.
        none: what stands for no condition, shaped as one image's.
        files: what the conditioner needs beside the weights.
        mirrored: whether a mirror image has the same condition as its image.
    """

    conditioner: nn.Module
    none: Tensor
    files: Sequence[Path] = ()
    mirrored: bool

    @abstractmethod
    def of(self, dataset: ImageDataset) -> Tensor:
        """int64, shape (N, ...). Raises UserError for images that the model is not for."""

    @abstractmethod
    def embed(self, numbers: Tensor) -> Tensor:
        """Conditions of B images, (B, ...) -> context of the UNet, (B, tokens, width)."""


class Categories(TrainingCondition):
    """Categories in the order of the alphabet; each is one of the model's real classes, and its null class is none.

    Args:
        conditioner: the model's.
        config, path: of the model, and its file.

    Raises:
        UserError: the configuration names no classes, or another number of them than the model has, or no null class.
    """

    mirrored = True

    def __init__(self, conditioner: ClassConditioner, config: DictConfig, path: Path):
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

    def of(self, dataset: ImageDataset) -> Tensor:
        if dataset.classes != self.classes:
            raise UserError(
                f"{dataset.path} has the categories {dataset.classes}, the configuration's `classes` are {self.classes}"
            )
        return self.numbers[dataset.labels]

    def embed(self, numbers: Tensor) -> Tensor:
        return self.conditioner({self.conditioner.key: numbers})


class Names(TrainingCondition):
    """Names as tokens of a vocabulary that is made from them; the empty name stands for none.

    A mirror image has another name where that says left or right, so there are no mirror images.

    Args:
        conditioner: the model's, which gets a tokenizer, and parameters that are trained.
        dataset: whose names the vocabulary is made from.
        folder: where the vocabulary is written to.
        init: weights of a model to start from; if its vocabulary lies beside, that is taken, and its conditioner.

    Raises:
        UserError: the names make no vocabulary of the conditioner's size.
    """

    mirrored = False

    def __init__(self, conditioner: TextConditioner, dataset: ImageDataset, folder: Path, init: Path | None):
        if init and has_vocabulary(init.parent):
            load_weights(conditioner, init)
            folder.mkdir(parents=True, exist_ok=True)
            for name in VOCABULARY:
                shutil.copyfile(init.parent / name, folder / name)
        else:
            write_vocabulary(sorted(set(dataset.names)), conditioner.vocab_size, folder)
        self.conditioner, self.files = conditioner.requires_grad_(True), [folder / name for name in VOCABULARY]
        conditioner.tokenizer = load_tokenizer(folder, conditioner.max_length, conditioner.vocab_size)
        self.none = conditioner.tokenizer([""])[0]

    def of(self, dataset: ImageDataset) -> Tensor:
        return self.conditioner.tokenizer(dataset.names)

    def embed(self, numbers: Tensor) -> Tensor:
        return self.conditioner.encode_tokens(numbers)


def condition_of(
    latent: LatentDiffusion, dataset: ImageDataset, config: DictConfig, path: Path, run_dir: Path, init: Path | None
) -> TrainingCondition:
    """The conditions that a model takes.

    Args:
        latent: the model.
        dataset: what it is trained on.
        config, path: its configuration, and the file.
        run_dir: folder of the training.
        init: weights of a model to start from.

    Raises:
        UserError: another kind of conditioner, or what the kinds raise.
    """
    if embedder := class_conditioner_of(latent):
        return Categories(embedder, config, path)
    if encoder := text_conditioner_of(latent):
        return Names(encoder, dataset, run_dir / "tokenizer", init)
    raise UserError(
        f"{path} describes no model that can be trained here: its conditioner must be a ClassEmbedder or a "
        "FrozenCLIPEmbedder"
    )

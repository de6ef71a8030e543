"""Conditions for the training of a latent model: categories of images, or their names."""

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
from qdiff.checkpoints.weights import load_weights
from qdiff.errors import UserError
from qdiff.files.tokenizer import VOCABULARY, has_vocabulary, load_tokenizer
from qdiff.training.images import ImageDataset
from qdiff.training.job import TrainingJob
from qdiff.training.sections import classes_of
from qdiff.training.vocabulary import write_vocabulary


class TrainingCondition(ABC):
    """Conditions of images, as integers that the model's conditioner embeds.

    Attributes:
        conditioner: trained with the UNet.
        null: the null condition of one image, int64.
        files: files that the conditioner needs besides the weights.
        mirrored: whether a mirrored image has the same condition.
    """

    conditioner: nn.Module
    null: Tensor
    files: Sequence[Path] = ()
    mirrored: bool

    @abstractmethod
    def of(self, dataset: ImageDataset) -> Tensor:
        """Return the conditions of N images, int64, (N, ...). Raises UserError for images of another model."""

    @abstractmethod
    def embed(self, numbers: Tensor) -> Tensor:
        """Return the UNet's context (B, tokens, width) for B conditions, (B, ...)."""


class Categories(TrainingCondition):
    """Categories in alphabetical order: each is one of the model's classes, and its null class is the null condition.

    Args:
        conditioner: the model's class embedder.
        config: configuration of the model.
        path: its file, for error messages.

    Raises:
        UserError: the configuration names no classes, not as many as the model has, or no null class.
    """

    mirrored = True

    def __init__(self, conditioner: ClassConditioner, config: DictConfig, path: Path):
        self.embedder, self.classes = conditioner, classes_of(config, path)
        known = conditioner.embedding.num_embeddings
        if not self.classes:
            raise UserError(f"'{path}': this model cannot be trained: it must name its `classes`")
        if known != len(self.classes) + 1:
            wanted = f"make it {len(self.classes) + 1}: one for each of `classes`, and the null class"
            raise UserError(f"'{path}': n_classes is {known}, {wanted}")
        if conditioner.null_class is None:
            raise UserError(f"'{path}' names no null class: give its number as null_class")
        self.conditioner = conditioner
        self.null, self.numbers = torch.tensor(conditioner.null_class), torch.tensor(conditioner.classes)

    def of(self, dataset: ImageDataset) -> Tensor:
        """Return the class of each image, int64, (N,). Raises UserError if the categories are not the classes."""
        if dataset.classes != self.classes:
            raise UserError(
                f"'{dataset.path}' has the categories {dataset.classes}, the configuration's `classes` are "
                f"{self.classes}: make them equal"
            )
        return self.numbers[dataset.labels]

    def embed(self, numbers: Tensor) -> Tensor:
        """Return the embeddings (B, 1, width) of classes (B,)."""
        return self.embedder({self.embedder.key: numbers})


class Names(TrainingCondition):
    """Names as tokens of a vocabulary made from them; the empty name is the null condition.

    Images are not mirrored, because names may say left or right.

    Args:
        conditioner: of the model; it gets a tokenizer, and its parameters are trained.
        dataset: the vocabulary is made from its names.
        folder: for the vocabulary.
        init: weights of a model to start from; if its vocabulary lies in the same folder, vocabulary and conditioner
            are taken from it.

    Raises:
        UserError: the names do not suffice for a vocabulary of the conditioner's size, or `init` cannot be read.
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
        self.tokenizer = load_tokenizer(folder, conditioner.max_length, conditioner.vocab_size)
        self.encoder = conditioner.requires_grad_(True)
        self.encoder.tokenizer = self.tokenizer
        self.conditioner, self.files = self.encoder, [folder / name for name in VOCABULARY]
        self.null = self.tokenizer([""])[0]

    def of(self, dataset: ImageDataset) -> Tensor:
        """Return the tokens of each name, int64, (N, max_length)."""
        return self.tokenizer(dataset.names)

    def embed(self, numbers: Tensor) -> Tensor:
        """Return the text encoder's states (B, max_length, width) for tokens (B, max_length)."""
        return self.encoder.encode_tokens(numbers)


def condition_of(
    latent: LatentDiffusion, dataset: ImageDataset, config: DictConfig, job: TrainingJob
) -> TrainingCondition:
    """Return the training conditions for a model.

    Args:
        latent: the model.
        dataset: its training images.
        config: its configuration.
        job: files; a vocabulary is written to the folder `tokenizer` in its run.

    Raises:
        UserError: the model has another conditioner, or as `Categories` and `Names`.
    """
    if embedder := class_conditioner_of(latent):
        return Categories(embedder, config, job.config)
    if encoder := text_conditioner_of(latent):
        return Names(encoder, dataset, job.run / "tokenizer", job.init)
    raise UserError(
        f"'{job.config}': this model cannot be trained: its conditioner must be a ClassEmbedder or a FrozenCLIPEmbedder"
    )

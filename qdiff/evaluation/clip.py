"""CLIP score: how well images fit their prompts (Hessel et al. 2021)."""

from pathlib import Path

import torch

from qdiff.errors import UserError
from qdiff.evaluation.measures import Batch, Measure, Metric
from qdiff.files.digest import tensors_digest

CLIP = Metric(
    "clip",
    "CLIP score",
    "",
    "100 times the cosine between the CLIP embeddings of image and prompt, at least 0, averaged; higher fits better",
    by="transformers",
)


class ClipScore(Measure):
    """The mean of max(100 cos(image, prompt), 0), as torchmetrics and most papers scale it (without Hessel's 2.5).

    Prompts longer than CLIP's text encoder reads are cut.

    Args:
        name: folder of a CLIP model as transformers saves it, or its name on the Hugging Face hub.
        device: where to compute.

    Raises:
        UserError: the model cannot be loaded.
    """

    metrics = (CLIP,)

    def __init__(self, name: str, device: torch.device):
        from transformers import CLIPModel, CLIPProcessor

        try:
            model = CLIPModel.from_pretrained(name, local_files_only=Path(name).is_dir())
            self._processor = CLIPProcessor.from_pretrained(name, local_files_only=Path(name).is_dir())
        except Exception as e:  # transformers and the hub raise many kinds
            reason = " ".join(str(e).split())[:200]
            raise UserError(
                f"cannot load the CLIP model '{name}' ({reason}): give --clip the folder of a model as transformers "
                "saves it, or a name on the Hugging Face hub"
            ) from e
        self._model = model.eval().to(device)
        self.sha256 = tensors_digest(model.state_dict())
        self._sum, self._count = 0.0, 0

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        assert batch.prompts is not None
        images = list(batch.images.expand(-1, 3, -1, -1).cpu())
        length = self._model.config.text_config.max_position_embeddings
        cut = {"padding": True, "truncation": True, "max_length": length}
        inputs = self._processor(text=list(batch.prompts), images=images, return_tensors="pt", **cut)
        found = self._model(**inputs.to(self._model.device))
        cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
        self._sum += (100 * cosine).clamp(min=0).sum().item()
        self._count += len(images)

    def compute(self) -> tuple[float]:
        return (self._sum / self._count,)

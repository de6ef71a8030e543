"""CLIP score with a small CLIP of random weights in a folder."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from qdiff.errors import UserError
from qdiff.evaluation.clip import ClipScore
from qdiff.evaluation.measures import Batch
from qdiff.files.images import to_pillow
from qdiff.files.tokenizer import clip_tokenizer
from tests.qdiff.evaluation.networks import drawn_images
from tests.tokenizer import END, START, VOCABULARY, write

CPU = torch.device("cpu")
PROMPTS = ["red apple", "ap", "an apple that is red " * 5]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_clip(folder: Path) -> Path:
    """Write a model, its tokenizer and its image processor as transformers saves them."""
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": len(VOCABULARY), "max_position_embeddings": 9, "bos_token_id": START}
    text |= {"eos_token_id": END, "pad_token_id": END}
    vision = SMALL | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    size = {"crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 16}}
    CLIPProcessor(CLIPImageProcessor(**size), clip_tokenizer(write(folder / "words"))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def cosines(folder: Path, images: torch.Tensor) -> list[float]:
    """Image by image, from Pillow images, through the two encoders."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    found = []
    for pixels, prompt in zip(images, PROMPTS):
        tokens = processor.tokenizer(prompt, truncation=True, max_length=9, return_tensors="pt")
        shown = processor.image_processor(to_pillow(pixels), return_tensors="pt")
        with torch.no_grad():
            text = model.text_projection(model.text_model(**tokens).pooler_output)
            image = model.visual_projection(model.vision_model(**shown).pooler_output)
        found.append(torch.cosine_similarity(text, image).item())
    return found


@pytest.mark.parametrize("sizes", [[3], [1, 2]])
def test_the_score_is_the_mean_cosine(sizes, folder):
    images = drawn_images(3, 0, size=20)
    measure = ClipScore(str(folder), CPU)
    start = 0
    for batch in images.split(sizes):
        measure.update(Batch(batch, prompts=PROMPTS[start : start + len(batch)]))
        start += len(batch)
    expected = [max(100 * cosine, 0) for cosine in cosines(folder, images)]
    assert measure.compute()[0] == pytest.approx(sum(expected) / 3, abs=1e-3)
    assert max(expected) > 1 and len({round(x, 3) for x in cosines(folder, images)}) == 3


def test_the_digest_is_that_of_the_weights(folder):
    assert ClipScore(str(folder), CPU).sha256 == ClipScore(str(folder), CPU).sha256
    assert len(ClipScore(str(folder), CPU).sha256) == 64


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot load the CLIP model .* give --clip the folder") as caught:
        ClipScore(str(tmp_path), CPU)
    assert "\n" not in str(caught.value)

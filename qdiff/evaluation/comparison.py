"""An image that shows several methods side by side."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from qdiff.files.images import read_images, to_pillow

ENLARGED = 2  # factor per side
WIDE = 2  # width over height from which images are stacked instead of put side by side
MARGIN = 8  # pixels


def comparison(images: Mapping[str, Path]) -> Image.Image:
    """Show images with their names, enlarged without smoothing: side by side, or wide ones one below the other.

    Args:
        images: name -> PNG; the first of the names is leftmost or topmost.

    Raises:
        UserError: as `read_images`.
    """
    font, title = ImageFont.load_default(20), 2 * MARGIN + 20
    loaded = {name: _enlarged(path) for name, path in images.items()}
    width, height = map(max, zip(*(image.size for image in loaded.values())))
    step = (0, title + height) if width > WIDE * height else (width + MARGIN, 0)
    last_x, last_y = (edge * (len(loaded) - 1) for edge in step)
    sheet = Image.new("RGB", (last_x + width + 2 * MARGIN, last_y + title + height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, image) in enumerate(loaded.items()):
        x, y = MARGIN + i * step[0], i * step[1]
        draw.text((x, y + MARGIN), name, "black", font)
        sheet.paste(image, (x, y + title))
    return sheet


def _enlarged(path: Path) -> Image.Image:
    image = to_pillow(read_images([path])[0])
    return image.resize((ENLARGED * image.width, ENLARGED * image.height), Image.Resampling.NEAREST)

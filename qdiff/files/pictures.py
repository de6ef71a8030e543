"""Files of pictures."""

from pathlib import Path

from PIL import Image

from qdiff.errors import UserError


def read_picture(path: Path) -> Image.Image:
    """A picture as RGB. Raises UserError if it is missing or damaged."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError) as e:  # what Pillow raises for damaged files
        raise UserError(f"'{path}' is not a whole picture ({e}): delete it and run the same command again") from e

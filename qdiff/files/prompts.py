"""Files with one prompt per line."""

from pathlib import Path

from qdiff.errors import UserError


def as_text(prompt: str) -> str:
    """Replace lone surrogates, which command lines may contain but UTF-8 files cannot, by "?"."""
    return prompt.encode("utf-8", "replace").decode()


def read_prompts(path: Path, flag: str) -> list[str]:
    """Read the non-blank lines of a UTF-8 file, stripped; `flag` is the flag that names it.

    Raises:
        UserError: the file cannot be read or has no prompts.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read {flag} {path} ({e}): give a UTF-8 text file with one prompt per line") from e
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{flag} {path} contains no prompts: write one per line")
    return prompts

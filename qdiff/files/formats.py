"""Formats of checkpoint files and folders, recognised by content, never by suffix."""

from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, ZipFile

from qdiff.errors import UserError

Format = Literal["zip", "safetensors", "pickle"]

HEADER = 100_000_000  # bytes of the longest safetensors header; its length comes first, and text there reads as more
WEIGHTS = "give a checkpoint that torch.save or safetensors wrote"

# First bytes of files that are not checkpoints -> what they are, and what to do
SIGNATURES = {
    b"<": f"a web page or other XML text: {WEIGHTS}",
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` to get the file itself",
    b"GGUF": f"a GGUF file, whose format is not supported: {WEIGHTS}",
    b"\x89HDF\r\n": f"an HDF5 file, whose format is not supported: {WEIGHTS}",
    b"\x89PNG": f"a PNG image: {WEIGHTS}",
    b"\x1f\x8b": "a gzip archive: unpack it, and give the checkpoint inside",
    b"7z\xbc\xaf": "a 7z archive: unpack it, and give the checkpoint inside",
    b"Rar!": "a RAR archive: unpack it, and give the checkpoint inside",
}
INDEX = "the index of a checkpoint in several files, which is not supported: merge them into one file, and give that"
DIFFUSERS = (
    "a model in the folder layout of diffusers, which is not supported: convert it to one file with diffusers' "
    "scripts/convert_diffusers_to_original_stable_diffusion.py, and give that"
)
# Entries of folders that are not checkpoints -> what the folder is
FOLDERS = {
    "model_index.json": DIFFUSERS,
    "unet": DIFFUSERS,
    "diffusion_pytorch_model.safetensors": DIFFUSERS,
    "diffusion_pytorch_model.bin": DIFFUSERS,
    "*.index.json": INDEX,
    "adapter_config.json": "a LoRA, not a model: merge it into its model, and give that",
    ".metadata": "a distributed checkpoint of PyTorch, which is not supported: merge it into one file, and give that",
}


def format_of(path: str | Path) -> Format:
    """Return the format of a checkpoint.

    Returns:
        "safetensors"; "zip" (torch.save since 1.6); "pickle" (anything else, which only torch.load can judge).

    Raises:
        UserError: the file is missing, unreadable, empty, a folder, or recognised as something else.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"'{path}' is {folder_kind(path) or f'a folder: {WEIGHTS}'}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as e:
        raise UserError(f"cannot read '{path}' ({e.strerror}): give the path of a checkpoint file") from e
    if not head:
        raise UserError(f"'{path}' is empty: {WEIGHTS}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER:
        return "safetensors"
    if head.lstrip().startswith(b"{"):
        raise UserError(f"'{path}' is {INDEX if b'weight_map' in path.read_bytes() else f'a JSON text: {WEIGHTS}'}")
    for start, what in SIGNATURES.items():
        if head.lstrip().startswith(start):
            raise UserError(f"'{path}' is {what}")
    if head[257:262] == b"ustar":
        raise UserError(f"'{path}' is a tar archive: unpack it, and give the checkpoint inside")
    return "zip" if head.startswith(b"PK\x03\x04") else "pickle"


def folder_kind(folder: Path) -> str | None:
    """Return the unsupported layout of a model folder, and what to do; None for any other folder."""
    return next((what for pattern, what in FOLDERS.items() if any(folder.glob(pattern))), None)


def zip_kind(archive: ZipFile) -> str | None:
    """Return what a zip archive is if torch.save did not write it, and what to do; None if it did.

    Raises:
        BadZipFile: the archive has no members.
    """
    names = archive.namelist()
    if not names:
        raise BadZipFile("it has no members")
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive: save the state dict of the model with torch.save, and give that"
    if any(name.endswith("/data.pkl") for name in names):
        return None
    if all(name.endswith(".npy") for name in names):
        return f"a NumPy archive (.npz): {WEIGHTS}"
    return f"a zip archive that torch.save did not write (it holds '{names[0]}'): unpack it, or {WEIGHTS}"

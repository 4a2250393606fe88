"""Which images of an instruction mix are there, folder by folder."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from transformers_agci.data.instruct import existing_name, read_conversations
from transformers_agci.errors import InputError


@dataclass
class FolderCount:
    """Images of one folder that a mix names: how many, how many are missing, the first missing ones."""

    named: int = 0
    missing: int = 0
    first_missing: list[str] = field(default_factory=list)


def count_images(mix: Path, image_root: Path) -> dict[str, FolderCount]:
    """Per folder of `mix`'s images (LLaVA's form), which exist below `image_root`; each image counts once."""
    if not image_root.is_dir():
        raise InputError(f"There is no image folder {image_root}: give --image_root.")
    folders: dict[str, FolderCount] = defaultdict(FolderCount)
    seen = set()
    for where, record in read_conversations(mix):
        image = record.get("image")
        if not isinstance(image, str) or image in seen:
            continue
        seen.add(image)
        count = folders[str(Path(image).parent)]
        count.named += 1
        if existing_name(image_root, image, where) is None:
            count.missing += 1
            if len(count.first_missing) < 3:
                count.first_missing.append(image)
    return dict(sorted(folders.items()))

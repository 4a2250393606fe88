"""Every supported family beyond the paper's six as a tiny random model of transformers' own classes.

One builder per family says the model's config and what the processor makes of one image: token ids with the marks
that the real processor writes, and pixel inputs. Batches are put together from these pieces, so that the truth about
which tokens belong to which image comes from how the prompt was made.

    family = TINY["aya_vision"]
    model = family.build()
    batch = make_batch(family, [[TEXT, "tiled", "plain"], [TEXT]])
    batch.inputs, batch.images          # images: (row, [positions]) in order
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers

from transformers_agci.families import decoder_of, find_vlm

PAD, BOS, EOS, IMG, VIDEO, AUDIO = 0, 1, 2, 30, 31, 32
VOCABULARY = 200
TEXT = "text"  # an item of a prompt: a few text tokens
WIDTH = 32


@dataclass(frozen=True)
class Piece:
    """One image in a prompt: ids, and pixel inputs whose first dimension is images, tiles or patches."""

    ids: list[int]
    pixels: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Batch:
    inputs: dict[str, torch.Tensor]
    images: list[tuple[int, list[int]]]  # (row, positions of its tokens), in order


@dataclass(frozen=True)
class TinyFamily:
    """A family to test.

    config    config class name, and its arguments
    model     model class name
    piece     (form, generator) -> one image; form is "plain" or "tiled" (of several tiles, or larger)
    collate   rows of pieces -> pixel inputs
    extra     inputs -> further inputs that the model needs
    lora      layers of the decoder for an adapter
    notes     test -> why stock itself cannot do it
    """

    model_type: str
    model: str
    config: Callable[[], Any]
    piece: Callable[..., Piece]
    collate: Callable[[list[list[Piece]]], dict[str, torch.Tensor]]
    image_token: int = IMG
    lora: str = "q_proj|v_proj"
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        named = self.config.args[0] if isinstance(self.config, partial) else self.model
        return hasattr(transformers, self.model) and hasattr(transformers, named)

    def build(self, seed: int = 0) -> Any:
        """The model, in eval mode, float32."""
        torch.manual_seed(seed)
        config = self.config()
        config._attn_implementation = "eager"
        model = getattr(transformers, self.model)(config).eval()
        vlm = find_vlm(model)
        of_decoder = {id(weight) for weight in decoder_of(vlm).parameters()}
        for weight in vlm.parameters():  # as initialized, some towers give features that are nearly equal, or zero
            if weight.ndim > 1 and id(weight) not in of_decoder:
                torch.nn.init.normal_(weight, std=0.2)
        return model


# --- pieces --------------------------------------------------------------------------------------------------------


def random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def concatenated(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    """All pixel inputs along their first dimension."""
    pieces = [piece for row in rows for piece in row]
    return {name: torch.cat([piece.pixels[name] for piece in pieces]) for name in pieces[0].pixels} if pieces else {}


def padded_pixels(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    """As `concatenated`, images of different size padded on the right and below."""
    pieces = [piece for row in rows for piece in row]
    if not pieces:
        return {}
    height, width = (max(piece.pixels["pixel_values"].shape[side] for piece in pieces) for side in (-2, -1))
    grown = []
    for piece in pieces:
        pixels = piece.pixels["pixel_values"]
        more = (0, width - pixels.shape[-1], 0, height - pixels.shape[-2])
        grown.append(Piece(piece.ids, {**piece.pixels, "pixel_values": torch.nn.functional.pad(pixels, more)}))
    return concatenated([grown])


def per_sample(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    """pixel_values [B, most tiles of a row, ...]; what a row lacks is zero, as Idefics3's processor pads it."""
    if not any(rows):
        return {}
    tiles = [torch.cat([piece.pixels["pixel_values"] for piece in row]) if row else None for row in rows]
    shape = next(tile.shape[1:] for tile in tiles if tile is not None)
    most = max(0 if tile is None else len(tile) for tile in tiles)
    values = torch.zeros(len(rows), most, *shape)
    for row, tile in enumerate(tiles):
        if tile is not None:
            values[row, : len(tile)] = tile
    return {"pixel_values": values}


def per_image(rows: list[list[Piece]], count: bool = False) -> dict[str, torch.Tensor]:
    """pixel_values [images, most tiles, ...], padded with zeros; LLaVA-OneVision also counts images per prompt."""
    pieces = [piece for row in rows for piece in row]
    if not pieces:
        return {}
    most = max(piece.pixels["pixel_values"].shape[1] for piece in pieces)
    grown = [
        Piece(
            piece.ids,
            {
                **piece.pixels,
                "pixel_values": torch.nn.functional.pad(
                    piece.pixels["pixel_values"], (0,) * 7 + (most - piece.pixels["pixel_values"].shape[1],)
                ),
            },
        )
        for piece in pieces
    ]
    inputs = concatenated([grown])
    return inputs | {"batch_num_images": torch.tensor([len(row) for row in rows if row])} if count else inputs


def make_batch(
    family: TinyFamily, rows: Sequence[Sequence[str]], side: str = "left", seed: int = 0, alike: bool = False
) -> Batch:
    """A batch of prompts; a row is a sequence of TEXT, "plain" and "tiled". Padded on `side`.

    `alike`: every row has the tokens and images that it would have as the first one.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces: list[list[Piece]] = []
    ids: list[list[int]] = []
    places: list[list[list[int]]] = []
    for row in rows:
        if alike:
            generator.manual_seed(seed)
        tokens: list[int] = [BOS]
        pieces.append([])
        places.append([])
        for item in row:
            if item == TEXT:
                tokens += torch.randint(40, VOCABULARY, (5,), generator=generator).tolist()
                continue
            alone = {"alone": sum(other != TEXT for other in row) == 1} if family.piece is onevision_piece else {}
            piece = family.piece(item, generator, **alone)
            places[-1].append([len(tokens) + i for i, t in enumerate(piece.ids) if t == family.image_token])
            tokens += piece.ids
            pieces[-1].append(piece)
        ids.append(tokens)
    longest = max(map(len, ids))
    left = side == "left"
    input_ids = torch.full((len(ids), longest), PAD)
    mask = torch.zeros_like(input_ids)
    images = []
    for row, tokens in enumerate(ids):
        start = longest - len(tokens) if left else 0
        input_ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
        images += [(row, [start + place for place in image]) for image in places[row]]
    inputs = {"input_ids": input_ids, "attention_mask": mask, **family.collate(pieces)}
    names = inspect.signature(getattr(transformers, family.model).forward).parameters
    if "pixel_values_images" in names and "pixel_values" not in names:  # Video-LLaVA in older versions
        inputs["pixel_values_images"] = inputs.pop("pixel_values")
    return Batch(inputs | type_ids(family, input_ids), images)


def wide_image() -> tuple[dict[str, torch.Tensor], list[int]]:
    """Inputs of the tiny Qwen2-VL with one image of 3 x 4 tokens, and where they stand."""
    batch = make_batch(TINY["qwen2_vl"], [[TEXT, "plain", TEXT]])
    ids = batch.inputs["input_ids"][0].tolist()
    first = ids.index(IMG)
    ids[first : first + 4] = [IMG] * 12
    values = batch.inputs["pixel_values"].shape[1]
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(48, values, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 6, 8]]),
    }
    if "mm_token_type_ids" in batch.inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMG).long()
    return inputs, list(range(first, first + 12))


def type_ids(family: TinyFamily, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which tokens are image tokens, under the name that the model's forward takes."""
    names = inspect.signature(getattr(transformers, family.model).forward).parameters
    marked = (ids == family.image_token).long()
    found = {"mm_token_type_ids": marked} if "mm_token_type_ids" in names else {}
    if "moe_mm_token_type_ids" in names:
        found["moe_mm_token_type_ids"] = marked
    if "token_type_ids" in names and family.model_type == "gemma3":
        found["token_type_ids"] = marked
    return found


def text(**more: Any) -> dict[str, Any]:
    """A small decoder's config."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
        **more,
    }


MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
MROPE_INTERLEAVED = {**MROPE, "mrope_interleaved": True}


def config(name: str, **values: Any) -> Callable[[], Any]:
    """A config by class name, made when it is asked for: older versions of transformers do not have all of them."""
    return partial(_made, name, values)


def _made(name: str, values: dict[str, Any]) -> Any:
    return getattr(transformers, name)(**values)


# grid of patches

GRID_SIZES = {"plain": (4, 4), "tiled": (4, 6)}  # patches


def grid_piece(
    form: str, generator: torch.Generator, *, values: int, merged: int = 4, marks: tuple[int, int] = (3, 4)
) -> Piece:
    """`values` numbers per patch, `merged` patches per token, a mark before and behind."""
    height, width = GRID_SIZES[form]
    ids = [marks[0], *[IMG] * (height * width // merged), marks[1]]
    grid = torch.tensor([[1, height, width]])
    return Piece(ids, {"pixel_values": random(generator, height * width, values), "image_grid_thw": grid})


QWEN_VISION = {
    "depth": 2,
    "hidden_size": WIDTH,
    "embed_dim": WIDTH,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 16,
    "in_channels": 3,
}
QWEN_PATCH = partial(grid_piece, values=3 * 2 * 4 * 4)
QWEN_IDS = {"image_token_id": IMG, "video_token_id": VIDEO, "vision_start_token_id": 3, "vision_end_token_id": 4}

# squares

TILE = 16  # pixels
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": 4,
    "projection_dim": WIDTH,
}
IDEFICS_VISION = transformers.Idefics3VisionConfig(**{**CLIP, "model_type": "idefics3_vision"})
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}


def square_piece(form: str, generator: torch.Generator, *, tokens: int, size: int = TILE, more: Any = None) -> Piece:
    """One image of `tokens` tokens without any mark: two of them touch."""
    pixels = {"pixel_values": random(generator, 1, 3, size, size)}
    return Piece([IMG] * tokens, pixels | (more(generator) if more else {}))


# tiles with separators; marks are single tokens here, test_separators.py has the real processors' prompts


def tiles_of(form: str, generator: torch.Generator, size: int = TILE) -> torch.Tensor:
    return random(generator, 3 if form == "tiled" else 1, 3, size, size)


def aya_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    run = [IMG] * tokens
    tiles = [5, *run, 6, *run] if form == "tiled" else []
    return Piece([3, *tiles, 7, *run, 4], {"pixel_values": tiles_of(form, generator)})


def cohere_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    pixels = tiles_of(form, generator)
    return Piece([3, *([IMG] * tokens + [5]) * len(pixels), 4], {"pixel_values": pixels})


def llama_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    run = [IMG] * tokens
    tiles = [*run, 5, *run, 6] if form == "tiled" else []
    return Piece([3, *tiles, 7, *run, 4], {"pixel_values": tiles_of(form, generator)})


def ovis_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    run = [IMG] * tokens
    tiles = [*run, 6, *run] if form == "tiled" else []
    return Piece([3, *run, 5, *tiles, 4], {"pixel_values": tiles_of(form, generator)})


def idefics_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    run = [IMG] * tokens
    tiles = [3, 5, *run, 3, 6, *run, 8, 8] if form == "tiled" else []
    return Piece([*tiles, 3, 7, *run, 3], {"pixel_values": tiles_of(form, generator)})


def lfm_piece(form: str, generator: torch.Generator) -> Piece:
    """Tiles of 4 x 4 patches, a thumbnail of 2 x 4; an image without tiles is one of 2 x 4."""
    shapes = [(4, 4), (4, 4), (2, 4)] if form == "tiled" else [(2, 4)]
    run = [IMG] * 4
    tiles = [5, *run, 6, *run, 7] if form == "tiled" else []
    mask = torch.tensor([[int(i < h * w) for i in range(16)] for h, w in shapes])
    pixels = {
        "pixel_values": random(generator, len(shapes), 16, 3 * 4 * 4),
        "spatial_shapes": torch.tensor(shapes),
        "pixel_attention_mask": mask,
    }
    return Piece([3, *tiles, IMG, IMG, 4], pixels)


def perception_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    """All images of a call have as many tiles: the processor stacks them, and nothing marks where one ends."""
    return Piece([IMG] * (2 * tokens), {"pixel_values": random(generator, 1, 2, 3, TILE, TILE)})


def run_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    """Tiles in one run, marks around it: GOT-OCR2, Aria."""
    pixels = tiles_of(form, generator)
    return Piece([3, *[IMG] * (tokens * len(pixels)), 4], {"pixel_values": pixels})


def pixtral_piece(form: str, generator: torch.Generator, merge: int = 1, breaks: bool = True) -> Piece:
    """Rows of tokens, a break behind each and an end behind the last."""
    rows, columns = (2, 3) if form == "tiled" else (2, 2)
    row = [IMG] * columns
    ids = [*row, 5] * (rows - 1) + [*row, 6] if breaks else row * rows
    height, width = rows * 4 * merge, columns * 4 * merge
    return Piece(
        ids, {"pixel_values": random(generator, 1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}
    )


def docling_piece(form: str, generator: torch.Generator, tokens: int) -> Piece:
    run = [IMG] * tokens
    ids = [3, 5, *run, 3, 6, *run, 8, 8, 3, 7, *run, 3] if form == "tiled" else [3, 5, *run, 8]
    return Piece(ids, {"pixel_values": tiles_of(form, generator)})


def docling_collate(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    inputs = per_sample(rows)
    if inputs:
        inputs["pixel_attention_mask"] = (inputs["pixel_values"] != 0).flatten(2).any(dim=-1)
    return inputs


def molmo_piece(form: str, generator: torch.Generator) -> Piece:
    """The whole as 2 x 2 tokens, then the crops put together as rows of tokens with a column token behind each."""
    rows, columns = (2, 3) if form == "tiled" else (1, 2)
    low, high = [IMG, IMG, 6], [*[IMG] * columns, 6]
    ids = [3, *low * 2, 5, 4, *high * rows, 5]
    tokens = 4 + rows * columns
    pooling = torch.arange(tokens * 2).view(tokens, 2) % 32
    pixels = {
        "pixel_values": random(generator, 2, 16, 3 * 4 * 4),  # two crops of 4 x 4 patches
        "image_token_pooling": pooling,
        "image_grids": torch.tensor([[2, 2, rows, columns]]),
        "image_num_crops": torch.tensor([2]),
    }
    return Piece(ids, pixels)


def molmo_collate(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    """The pooling's numbers count the patches of all crops of the call."""
    pieces = [piece for row in rows for piece in row]
    moved = [
        Piece(piece.ids, {**piece.pixels, "image_token_pooling": piece.pixels["image_token_pooling"] + 32 * number})
        for number, piece in enumerate(pieces)
    ]
    return concatenated([moved])


def anyres_piece(form: str, generator: torch.Generator) -> Piece:
    """LLaVA-NeXT and its kin: tiles of 16 pixels and 4 x 4 tokens; 16 x 32 pixels make two tiles, 16 x 16 one."""
    columns = 2 if form == "tiled" else 1
    tokens = 16 + 4 * (4 * columns + 1)
    pixels = {
        "pixel_values": random(generator, 1, 1 + columns, 3, TILE, TILE),
        "image_sizes": torch.tensor([[TILE, TILE * columns]]),
    }
    return Piece([IMG] * tokens, pixels)


def onevision_piece(form: str, generator: torch.Generator, alone: bool) -> Piece:
    """An image among others in its prompt has no tiles: whole image and newline."""
    if alone:
        return anyres_piece(form, generator)
    pixels = {
        "pixel_values": random(generator, 1, 1, 3, TILE, TILE),
        "image_sizes": torch.tensor([[TILE, TILE]]),
    }
    return Piece([IMG] * 17, pixels)


PINPOINTS = [[TILE, TILE], [TILE, 2 * TILE], [2 * TILE, TILE]]


def gemma4_piece(form: str, generator: torch.Generator) -> Piece:
    """Squares of 2 x 2 patches are pooled; 24 places for patches, those that are not used are at (-1, -1)."""
    rows, columns = (4, 6) if form == "tiled" else (4, 4)
    positions = torch.full((1, 24, 2), -1)
    places = [(column, row) for row in range(rows) for column in range(columns)]
    positions[0, : rows * columns] = torch.tensor(places)
    ids = [3, *[IMG] * (rows * columns // 4), 4]
    return Piece(ids, {"pixel_values": random(generator, 1, 24, 3 * 4 * 4), "image_position_ids": positions})


def hunyuan_piece(form: str, generator: torch.Generator) -> Piece:
    height, width = GRID_SIZES[form]
    ids = [3, *[IMG] * (height // 2 * (width // 2 + 1) + 2), 4]
    grid = torch.tensor([[1, height, width]])
    return Piece(ids, {"pixel_values": random(generator, height * width, 3 * 4 * 4), "image_grid_thw": grid})


def conv_piece(form: str, generator: torch.Generator) -> Piece:
    piece = grid_piece(form, generator, values=3 * 4 * 4)
    return Piece(piece.ids, {**piece.pixels, "pixel_values": piece.pixels["pixel_values"].view(-1, 3, 4, 4)})


def merge_size_piece(form: str, generator: torch.Generator) -> Piece:
    """VideoLLaMA 3: the call says how many patches are merged, image by image; nothing marks an image."""
    height, width = GRID_SIZES[form]
    merge = 1 if form == "tiled" else 2
    pixels = {
        "pixel_values": random(generator, height * width, 3 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, height, width]]),
        "image_merge_sizes": torch.tensor([merge]),
    }
    return Piece([IMG] * (height * width // merge**2), pixels)


def token_grid_piece(form: str, generator: torch.Generator) -> Piece:
    """Inkling 2: the grid counts tokens, of 2 x 2 patches each."""
    height, width = (2, 3) if form == "tiled" else (2, 2)
    grid = torch.tensor([[1, height, width]])
    pixels = {"pixel_values": random(generator, height * width, 8, 8, 3), "image_grid_thw": grid}
    return Piece([3, *[IMG] * (height * width), 4], pixels)


def ocr_piece(form: str, generator: torch.Generator) -> Piece:
    """GOT-OCR2's tower halves 64 / 4 patches twice: 4 x 4 tokens per tile."""
    pixels = tiles_of(form, generator, 64)
    return Piece([3, *[IMG] * (16 * len(pixels)), 4], {"pixel_values": pixels})


def pooled_piece(form: str, generator: torch.Generator) -> Piece:
    """Gemma 4 Unified: 8 places for patches that are tokens; those that are not used are at (-1, -1)."""
    rows, columns = (2, 3) if form == "tiled" else (2, 2)
    positions = torch.full((1, 8, 2), -1)
    positions[0, : rows * columns] = torch.tensor([(column, row) for row in range(rows) for column in range(columns)])
    pixels = {"pixel_values": random(generator, 1, 8, 3 * 8 * 8), "image_position_ids": positions}
    return Piece([3, *[IMG] * (rows * columns), 4], pixels)


def views_piece(form: str, generator: torch.Generator, image: Callable[[int], list[int]], size: int = 32) -> Piece:
    """A whole image, and where it is tiled two crops side by side; `image` says its tokens."""
    crops = 2 if form == "tiled" else 0
    pixels = {
        "pixel_values": random(generator, 1, 3, size, size),
        "pixel_values_local": random(generator, crops, 3, size // 2, size // 2),
        "num_local_patches": torch.tensor([crops]),
        "patches_grid": torch.tensor([[crops, 1]]),
    }
    return Piece(image(crops), pixels)


def views(rows: list[list[Piece]], grid: bool = False) -> dict[str, Any]:
    """The crops' numbers are lists, as the processors leave them; no crops at all are None."""
    inputs: dict[str, Any] = concatenated(rows)
    if not inputs:
        return {}
    inputs["num_local_patches"] = inputs["num_local_patches"].tolist()
    grids = inputs.pop("patches_grid").tolist()
    if grid:
        inputs["patches_grid"] = grids
    if not len(inputs["pixel_values_local"]):
        del inputs["pixel_values_local"]
    return inputs


def step_tokens(crops: int) -> list[int]:
    """Crops of 2 x 2 tokens, a whole of 4 x 4 or fewer, marks around each, a newline behind a row of crops."""
    return [*[5, *[IMG] * 4, 6] * crops, *[7] * (crops > 0), 3, *[IMG] * 16, 4]


def minicpm_piece(form: str, generator: torch.Generator, merged: int = 16) -> Piece:
    """The whole as 4 x 4 patches, and where it is tiled three slices in two rows, one of them larger."""
    sizes = [(4, 4), *([(4, 4), (4, 8), (4, 4)] if form == "tiled" else [])]
    runs = [[IMG] * (height * width // merged) for height, width in sizes]
    slices = [5, *runs[1], 6, 5, *runs[2], 6, 7, 5, *runs[3], 6] if form == "tiled" else []
    patches = sum(height * width for height, width in sizes)
    pixels = {"pixel_values": random(generator, patches, 3, 4, 4), "target_sizes": torch.tensor(sizes)}
    return Piece([3, *runs[0], 4, *slices], pixels)


def packed(rows: list[list[Piece]]) -> dict[str, torch.Tensor]:
    """MiniCPM: the patches of all units side by side in one strip [1, 3, patch, patches * patch]."""
    inputs = concatenated(rows)
    if inputs:
        inputs["pixel_values"] = inputs["pixel_values"].permute(1, 2, 0, 3).reshape(1, 3, 4, -1)
    return inputs


def inkling_piece(form: str, generator: torch.Generator) -> Piece:
    """A patch is a token, and nothing in the call but the mark before an image says where it begins."""
    tokens = 6 if form == "tiled" else 4
    return Piece([3, *[IMG] * tokens], {"pixel_values": random(generator, tokens, 2, 8, 8, 3)})


def nemotron_piece(form: str, generator: torch.Generator) -> Piece:
    piece = grid_piece(form, generator, values=3 * 4 * 4)
    return Piece(
        piece.ids, {"pixel_values": piece.pixels["pixel_values"], "image_grid_hw": torch.tensor([GRID_SIZES[form]])}
    )


def emu_piece(form: str, generator: torch.Generator) -> Piece:
    """Codes of 2 x 2 pixels, an end of line behind each row."""
    height, width = (4, 6) if form == "tiled" else (4, 4)
    ids = [3, *[IMG] * (height // 2 * (width // 2 + 1)), 4]
    pixels = {"pixel_values": random(generator, 1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}
    return Piece(ids, pixels)


def fuyu_piece(form: str, generator: torch.Generator) -> Piece:
    """2 x 3 patches, a newline behind each row; all images of a call have as many."""
    return Piece([*[IMG] * 3, 5, *[IMG] * 3, 5], {"pixel_values": random(generator, 1, 6, 3 * 4 * 4)})


# --- the families --------------------------------------------------------------------------------------------------


def _sizes(name: str, **values: Any) -> Callable[[], Any]:
    return config(name, image_token_id=IMG, **values)


def _row(
    model_type: str,
    model: str,
    made: Callable[[], Any],
    piece: Callable[..., Piece],
    collate: Callable[..., dict[str, torch.Tensor]] = concatenated,
    **more: Any,
) -> TinyFamily:
    return TinyFamily(model_type, f"{model}ForConditionalGeneration", made, piece, collate, **more)


LLAMA = text(model_type="llama")
QWEN2 = text(model_type="qwen2")
LAYERS = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default"}
INDEX = {"image_token_index": IMG}
CLIP_SIZES = {name: value for name, value in CLIP.items() if name not in ("model_type", "image_size", "projection_dim")}
PIXTRAL = {**CLIP, "model_type": "pixtral", "image_size": 64, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
WINDOWS = {"fullatt_block_indexes": [1], "window_size": 16}
QWEN_ROPE = {"rope_parameters": MROPE, "rope_scaling": MROPE}
QWEN_ROPE_INTERLEAVED = {"rope_parameters": MROPE_INTERLEAVED, "rope_scaling": MROPE_INTERLEAVED}
QWEN3_VISION = {**QWEN_VISION, "deepstack_visual_indexes": [0]}
OMNI_AUDIO = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "output_dim": WIDTH,
}
GLM_VISION = {**QWEN_VISION, "image_size": 32}
GLM_ROPE = {"rope_scaling": MROPE, "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}
GLM_IDS = {
    "image_token_id": IMG,
    "video_token_id": VIDEO,
    "image_start_token_id": 3,
    "image_end_token_id": 4,
    "video_start_token_id": 11,
    "video_end_token_id": 12,
}
DSA = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_shared_experts": 1,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "index_topk": 256,
    "index_head_dim": 16,
    "index_n_heads": 2,
}
MUSE_V = {
    "patch_size": 4,
    "pos_emb_height": 8,
    "pos_emb_width": 8,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
}

QWEN3_5_LAYERS = {
    "rope_parameters": {**MROPE_INTERLEAVED, "partial_rotary_factor": 1.0},
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
QWEN3_5 = text(model_type="qwen3_5_text", **QWEN3_5_LAYERS)
SAM = {
    "hidden_size": WIDTH,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 4,
    "global_attn_indexes": [1],
    "window_size": 2,
    "mlp_dim": 64,
}
SAM_HALVED = {**SAM, "downsample_channels": [16, WIDTH]}
DEEPSEEK_MOE = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}

_ROWS = (
    _row(
        "qwen2_vl",
        "Qwen2VL",
        config(
            "Qwen2VLConfig",
            text_config=text(**QWEN_ROPE),
            vision_config={**QWEN_VISION, "mlp_ratio": 2},
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "qwen3_vl_moe",
        "Qwen3VLMoe",
        config(
            "Qwen3VLMoeConfig",
            text_config=text(**QWEN_ROPE_INTERLEAVED, **MOE),
            vision_config=QWEN3_VISION,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "qwen3_5",
        "Qwen3_5",
        config(
            "Qwen3_5Config",
            text_config=text(**QWEN3_5_LAYERS),
            vision_config=QWEN_VISION,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "qwen3_5_moe",
        "Qwen3_5Moe",
        config(
            "Qwen3_5MoeConfig",
            text_config=text(
                **QWEN3_5_LAYERS,
                **MOE,
            ),
            vision_config=QWEN_VISION,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "qwen2_5_omni_thinker",
        "Qwen2_5OmniThinker",
        config(
            "Qwen2_5OmniThinkerConfig",
            text_config=text(**QWEN_ROPE),
            vision_config={**QWEN_VISION, **WINDOWS},
            audio_config=OMNI_AUDIO,
            image_token_index=IMG,
            video_token_index=VIDEO,
            audio_token_index=AUDIO,
            vision_start_token_id=3,
            vision_end_token_id=4,
            audio_start_token_id=11,
            audio_end_token_id=12,
        ),
        QWEN_PATCH,
    ),
    _row(
        "qwen3_omni_moe_thinker",
        "Qwen3OmniMoeThinker",
        config(
            "Qwen3OmniMoeThinkerConfig",
            text_config=text(**QWEN_ROPE_INTERLEAVED, **MOE),
            vision_config=QWEN3_VISION,
            audio_config=OMNI_AUDIO,
            image_token_id=IMG,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            audio_start_token_id=11,
            vision_start_token_id=3,
        ),
        QWEN_PATCH,
    ),
    _row(
        "gemma3",
        "Gemma3",
        config(
            "Gemma3Config",
            text_config=text(query_pre_attn_scalar=8, sliding_window=64),
            vision_config={**SIGLIP, "patch_size": 2},
            mm_tokens_per_image=16,
            boi_token_index=3,
            eoi_token_index=4,
            **INDEX,
        ),
        partial(square_piece, tokens=16),
    ),
    _row(
        "gemma4",
        "Gemma4",
        config(
            "Gemma4Config",
            text_config=text(
                hidden_size_per_layer_input=8,
                vocab_size_per_layer_input=VOCABULARY,
                sliding_window=64,
                layer_types=["sliding_attention", "full_attention"],
            ),
            vision_config={
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                **HEADS,
                "pooling_kernel_size": 2,
                "patch_size": 4,
                "position_embedding_size": 64,
            },
            image_token_id=IMG,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            boi_token_id=3,
            eoi_token_id=4,
            boa_token_id=11,
            eoa_token_index=12,
        ),
        gemma4_piece,
    ),
    _row(
        "paligemma",
        "PaliGemma",
        config(
            "PaliGemmaConfig", text_config=text(model_type="gemma"), vision_config=SIGLIP, projection_dim=WIDTH, **INDEX
        ),
        partial(square_piece, tokens=16),
    ),
    _row(
        "llava_onevision",
        "LlavaOnevision",
        config(
            "LlavaOnevisionConfig",
            text_config=QWEN2,
            vision_config=SIGLIP,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            video_token_index=VIDEO,
            **INDEX,
        ),
        onevision_piece,
        partial(per_image, count=True),
    ),
    _row(
        "llava_next_video",
        "LlavaNextVideo",
        config(
            "LlavaNextVideoConfig",
            text_config=LLAMA,
            vision_config=CLIP,
            image_grid_pinpoints=PINPOINTS,
            video_token_index=VIDEO,
            **LAYERS,
            **INDEX,
        ),
        anyres_piece,
        per_image,
    ),
    _row(
        "vipllava",
        "VipLlava",
        config("VipLlavaConfig", text_config=LLAMA, vision_config=CLIP, vision_feature_layers=[-2, 1], **INDEX),
        partial(square_piece, tokens=16),
    ),
    _row(
        "video_llava",
        "VideoLlava",
        config("VideoLlavaConfig", text_config=LLAMA, vision_config=CLIP, video_token_index=VIDEO, **LAYERS, **INDEX),
        partial(square_piece, tokens=16),
    ),
    _row(
        "fast_vlm",
        "FastVlm",
        config(
            "FastVlmConfig",
            text_config=QWEN2,
            vision_config={
                "model_type": "timm_wrapper",
                "architecture": "fastvit_mci3",
                "do_pooling": False,
                "global_pool": "",
                "hidden_size": 64,
                "image_size": 128,
                "model_args": {"inference_mode": True, "embed_dims": [8, 8, 16, 32, 32], "layers": [1, 1, 1, 1, 1]},
            },
            **INDEX,
        ),
        partial(square_piece, tokens=4, size=128),
    ),
    _row(
        "glm4v",
        "Glm4v",
        config(
            "Glm4vConfig",
            text_config=text(**GLM_ROPE),
            vision_config=GLM_VISION,
            **GLM_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "glm4v_moe",
        "Glm4vMoe",
        config(
            "Glm4vMoeConfig",
            text_config=text(
                rope_scaling=MROPE,
                partial_rotary_factor=1.0,
                rope_parameters={**MROPE, "partial_rotary_factor": 1.0},
                n_shared_experts=1,
                first_k_dense_replace=1,
                **MOE,
            ),
            vision_config=GLM_VISION,
            **GLM_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "glm46v",
        "Glm46V",
        config(
            "Glm46VConfig",
            text_config=text(model_type="glm4v_text", **GLM_ROPE),
            vision_config={**QWEN_VISION, "image_size": 32, "model_type": "glm4v_vision"},
            **GLM_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "mistral3",
        "Mistral3",
        config(
            "Mistral3Config",
            text_config=text(model_type="mistral"),
            vision_config=PIXTRAL,
            spatial_merge_size=2,
            **INDEX,
        ),
        partial(pixtral_piece, merge=2),
        padded_pixels,
    ),
    _row(
        "llava",
        "Llava",
        config(
            "LlavaConfig",
            text_config=text(model_type="mistral"),
            vision_config=PIXTRAL,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            **INDEX,
        ),
        pixtral_piece,
        padded_pixels,
    ),
    _row(
        "lighton_ocr",
        "LightOnOcr",
        config(
            "LightOnOcrConfig",
            text_config=text(model_type="qwen3"),
            vision_config=PIXTRAL,
            image_token_id=IMG,
        ),
        partial(pixtral_piece, merge=2, breaks=False),
        padded_pixels,
    ),
    _row(
        "kimi_k25",
        "Kimi_K25",
        config(
            "Kimi_K25Config",
            text_config=text(
                model_type="deepseek_v3",
                q_lora_rank=8,
                kv_lora_rank=8,
                qk_nope_head_dim=8,
                qk_rope_head_dim=8,
                v_head_dim=8,
                n_shared_experts=1,
                n_group=1,
                topk_group=1,
                num_key_value_heads=4,
                first_k_dense_replace=1,
                **{key: MOE[key] for key in ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")},
            ),
            vision_config={
                "patch_size": 4,
                "pos_emb_height": 8,
                "pos_emb_width": 8,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "hidden_size": WIDTH,
                "intermediate_size": 64,
            },
            projection_hidden_size=WIDTH,
            **QWEN_IDS,
        ),
        conv_piece,
        lora="q_a_proj|o_proj",
    ),
    _row(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoe",
        config(
            "Ernie4_5_VLMoeConfig",
            text_config=text(
                rope_parameters={**MROPE, "mrope_section": [1, 1, 2]},
                moe_intermediate_size=[32, 16],
                moe_k=2,
                moe_num_experts=4,
                moe_num_shared_experts=1,
                mlp_layer_types=["dense", "sparse"],
            ),
            vision_config=QWEN_VISION,
            **GLM_IDS,
        ),
        partial(grid_piece, values=3 * 4 * 4),
        notes={"no cache": "generate() does not lengthen moe_mm_token_type_ids"},
    ),
    _row(
        "paddleocr_vl",
        "PaddleOCRVL",
        config(
            "PaddleOCRVLConfig",
            text_config=text(rope_parameters=MROPE),
            vision_config={**QWEN_VISION, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16},
            **QWEN_IDS,
        ),
        conv_piece,
    ),
    _row(
        "exaone4_5",
        "Exaone4_5_",
        config(
            "Exaone4_5_Config",
            text_config=text(model_type="exaone4", layer_types=["full_attention", "full_attention"]),
            vision_config={**QWEN_VISION, "num_key_value_heads": 2, "fullatt_block_indexes": [1], "window_size": 16},
            image_token_id=IMG,
            video_token_id=VIDEO,
        ),
        QWEN_PATCH,
    ),
    _row(
        "hunyuan_vl",
        "HunYuanVL",
        config(
            "HunYuanVLConfig",
            text_config=text(rope_parameters={**MROPE, "mrope_section": [1, 1, 1, 1]}),
            vision_config={
                **QWEN_VISION,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "temporal_patch_size": 1,
                "text_hidden_size": WIDTH,
                "max_image_size": 64,
                "min_image_size": 16,
                "img_max_token_num": 64,
            },
            image_token_id=IMG,
            im_start_id=3,
            im_end_id=4,
            im_newline_id=5,
        ),
        hunyuan_piece,
    ),
    _row(
        "molmo2",
        "Molmo2",
        config(
            "Molmo2Config",
            text_config=text(additional_vocab_size=8),
            vision_config={
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                **HEADS,
                "image_size": [16, 16],
                "patch_size": 4,
                "num_position_embeddings": 16,
            },
            adapter_config={
                "vision_feature_layer": [0, 1],
                "hidden_size": WIDTH,
                **HEADS,
                "intermediate_size": 64,
                "text_hidden_size": WIDTH,
            },
            image_patch_id=IMG,
            image_start_token_id=4,
            low_res_image_start_token_id=3,
            image_end_token_id=5,
            frame_start_token_id=11,
            frame_end_token_id=12,
        ),
        molmo_piece,
        molmo_collate,
    ),
    _row(
        "idefics3",
        "Idefics3",
        config(
            "Idefics3Config",
            text_config=LLAMA,
            vision_config={**CLIP, "model_type": "idefics3_vision"},
            scale_factor=2,
            image_token_id=IMG,
            pad_token_id=PAD,
        ),
        partial(idefics_piece, tokens=4),
        per_sample,
    ),
    _row(
        "smolvlm",
        "SmolVLM",
        config(
            "SmolVLMConfig",
            text_config=LLAMA,
            vision_config={**CLIP, "model_type": "smolvlm_vision"},
            scale_factor=2,
            image_token_id=IMG,
            pad_token_id=PAD,
        ),
        partial(idefics_piece, tokens=4),
        per_sample,
    ),
    _row(
        "granite_docling",
        "GraniteDocling",
        config(
            "GraniteDoclingConfig",
            text_config=text(),
            vision_config={
                **CLIP,
                "model_type": "granite_docling_vision",
                "scale_factor": 2,
                "out_hidden_size": WIDTH,
                "deepstack_visual_indexes": [0],
            },
            image_token_id=IMG,
            pad_token_id=PAD,
        ),
        partial(docling_piece, tokens=4),
        docling_collate,
    ),
    _row(
        "aya_vision",
        "AyaVision",
        config(
            "AyaVisionConfig", text_config=text(model_type="cohere2", sliding_window=64), vision_config=SIGLIP, **INDEX
        ),
        partial(aya_piece, tokens=4),
    ),
    _row(
        "cohere2_vision",
        "Cohere2Vision",
        config(
            "Cohere2VisionConfig",
            text_config=text(model_type="cohere2", sliding_window=64),
            vision_config=SIGLIP,
            alignment_intermediate_size=64,
            image_token_id=IMG,
        ),
        partial(cohere_piece, tokens=4),
    ),
    _row(
        "llama4",
        "Llama4",
        config(
            "Llama4Config",
            text_config=text(intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=64),
            vision_config={
                "hidden_size": WIDTH,
                "intermediate_size": 4 * WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": TILE,
                "patch_size": 4,
                "projector_input_dim": WIDTH,
                "projector_output_dim": WIDTH,
                "vision_output_dim": WIDTH,
            },
            boi_token_index=3,
            eoi_token_index=4,
            **INDEX,
        ),
        partial(llama_piece, tokens=4),
        notes={
            "embeds": "Llama 4 takes pixels with ids only",
            "beams": "generate() does not expand Llama 4's features, which are not pooled",
        },
    ),
    _row(
        "ovis2",
        "Ovis2",
        config(
            "Ovis2Config",
            text_config=QWEN2,
            vision_config={**CLIP, "model_type": "ovis2", "hidden_stride": 2, "vocab_size": 40},
            hidden_size=WIDTH,
            vocab_size=VOCABULARY,
            image_token_id=IMG,
            visual_indicator_token_ids=[3, 4, 5, 6, 7],
        ),
        partial(ovis_piece, tokens=4),
    ),
    _row(
        "lfm2_vl",
        "Lfm2Vl",
        config(
            "Lfm2VlConfig",
            text_config=text(model_type="lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
            vision_config={**CLIP, "model_type": "siglip2_vision_model", "num_patches": 16, "vision_use_head": False},
            projector_hidden_size=WIDTH,
            image_token_id=IMG,
        ),
        lfm_piece,
    ),
    _row(
        "perception_lm",
        "PerceptionLM",
        config(
            "PerceptionLMConfig",
            text_config=LLAMA,
            vision_config={
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_large_patch14_336",
                "do_pooling": False,
                "num_classes": 0,
                "num_features": WIDTH,
                "global_pool": "",
                "model_args": {
                    "embed_dim": WIDTH,
                    "depth": 2,
                    "num_heads": 2,
                    "img_size": (16, 16),
                    "patch_size": 4,
                    "use_post_transformer_norm": False,
                    "ref_feat_shape": (4, 4),
                },
            },
            projector_pooling_ratio=2,
            image_token_id=IMG,
            video_token_id=VIDEO,
        ),
        partial(perception_piece, tokens=4),
    ),
    _row(
        "got_ocr2",
        "GotOcr2",
        config(
            "GotOcr2Config",
            text_config=QWEN2,
            vision_config=SAM,
            **INDEX,
        ),
        ocr_piece,
    ),
    _row(
        "aria",
        "Aria",
        config(
            "AriaConfig",
            text_config=text(model_type="aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
            vision_config=IDEFICS_VISION,
            projector_patch_to_query_dict={16: 4},
            **INDEX,
        ),
        partial(run_piece, tokens=4),
    ),
    _row(
        "deepseek_vl",
        "DeepseekVL",
        config("DeepseekVLConfig", text_config=LLAMA, vision_config=SIGLIP, image_token_id=IMG),
        partial(square_piece, tokens=16),
    ),
    _row(
        "deepseek_vl_hybrid",
        "DeepseekVLHybrid",
        config(
            "DeepseekVLHybridConfig",
            text_config=LLAMA,
            vision_config=SIGLIP,
            high_res_vision_config={"model_type": "sam_vision_model", **SAM},
            image_token_id=IMG,
        ),
        partial(
            square_piece, tokens=16, more=lambda generator: {"high_res_pixel_values": random(generator, 1, 3, 64, 64)}
        ),
    ),
    _row(
        "janus",
        "Janus",
        config(
            "JanusConfig",
            text_config=LLAMA,
            vision_config={
                "hidden_size": WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": TILE,
                "patch_size": 4,
                "mlp_ratio": 2,
                "projection_dim": WIDTH,
                "num_image_tokens": 16,
            },
            vq_config={
                "embed_dim": 4,
                "num_embeddings": 16,
                "latent_channels": 16,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "num_patches": 4,
                "projection_dim": WIDTH,
                "image_token_embed_dim": WIDTH,
            },
            image_token_id=IMG,
        ),
        partial(square_piece, tokens=16),
    ),
    _row(
        "glm_ocr",
        "GlmOcr",
        config(
            "GlmOcrConfig",
            # three times the width: so is its merger's, which vLLM sizes by it
            text_config=text(intermediate_size=3 * WIDTH, rope_parameters={**MROPE, "partial_rotary_factor": 1.0}),
            vision_config=GLM_VISION,
            **GLM_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "glmga",
        "Glm46V",
        config(
            "GlmgaConfig",
            text_config=text(model_type="glm4v_text", **GLM_ROPE),
            vision_config={**QWEN_VISION, "image_size": 32, "model_type": "glm4v_vision"},
            **GLM_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "cohere_compass",
        "CohereCompass",
        config(
            "CohereCompassConfig",
            text_config=text(rope_parameters={"full_attention": MROPE_INTERLEAVED}),
            vision_config=QWEN3_VISION,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "cosmos3_omni",
        "Cosmos3Omni",
        config(
            "Cosmos3OmniConfig",
            text_config=text(model_type="qwen3_vl_text", rope_parameters=MROPE_INTERLEAVED),
            vision_config={**QWEN_VISION, "model_type": "qwen3_vl_vision", "deepstack_visual_indexes": [0]},
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "cosmos3_edge",
        "Cosmos3Edge",
        config(
            "Cosmos3EdgeConfig",
            text_config=text(rope_parameters=MROPE),
            vision_config={**CLIP_SIZES, "num_patches": 16, "spatial_merge_size": 2},
            projector_hidden_size=WIDTH,
            **QWEN_IDS,
        ),
        partial(grid_piece, values=3 * 4 * 4),
    ),
    _row(
        "hyperclovax_vision_v2",
        "HyperCLOVAXVisionV2",
        config(
            "HyperCLOVAXVisionV2Config",
            text_config=text(model_type="hyperclovax"),
            vision_config={
                **QWEN_VISION,
                "model_type": "qwen2_5_vl_vision",
                "fullatt_block_indexes": [1],
                "window_size": 16,
            },
            image_token_id=IMG,
            video_token_id=VIDEO,
            tie_word_embeddings=False,
        ),
        QWEN_PATCH,
    ),
    _row(
        "video_llama_3",
        "VideoLlama3",
        config(
            "VideoLlama3Config",
            text_config=QWEN2,
            vision_config=CLIP_SIZES,
            image_token_id=IMG,
            video_token_id=VIDEO,
        ),
        merge_size_piece,
    ),
    _row(
        "muse_glimmer",
        "MuseGlimmer",
        config(
            "MuseGlimmerConfig",
            text_config=text(sliding_window=64, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
            vision_config=MUSE_V,
            image_token_id=IMG,
            video_token_id=VIDEO,
            out_hidden_size=4 * WIDTH,
            projector_hidden_size=WIDTH,
        ),
        QWEN_PATCH,
    ),
    _row(
        "lfm3_vl",
        "Lfm3Vl",
        config(
            "Lfm3VlConfig",
            text_config=text(model_type="lfm3", layer_types=["conv", "full_attention"], sliding_window=64),
            vision_config={
                **CLIP_SIZES,
                "num_key_value_heads": 2,
                "spatial_merge_size": 2,
                "layer_types": ["conv", "full_attention"],
            },
            projector_hidden_size=WIDTH,
            tie_word_embeddings=False,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
    _row(
        "minimax_m3_vl",
        "MiniMaxM3Sparse",
        config(
            "MiniMaxM3VLConfig",
            text_config=text(
                num_local_experts=4,
                num_experts_per_tok=2,
                dense_intermediate_size=32,
                shared_intermediate_size=32,
                rotary_dim=8,
                layer_types=["full_attention", "full_attention"],
                mlp_layer_types=["dense", "sparse"],
            ),
            vision_config={**CLIP_SIZES, "image_size": 64, "num_attention_heads": 2},
            image_token_index=IMG,
            video_token_index=VIDEO,
            projector_hidden_size=WIDTH,
        ),
        QWEN_PATCH,
    ),
    _row(
        "qianfan_ocr",
        "QianfanOCR",
        config(
            "QianfanOCRConfig",
            text_config=text(model_type="qwen3"),
            vision_config={**CLIP_SIZES, "image_size": [TILE, TILE], "patch_size": [4, 4]},
            image_seq_length=4,
            image_token_id=IMG,
        ),
        partial(run_piece, tokens=4),
    ),
    _row(
        "pp_chart2table",
        "GotOcr2",
        config(
            "PPChart2TableConfig",
            text_config=QWEN2,
            vision_config=SAM,
            image_seq_length=16,
            tie_word_embeddings=False,
            **INDEX,
        ),
        partial(square_piece, tokens=16, size=64),
    ),
    _row(
        "mistral_large4",
        "MistralLarge4",
        config(
            "MistralLarge4Config",
            text_config=text(
                **DSA,
                first_k_dense_replace=1,
            ),
            vision_config=PIXTRAL,
            spatial_merge_size=2,
            **INDEX,
        ),
        partial(pixtral_piece, merge=2),
        padded_pixels,
        lora="q_a_proj|o_proj",
    ),
    _row(
        "dots3_note",
        "Dots3Note",
        config(
            "Dots3NoteConfig",
            text_config=text(
                **{**DSA, "head_dim": 16},
                first_k_dense_replace=1,
                mlp_layer_types=["dense", "sparse"],
                layer_types=["full_attention", "full_attention"],
                shared_experts_intermediate_size=32,
            ),
            vision_config={
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": 4,
                "moe_intermediate_size": 32,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "adapter_in_dim": WIDTH,
                "adapter_out_dim": WIDTH,
                "mlp_layer_types": ["dense", "sparse"],
            },
            audio_config={
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "adapter_input_size": WIDTH,
                "adapter_out_dim": WIDTH,
                "downsample_hidden_size": 8,
            },
            image_token_id=IMG,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
        ),
        partial(grid_piece, values=3 * 4 * 4),
        lora="q_a_proj|o_proj",
    ),
    _row(
        "muse_spark",
        "MuseSpark",
        config(
            "MuseSparkConfig",
            text_config=text(
                sliding_window=64,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                moe_intermediate_size=32,
                num_local_experts=4,
                num_experts_per_tok=2,
                moe_hidden_size=WIDTH,
            ),
            vision_config=MUSE_V,
            audio_config={"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "out_hidden_size": WIDTH},
            image_token_id=IMG,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            out_hidden_size=4 * WIDTH,
            projector_hidden_size=WIDTH,
        ),
        QWEN_PATCH,
    ),
    _row(
        "inkling2",
        "Inkling2",
        config(
            "Inkling2Config",
            text_config=text(
                swa_num_attention_heads=4,
                swa_num_key_value_heads=2,
                swa_head_dim=8,
                sliding_window_size=64,
                d_rel=4,
                rel_extent=64,
                unpadded_vocab_size=VOCABULARY,
                n_routed_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                n_layers_per_attn_res_block=1,
            ),
            vision_config={
                "hidden_size": WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": 4,
                "mlp_ratio": 2.0,
                "posemb_grid_size": 8,
                "projection_hidden_dim": WIDTH,
                "text_hidden_size": WIDTH,
            },
            image_token_id=IMG,
        ),
        token_grid_piece,
    ),
    _row(
        "glm5_next",
        "Glm5Next",
        config(
            "Glm5NextConfig",
            text_config=text(
                **{**DSA, "qk_rope_head_dim": 0},
                layer_types=["linear_attention", "indexed_attention"],
                mlp_layer_types=["dense", "sparse"],
                indexer_types=["full", "full"],
                linear_head_dim=8,
                linear_num_heads=2,
                hc_mult=2,
                hc_sinkhorn_iters=2,
                index_kpool=16,
            ),
            vision_config={**QWEN_VISION, "image_size": 32, "projection_intermediate_size": 64},
            **GLM_IDS,
        ),
        QWEN_PATCH,
        lora="q_a_proj|o_proj",
    ),
    _row(
        "gemma4_unified",
        "Gemma4Unified",
        config(
            "Gemma4UnifiedConfig",
            text_config=text(sliding_window=64, layer_types=["sliding_attention", "full_attention"]),
            vision_config={
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "mm_embed_dim": WIDTH,
                "mm_posemb_size": 16,
                "output_proj_dims": WIDTH,
            },
            image_token_id=IMG,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            boi_token_id=3,
            eoi_token_id=4,
            boa_token_id=11,
            eoa_token_index=12,
        ),
        pooled_piece,
    ),
    _row(
        "shieldgemma2",
        "Gemma3",
        config(
            "ShieldGemma2Config",
            text_config=text(model_type="gemma3_text", query_pre_attn_scalar=8, sliding_window=64),
            vision_config={**SIGLIP, "patch_size": 2},
            mm_tokens_per_image=16,
            boi_token_index=3,
            eoi_token_index=4,
            **INDEX,
        ),
        partial(square_piece, tokens=16),
        notes={"save": "its checkpoints are those of ShieldGemma2ForImageClassification: test_larger_models.py"},
    ),
    _row(
        "deepseek_ocr2",
        "DeepseekOcr2",
        config(
            "DeepseekOcr2Config",
            text_config=text(mlp_layer_types=["dense", "sparse"], **DEEPSEEK_MOE),
            vision_config={"sam_config": SAM_HALVED, "encoder_config": text(num_hidden_layers=1)},
            image_token_id=IMG,
        ),
        partial(views_piece, image=lambda crops: [IMG] * (144 * crops + 145), size=64),
        views,
    ),
    _row(
        "unlimited_ocr",
        "UnlimitedOcr",
        config(
            "UnlimitedOcrConfig",
            text_config=text(
                mlp_layer_types=["dense", "sparse"], sliding_window=64, num_key_value_heads=4, **DEEPSEEK_MOE
            ),
            vision_config={
                "sam_config": SAM_HALVED,
                "encoder_config": {
                    "hidden_size": WIDTH,
                    "intermediate_size": 64,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "image_size": 16,
                    "patch_size": 4,
                },
            },
            image_token_id=IMG,
        ),
        partial(views_piece, image=lambda crops: [IMG] * (2 * (2 * crops + 1) * (crops > 0) + 4 * 5 + 1), size=64),
        partial(views, grid=True),
    ),
    _row(
        "step3p7",
        "Step3p7",
        config(
            "Step3p7Config",
            text_config=text(
                mlp_layer_types=["dense", "sparse"],
                layer_types=["sliding_attention", "full_attention"],
                sliding_window=64,
                num_sliding_attention_heads=4,
                num_local_experts=4,
                n_routed_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                share_expert_dim=32,
            ),
            vision_config={
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 4,
                "mlp_ratio": 2.0,
                "max_position_embeddings": 256,
            },
            image_token_id=IMG,
        ),
        partial(views_piece, image=step_tokens, size=64),
        views,
    ),
    *(
        _row(
            model_type,
            name,
            config(
                f"{name}Config",
                text_config=QWEN3_5,
                vision_config={**CLIP_SIZES, "image_size": 32},
                insert_layer_id=0,
                downsample_mode="16x",
                image_token_id=IMG,
                video_token_id=VIDEO,
                tie_word_embeddings=False,
                **more,
            ),
            minicpm_piece,
            packed,
        )
        for model_type, name, more in (
            ("minicpmv4_6", "MiniCPMV4_6", {}),
            (
                "minicpmv4_7",
                "MiniCPMV4_7",
                {"image_start_id": 3, "image_end_id": 4, "slice_start_id": 5, "slice_end_id": 6, "newline_id": 7},
            ),
            ("minicpm_ocr", "MiniCPMOcr", {}),
        )
    ),
    _row(
        "inkling_mm_model",
        "Inkling",
        config(
            "InklingConfig",
            text_config=text(
                swa_num_attention_heads=4,
                swa_num_key_value_heads=2,
                swa_head_dim=8,
                sliding_window_size=64,
                d_rel=4,
                rel_extent=64,
                unpadded_vocab_size=VOCABULARY,
                n_routed_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
            ),
            vision_config={"text_hidden_size": WIDTH, "patch_size": 8, "num_hidden_layers": 2, "hidden_size": WIDTH},
            audio_config={"text_hidden_size": WIDTH, "n_mel_bins": 4, "mel_vocab_size": 8},
            image_token_id=IMG,
            audio_token_id=AUDIO,
            image_bos_token_id=3,
            audio_bos_token_id=11,
        ),
        inkling_piece,
    ),
    _row(
        "emu3",
        "Emu3",
        config(
            "Emu3Config",
            text_config=text(),
            vq_config={
                "codebook_size": 16,
                "embed_dim": 4,
                "latent_channels": 4,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "hidden_size": WIDTH,
                "attn_resolutions": [],
                "temporal_downsample_factor": 1,
            },
            vocabulary_map={
                "<image>": IMG,
                "<|extra_200|>": 8,
                **{f"<|visual token {number:06}|>": 160 + number for number in range(16)},
            },
        ),
        emu_piece,
        padded_pixels,
    ),
    TinyFamily(
        "nemotron_h_omni",
        "NemotronH_Omni_Reasoning_V3",
        config(
            "NemotronH_Omni_Reasoning_V3_Config",
            text_config=text(
                model_type="nemotron_h",
                layers_block_type=["mamba", "attention", "moe"],
                num_hidden_layers=3,
                ssm_state_size=8,
                mamba_num_heads=4,
                mamba_head_dim=8,
                n_groups=2,
                chunk_size=16,
                n_routed_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                moe_shared_expert_intermediate_size=32,
            ),
            vision_config={
                "model_type": "radio",
                "dtype": "float32",
                "hidden_size": WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": 4,
                "image_size": 16,
                "max_img_size": 64,
                "video_temporal_patch_size": 2,
            },
            projector_hidden_size=WIDTH,
            vision_hidden_size=WIDTH,
            image_token_id=IMG,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
        ),
        nemotron_piece,
        concatenated,
    ),
    TinyFamily(
        "fuyu",
        "FuyuForCausalLM",
        config(
            "FuyuConfig",
            text_config=text(model_type="persimmon"),
            patch_size=4,
            image_token_id=IMG,
        ),
        fuyu_piece,
        concatenated,
        lora="query_key_value|dense",
        notes={"beams": "generate() does not repeat its encoded patches"},
    ),
    _row(
        "qwen4_exp",
        "Qwen4Exp",
        config(
            "Qwen4ExpConfig",
            text_config=text(
                rope_parameters={**MROPE_INTERLEAVED, "partial_rotary_factor": 1.0},
                layer_types=["linear_attention", "full_attention"],
                linear_key_head_dim=8,
                linear_value_head_dim=8,
                linear_num_key_heads=2,
                linear_num_value_heads=2,
                hc_count=2,
                hc_lowrank=8,
                indexer_n_heads=2,
                indexer_kv_heads=1,
                indexer_head_dim=16,
                indexer_budget=256,
                indexer_compress_ratio=16,
                **MOE,
            ),
            vision_config=QWEN_VISION,
            **QWEN_IDS,
        ),
        QWEN_PATCH,
    ),
)


ROWS = {row.model_type: row for row in _ROWS}
TINY = {name: row for name, row in ROWS.items() if row.available}  # in this version of transformers

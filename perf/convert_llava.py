"""Memory and time of `agci convert-llava` on LLaVA-1.5-7B's shape: `python perf/convert_llava.py [--layers 8]`.

Writes an original checkpoint of zeros in float16, .bin shards without the tower, and CLIP-L/14-336 in float32 beside
it, both with the real widths, vocabulary and image size; fewer layers than 32 leave room on the disk. The conversion
runs in a process of its own. Memory of its own is what the process holds beside the mapped pages of the .bin files,
which the system takes back when it needs them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from original_llava import tokenizer_model, write_json, write_weights

from transformers_agci.conversion.layout import EMBEDDINGS, RENAMED, TOWER, expected_shapes

CHILD = """
import json, resource, sys, threading, time
from pathlib import Path
import torch, transformers
from transformers_agci.conversion.convert import convert

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

before, peak, done = own(), [0.0], threading.Event()

def watch():
    while not done.wait(0.02):
        peak[0] = max(peak[0], own())

threading.Thread(target=watch, daemon=True).start()
core = time.process_time()
made = convert(Path(sys.argv[1]), Path(sys.argv[3]), tower=Path(sys.argv[2]))
core = time.process_time() - core
done.set()
total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([made.tensors, before, peak[0], total, core]))
"""
TEXT = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
ORIGINAL = {
    "model_type": "llava_llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "image_aspect_ratio": "pad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}


def original_name(place: str) -> str:
    """The name of a tensor in the original checkpoint, or in the tower's folder."""
    before, after = next(pair for pair in RENAMED if place.startswith(pair[1]))
    return (before if after != TOWER else "vision_model.") + place.removeprefix(after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="of the decoder (default: 8, 4 GB on the disk in all)")
    parser.add_argument("--narrow", type=int, default=1, help="divide the decoder's widths and words by this")
    args = parser.parse_args()
    text = {key: value // (args.narrow if "heads" not in key else 1) for key, value in TEXT.items()}
    text["num_hidden_layers"] = args.layers
    shapes = expected_shapes(text, VISION, newline=False, tied=False)
    with tempfile.TemporaryDirectory() as root:
        source, tower, output = (Path(root) / name for name in ("original", "clip", "hf"))
        for folder, inside, dtype, shards in ((source, False, torch.float16, 3), (tower, True, torch.float32, 1)):
            folder.mkdir()
            held = {
                original_name(name): torch.zeros(shape, dtype=dtype)
                for name, shape in shapes.items()
                if name.startswith(TOWER) == inside
            }
            write_weights(folder, held, "bin", shards)
        write_json(source / "config.json", ORIGINAL | text)
        write_json(tower / "config.json", {"model_type": "clip", "vision_config": VISION})
        (source / "tokenizer.model").write_bytes(tokenizer_model())
        sizes = [file.stat().st_size / 1e6 for folder in (source, tower) for file in folder.glob("*.bin")]
        command = [sys.executable, "-c", CHILD, str(source), str(tower), str(output)]
        tensors, before, own, total, core = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    rows, width = shapes[EMBEDDINGS]
    print(
        "| weights | largest file | one embedding matrix | tensors | own memory before | peak | with mapped pages | "
        "seconds of the core |\n|---|---|---|---|---|---|---|---|"
    )
    print(
        f"| {sum(sizes):.0f} MB | {max(sizes):.0f} MB | {rows * width * 2 / 1e6:.0f} MB | {tensors} | {before:.0f} "
        f"MB | {own:.0f} MB | {total:.0f} MB | {core:.0f} |"
    )


if __name__ == "__main__":
    main()

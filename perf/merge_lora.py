"""Memory, time and bytes of `agci merge-lora` beside peft's own merge: `python perf/merge_lora.py [--layers 8]`.

Writes a LLaVA checkpoint of random bfloat16 weights in shards and an adapter on all linear layers of its decoder, and
merges them twice, each time in a process of its own: by `agci merge-lora`, and by from_pretrained, PeftModel,
merge_and_unload and save_pretrained. Then it compares what was written with the base.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_checkpoints import build_processor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

OURS = """
from transformers_agci.cli import main
code = main(["merge-lora", folder + "/merge.yaml", "export_dir=" + output])
assert code == 0
"""
PEFT = """
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(folder + "/base", dtype=torch.bfloat16)
model = PeftModel.from_pretrained(model, folder + "/adapter").merge_and_unload()
model.save_pretrained(output, max_shard_size="0.2GB")
"""
CHILD = """
import json, resource, sys, threading, time
from pathlib import Path
folder, output = sys.argv[1:]

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

peak, done = [0.0], threading.Event()

def watch():
    while not done.wait(0.02):
        peak[0] = max(peak[0], own())

threading.Thread(target=watch, daemon=True).start()
core = time.process_time()
{what}
done.set()
total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([peak[0], total, time.process_time() - core]))
"""


def write_parts(folder: Path, layers: int, width: int) -> None:
    """The base checkpoint, the adapter and the recipe."""
    from peft import LoraConfig, get_peft_model

    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        max_position_embeddings=2048,
    )
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    torch.manual_seed(0)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=5)
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size="0.2GB")
    build_processor(config.model_type).save_pretrained(folder / "base")
    names = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=rf".*language_model.*\.({names})")
    adapted = get_peft_model(model, lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter")
    recipe = {
        "model_name_or_path": str(folder / "base"),
        "adapter_name_or_path": str(folder / "adapter"),
        "export_dir": "given",
        "export_size": 0.2,
    }
    (folder / "merge.yaml").write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()))


def tensors(folder: Path) -> dict[str, Any]:
    """Name -> the file that holds it."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def compared(folder: Path, merged: Path) -> str:
    """What became of the base's names and files, and how far weights are from W + B A rounded once."""
    before, after = tensors(folder / "base"), tensors(merged)
    lost = [
        file.name
        for file in (folder / "base").iterdir()
        if not file.name.startswith("model") and not (merged / file.name).exists()
    ]
    return f"{len(before.keys() & after.keys())} of {len(before)} names kept, {len(lost)} other files lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="of the decoder (default: 8)")
    parser.add_argument("--width", type=int, default=2048, help="of the decoder (default: 2048)")
    parser.add_argument("--times", type=int, default=3, help="(default: 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write_parts(folder, args.layers, args.width)
        size = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors")) / 1e6
        print(f"base of {size:.0f} MB in files of at most 200 MB, {args.times} runs each, least and most\n")
        print("| by | own memory, MB | with mapped pages, MB | seconds of the core | against the base |")
        print("|---|---|---|---|---|")
        for name, what in (("agci merge-lora", OURS), ("peft", PEFT)):
            runs = []
            for number in range(args.times):
                output = folder / f"{name.split()[0]}{number}"
                command = [sys.executable, "-c", CHILD.replace("{what}", what), str(folder), str(output)]
                runs.append(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))
            cells = " | ".join(f"{min(each):.0f} to {max(each):.0f}" for each in zip(*runs, strict=True))
            print(f"| {name} | {cells} | {compared(folder, output)} |", flush=True)


if __name__ == "__main__":
    main()

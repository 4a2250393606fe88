"""Memory and time of drawing the fine-tuning sample from a file of one gigabyte: `python perf/instruct_sample.py`.

Writes a million conversations of a kilobyte to a temporary file and draws 10,000 of them in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

RECORDS = 1_000_000

CHILD = """
import json, resource, sys, time
from pathlib import Path
from transformers_agci.data.instruct import draw_sample
core = time.process_time()
sample = draw_sample(Path(sys.argv[1]), Path("."), 10_000, seed=0, keep_text_only=True)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([sample.read, len(sample.rows), peak, time.process_time() - core]))
"""


def main() -> None:
    turns = [{"from": "human", "value": "x" * 900}, {"from": "gpt", "value": "y" * 60}]
    record = json.dumps({"id": "1", "model": "", "conversations": turns})
    with tempfile.TemporaryDirectory() as folder:
        mix = Path(folder) / "mix.json"
        with mix.open("w") as file:
            file.write(f"[{record}")
            for _ in range(RECORDS - 1):
                file.write(f",\n{record}")
            file.write("]")
        size = mix.stat().st_size / 1e9
        read, drawn, peak, core = json.loads(subprocess.check_output([sys.executable, "-c", CHILD, str(mix)]))
    print("| file | conversations | drawn | peak memory | seconds of the core |\n|---|---|---|---|---|")
    print(f"| {size:.2f} GB | {read} | {drawn} | {peak:.0f} MB | {core:.0f} |")


if __name__ == "__main__":
    main()

"""What first_gpu.py measures: each command at its sizes, the most telling first."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A command at its three sizes; a size without words leaves the command out.

    limit   seconds at most
    lane    with `--try` lanes run side by side, each in order
    shared  runs in the process that holds the model; else the command starts Python itself
    """

    title: str
    full: str
    tried: str | None
    small: str | None
    limit: float = 120.0
    lane: int = 0
    shared: bool = True


TESTS = "-m pytest -q --tb=short -rf -p no:cacheprovider --show-capture=no"
STEPS = (
    Step("GPU tests", f"{TESTS} -m gpu tests", f"{TESTS} -m gpu tests", None, lane=1, shared=False),
    Step(
        "Position probe, more rows",
        "probe_speed.py --random_7b --items 20 --rounds 3 --plain_rows 9 --ours_only "
        "--leave_out padding_behind last_positions",  # which no GPU had run when they were made
        None,
        None,
        limit=240.0,
    ),
    Step(
        "Position probe",
        "probe_speed.py --random_7b --items 8 --rounds 1 --plain_rows 9 --slow_rows 36 "
        "--batch_sizes 9 36 72 --leave_out",
        "probe_speed.py --random_7b --items 2 --rounds 1 --plain_rows 2 --batch_sizes 9 --leave_out",
        "probe_speed.py --small --items 1 --rounds 1 --plain_rows 2 --batch_sizes 3 --leave_out",
        limit=240.0,
    ),
    Step(
        "The device's own rates, widths and attention kernels",
        "primitives.py",
        "primitives.py --times 2",
        "primitives.py --small --times 2",
    ),
    Step(
        "POPE",
        "pope_speed.py --random_7b --plain_rows 18 --slow_rows 216 --rounds 2",
        "pope_speed.py --random_7b --pictures 2 --plain_rows 2 --rounds 1 --leave_out",
        "pope_speed.py --small --pictures 2 --plain_rows 2 --rounds 1 --leave_out",
    ),
    Step(
        "AGCI's own share",
        "own_share.py --random_7b --rows 108 --batch_sizes 1 18",
        "own_share.py --random_7b --rows 4 --batch_sizes 1",
        "own_share.py --small --rows 4 --batch_sizes 1",
    ),
    Step(
        "Kernel by kernel",
        "profiles.py --random_7b",
        "profiles.py --random_7b --images 2",
        "profiles.py --small --images 1",
    ),
    Step(
        "Occlusion",
        "occlusion.py --random_7b --pictures 1 --mask_size 84 --plain_copies 9",
        "occlusion.py --random_7b --pictures 1 --mask_size 210 --plain_copies 2",
        "occlusion.py --small --pictures 1 --mask_size 420 --plain_copies 2",
    ),
    Step(
        "Similarity",
        "similarity.py --random_7b --images 72",
        "similarity.py --random_7b --images 9",
        "similarity.py --small --images 9",
    ),
    Step(
        "Scaling",
        "scaling.py --random_7b --rounds 1",
        "scaling.py --random_7b --rounds 1 --quick",
        "scaling.py --quick --rounds 1",
    ),
    Step(
        "The commands on the CPU and on the GPU",
        "devices.py --items 3",
        "devices.py --items 3",
        "devices.py --items 1",
        limit=180.0,
        lane=2,
        shared=False,
    ),
    Step(
        "Attention backends on the same rows",
        "parity.py --items 20",
        "parity.py --items 10",
        "parity.py --items 1",
        limit=180.0,
        lane=3,
        shared=False,
    ),
    Step("The default tests beside a GPU", f"{TESTS} -n 12 tests", None, None, limit=240.0, shared=False),
)

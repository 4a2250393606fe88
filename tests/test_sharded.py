"""DDP and FSDP2 with two gloo processes on the CPU: gradients and logits as in one process."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent

SHARED = """
import os, sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
from tiny_checkpoints import build_model, make_inputs
from transformers_agci import attach
dist.init_process_group("gloo")
rank = dist.get_rank()
family, order = sys.argv[1:3]

def labelled(model, seed):
    inputs = make_inputs(family, model, seed=seed)
    return inputs | dict(labels=inputs["input_ids"].where(inputs["input_ids"] < 200, -100))

def plain_run():
    model = build_model(family)
    handle = attach(model, 1.0)
    for seed in (0, 1):
        (model(**labelled(model, seed)).loss / 2).backward()
    gradients = dict((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    with torch.no_grad():
        logits = model(**labelled(model, rank)).logits
        handle.lam = 0.0
        assert (model(**labelled(model, rank)).logits - logits).abs().max() > 1e-4
    return gradients, logits

def leave():
    # The wrapped model holds the group, so that gloo's threads outlive destroy_process_group(). One that lets its last
    # work go asks for the interpreter; where that has begun to end, the whole process aborts ("terminate called
    # without an active exception"). So: meet a last time, as nobody may take the group from the other, and no end.
    dist.barrier()
    os._exit(0)

expected, expected_logits = plain_run()
model = build_model(family)
if order == "first":
    handle = attach(model, 1.0)
"""

DDP = (
    SHARED
    + """
wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
if order == "after":
    handle = attach(wrapped, 1.0)
wrapped(**labelled(model, rank)).loss.backward()
assert handle.injections == 1
for name, parameter in model.named_parameters():
    if name in expected:
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)
with torch.no_grad():
    torch.testing.assert_close(wrapped(**labelled(model, rank)).logits, expected_logits, atol=1e-5, rtol=0)
print("equal", rank, flush=True)
leave()
"""
)

FSDP = (
    SHARED
    + """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
mesh = init_device_mesh("cpu", (2,))
for layer in model.model.language_model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
if order == "after":
    handle = attach(model, 1.0)
out = model(**labelled(model, rank))
assert handle.injections == 1
torch.testing.assert_close(out.logits.detach(), expected_logits, atol=1e-5, rtol=0)
out.loss.backward()
compared = 0
for name, parameter in model.named_parameters():
    if name in expected:
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[name], atol=1e-5, rtol=1e-3)
        compared += 1
assert compared > 20
print("equal", rank, flush=True)
leave()
"""
)


@pytest.mark.parametrize("order", ["first", "after"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes(kind: str, order: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text({"ddp": DDP, "fsdp2": FSDP}[kind].replace("{tests!r}", repr(str(TESTS))))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run([*launch, str(program), "qwen2_5_vl", order], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stdout.count("equal") == 2  # the two processes' lines may mix

"""The switch between methods: names, strengths, options, what may stand beside what, and what a handle tells."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import TEXT, TINY, make_batch

from transformers_agci import InputError, agci, attach
from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.method.injection import METHODS, SEEDED
from transformers_agci.method.rivals import RIVALS
from transformers_agci.method.rivals.handle import current_rival

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

ON_OFF = ("bapa", "flat", "cca", "cca_positions")
PROMPTS = [[TEXT, "plain", TEXT], [TEXT, "tiled", TEXT, TEXT]]


@pytest.fixture
def model() -> Any:
    return TINY["qwen2_vl"].build()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return make_batch(TINY["qwen2_vl"], PROMPTS).inputs


def test_every_rival_says_where_it_comes_from() -> None:
    for name, rival in RIVALS.items():
        assert rival.name == name
        assert rival.source.startswith("https://arxiv.org/abs/")
        assert rival.code.startswith("https://github.com/") or "reconstruction" in rival.note
        assert rival.changes
        assert rival.evaluated
        assert rival.default == (1.0 if name in ON_OFF else rival.neutral)
        module = __import__(f"transformers_agci.method.rivals.{name}", fromlist=["RIVAL"])
        assert module.RIVAL is rival
        assert len(module.__doc__ or "") > 200


def test_unknown_method_lists_all_methods(model: Any) -> None:
    with pytest.raises(InputError, match="method must be one of") as caught:
        attach(model, 0.5, method="papa")
    assert all(name in str(caught.value) for name in (*METHODS, *SEEDED, *RIVALS))


@pytest.mark.parametrize("method", RIVALS)
def test_unknown_option_lists_the_options(model: Any, method: str) -> None:
    with pytest.raises(InputError, match=f"{method} has no option 'tempo'; it has: strength") as caught:
        attach(model, method=method, tempo=3)
    assert all(option in str(caught.value) for option in RIVALS[method].options)
    assert current_rival(model) is None


@pytest.mark.parametrize("strength", [0.5, -1, 2, float("nan"), True, "1", 10**400, None])
def test_strength_of_an_on_off_method_is_0_or_1(model: Any, strength: Any) -> None:
    if strength is None:
        assert attach(model, method="bapa").strength == 1
        return
    with pytest.raises(InputError, match=r"The strength of bapa is 0 \(stock\) or 1, but strength is"):
        attach(model, method="bapa", strength=strength)
    handle = attach(model, method="bapa")
    with pytest.raises(InputError, match=r"but handle.strength is"):
        handle.strength = strength
    assert handle.strength == 1


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "1", None, [1], 10**400, 1j])
def test_strengths_and_options_are_finite_numbers(model: Any, value: Any) -> None:
    if value is not None:  # of a strength: the default
        with pytest.raises(InputError, match=r"The strength of pai is a finite number >= 0 .* but strength is"):
            attach(model, method="pai", strength=value)
    with pytest.raises(InputError, match=r"The option gamma of pai .* is a number of at least 0, but it is"):
        attach(model, method="pai", strength=1, gamma=value)
    with pytest.raises(InputError, match=r"The option seed of vcd .* is a whole number from 0 to 4294967295, but"):
        attach(model, method="vcd", strength=1, seed=value)
    assert current_rival(model) is None


def test_lambda_belongs_to_agci_and_controls(model: Any) -> None:
    with pytest.raises(InputError, match="lam belongs to agci and its controls: bapa has strength"):
        attach(model, 0.5, method="bapa")
    with pytest.raises(InputError, match="scope belongs to agci"):
        attach(model, scope="batch", method="bapa")
    for method in ("agci", "uniform", "random", "noise"):
        with pytest.raises(InputError, match=f"lam is missing, which {method} needs"):
            attach(model, method=method)
        with pytest.raises(InputError, match=f"{method} has no option 'strength'"):
            attach(model, 0.5, method=method, strength=1)


def test_seed_is_an_option_of_the_controls_that_draw(model: Any) -> None:
    with agci(model, 0.5, method="random", seed=3) as handle:
        assert handle.method == "random-3"
        assert handle.strength == handle.lam == 0.5
        handle.strength = 0.25
        assert handle.lam == 0.25
    for seed in (-1, 1.5, True, "x"):
        with pytest.raises(InputError, match="The seed of random is one whole number"):
            attach(model, 0.5, method="random", seed=seed)
    with pytest.raises(InputError, match="agci has no option 'seed'"):
        attach(model, 0.5, seed=1)


def test_two_rivals_at_once_are_refused(model: Any) -> None:
    attach(model, method="bapa")
    for method in RIVALS:
        with pytest.raises(InputError, match=r"Rival\(bapa.* is already attached"):
            attach(model, method=method)
        if method != "bapa":
            with pytest.raises(InputError, match="is already attached"), agci(model, method=method):
                pass


@torch.no_grad()
@pytest.mark.parametrize("first", ["agci", "bapa"])
def test_agci_may_stand_beside_a_position_method(model: Any, inputs: dict[str, Any], first: str) -> None:
    """AGCI changes the embeddings and BaPA the positions: the decoder gets both, whichever came first."""
    decoder = decoder_of(find_vlm(model))
    seen: dict[str, Any] = {}

    def note(name: str) -> None:
        with decoder_hook(decoder, seen, name):
            model(**inputs)

    note("stock")
    with agci(model, 0.5):
        note("agci")
    with agci(model, method="bapa"):
        note("bapa")
    order = [lambda: attach(model, 0.5), lambda: attach(model, method="bapa")]
    handles = [one() for one in (order if first == "agci" else order[::-1])]
    note("both")
    assert torch.equal(seen["both"][0], seen["agci"][0])
    assert torch.equal(seen["both"][1], seen["bapa"][1])
    assert not torch.equal(seen["agci"][0], seen["stock"][0])
    assert not torch.equal(seen["bapa"][1], seen["stock"][1])
    for handle in handles:
        handle.detach()
    note("again")
    assert torch.equal(seen["again"][0], seen["stock"][0])
    assert torch.equal(seen["again"][1], seen["stock"][1])


class decoder_hook:
    """Notes embeddings and positions of the decoder's next call under `name`."""

    def __init__(self, decoder: Any, seen: dict[str, Any], name: str) -> None:
        self.decoder, self.seen, self.name = decoder, seen, name

    def __enter__(self) -> None:
        def look(module: Any, args: Any, kwargs: Any) -> None:
            self.seen[self.name] = kwargs["inputs_embeds"].clone(), kwargs["position_ids"].clone()

        self.hook = self.decoder.register_forward_pre_hook(look, with_kwargs=True)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def test_flash_attention_is_refused_where_positions_mean_packing() -> None:
    llava = TINY["llava"].build()
    decoder_of(find_vlm(llava)).config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match=r"flash_attention_2 would read packed sequences .*'sdpa' or 'eager'"):
        attach(llava, method="bapa")
    qwen = TINY["qwen2_vl"].build()  # M-RoPE's positions are not looked at for that
    decoder_of(find_vlm(qwen)).config._attn_implementation = "flash_attention_2"
    assert attach(qwen, method="bapa").attached


def test_unsupported_model_is_refused() -> None:
    class Other(torch.nn.Module):
        pass

    with pytest.raises(InputError, match="does not support Other"):
        attach(Other(), method="bapa")


def test_notes_are_said_when_a_rival_is_attached(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "transformers_agci"):
        attach(model, method="cca_positions")
    assert "without training, which is off-label" in caplog.text


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `agci probe` on 4 items of the atlas into a folder of the test's own."""
    from transformers_agci.cli import main

    monkeypatch.chdir(tmp_path)

    def probe(*words: str) -> int:
        return main(["probe", "--items", "1", "--quiet", "--answer_file", "a.jsonl", *words])

    return probe


def test_probe_with_a_rival(probed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file under the method's name; the manifest says strength and source; its margins are the handle's own."""
    assert probed("--method", "bapa") == 0
    said = capsys.readouterr().out
    assert "method bapa at strength 1 (from the default of bapa)" in said
    assert "bapa (strength 1)" in said
    settings = json.loads((tmp_path / "a.bapa.manifest.json").read_text())["settings"]
    found = {name: settings[name] for name in ("method", "lambda", "strength", "method_options")}
    assert found == {"method": "bapa", "lambda": 0.0, "strength": 1.0, "method_options": {}}
    assert probed("--method", "bapa", "--method_options", "strength=0") == 2  # other settings on the same file
    assert "strength" in capsys.readouterr().err
    assert probed("--method", "bapa", "--method_options", "strength=0", "--overwrite") == 0
    assert probed("--global_context_lambda", "0") == 0
    lines = [(tmp_path / name).read_text() for name in ("a.bapa.jsonl", "a.jsonl")]
    assert lines[0] == lines[1]  # strength 0 is stock


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "papa", "--global_context_lambda", "0"), "method must be one of agci"),
        (("--method", "bapa", "--method_options", "strength=0.5"), "The strength of bapa is 0 (stock) or 1"),
        (("--method", "bapa", "--method_options", "tempo=1"), "bapa has no option 'tempo'; it has: strength."),
        (("--method", "bapa", "--method_options", "strength"), "--method_options takes K=V"),
        (("--method", "bapa", "--method_options", "strength=1", "strength=1"), "'strength' is given twice"),
        (("--method", "bapa", "--global_context_lambda", "1"), "--global_context_lambda belongs to agci"),
        (("--method", "bapa", "--scope", "batch"), "--scope belongs to agci"),
        (("--method", "bapa", "--method_seed", "1"), "--method_seed: bapa has no seed"),
        (("--method", "agci", "--method_options", "strength=1"), "agci has no option 'strength'; it has: none"),
        (("--method", "random", "--method_options", "tempo=1"), "random has no option 'tempo'; it has: seed."),
        (("--method", "random", "--method_options", "seed=1", "--method_seed", "1"), "the seed is given twice"),
        (
            ("--method", "random", "--method_options", "seed=-1"),
            "--method_options: seed must be at least 0, but is -1.",
        ),
        (("--method", "random", "--method_options", "seed=0.5"), "seed must be a whole number, but is '0.5'."),
    ],
)
def test_bad_method_words(
    probed: Any, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert probed(*words) == 2
    assert message in capsys.readouterr().err


def test_seed_among_the_method_options(probed: Any, tmp_path: Path) -> None:
    words = ("--method", "random", "--method_options", "seed=2", "--global_context_lambda", "0.5")
    assert probed(*words) == 0
    assert (tmp_path / "a.random-2.jsonl").exists()


@pytest.mark.slow
@torch.no_grad()
def test_replays_serve_position_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what prompts share replayed, and questions in one call, the margins are those of whole prompts."""
    from transformers_agci.embedded import embedded_model_path
    from transformers_agci.embedded.probe_set import build_probe_set
    from transformers_agci.experiments.position.data import read_data
    from transformers_agci.experiments.position.run import PositionProbe
    from transformers_agci.inference import prefix_replay
    from transformers_agci.inference.answering import AnswerOptions
    from transformers_agci.inference.load import LoadOptions, load

    made = build_probe_set(tmp_path / "set", items=2, seed=5)
    data = read_data(made.rows, tmp_path / "set" / "images", made.negatives)
    loaded = load(LoadOptions(str(embedded_model_path())))

    def margins(name: str) -> tuple[list[float], int]:
        file = tmp_path / f"{name}.jsonl"
        probe = PositionProbe(loaded, data, [1.0], file, AnswerOptions(method="cca_positions"))
        counts: Any = probe.ask().counts
        rows = (tmp_path / f"{name}.cca_positions.jsonl").read_text().splitlines()
        return [json.loads(row)["margin"] for row in rows], counts.replayed_tokens

    replayed, tokens = margins("replayed")
    monkeypatch.setattr(prefix_replay, "_recorded", lambda prompts, cache: None)
    whole, none = margins("whole")
    assert tokens > 1000
    assert none == 0
    assert replayed == pytest.approx(whole, abs=1e-4)

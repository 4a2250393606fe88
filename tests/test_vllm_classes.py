"""Which class the real vLLM builds a model as, which it has, and which it lacks. Run by `make vllm-test`."""

import inspect
from collections import Counter
from importlib.util import find_spec
from typing import Any

import pytest
from test_vllm_stand_ins import vllm_class

from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.families.declaration import BY_TRANSFORMERS, VllmClass
from transformers_agci.families.reasons import UNCOUNTED, UNKNOWN_TO_VLLM
from transformers_agci.method.lam import LAMBDA_KEY
from transformers_agci.vllm.injection import served_classes
from transformers_agci.vllm.plugin import check_engine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here: make vllm-test"),
]

MODEL = str(embedded_model_path())


def test_recorded_encoders_are_refused() -> None:
    from vllm import AsyncEngineArgs
    from vllm.model_executor.model_loader import utils

    from transformers_agci.vllm.plugin import register

    register()
    for recorded in (False, True):
        arguments = AsyncEngineArgs(
            model=MODEL,
            hf_overrides={LAMBDA_KEY: 0.5},
            compilation_config={"cudagraph_mm_encoder": recorded},
            max_model_len=512,
        )
        built = arguments.create_engine_config()
        chosen: Any = utils.get_model_architecture(built.model_config)[0]
        assert chosen.agci.lam == 0.5
        if recorded:
            with pytest.raises(InputError, match="cudagraph_mm_encoder"):
                chosen(vllm_config=built)
        else:
            check_engine(built, chosen.agci)


def test_an_unknown_class_is_an_error() -> None:
    from vllm import AsyncEngineArgs
    from vllm.model_executor.model_loader import utils

    from transformers_agci.vllm.plugin import register

    register()
    arguments = AsyncEngineArgs(
        model=MODEL, hf_overrides={LAMBDA_KEY: 0.5}, model_impl="transformers", max_model_len=512
    )
    with pytest.raises(InputError, match="does not serve vLLM's TransformersMultiModal"):
        utils.get_model_architecture(arguments.create_engine_config().model_config)


@pytest.mark.parametrize("name", served_classes())
def test_vllm_has_the_class_and_the_method_that_is_wrapped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own or inherited: what the protocol alone gives is no method, and returns None."""
    from vllm.model_executor.models.interfaces import SupportsMultiModal

    method = vllm_class(name, monkeypatch).embed_multimodal
    assert method is not SupportsMultiModal.embed_multimodal
    (_, keywords) = inspect.signature(method).parameters.values()
    assert keywords.kind is inspect.Parameter.VAR_KEYWORD


def test_what_vllm_has_no_class_for() -> None:
    """Each reason for not serving a family, and for serving it by transformers' modules, is a fact of this vLLM."""
    import transformers
    from transformers.models.auto import modeling_auto, processing_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from vllm.model_executor.models.registry import _VLLM_MODELS

    of_vllm = {name for name, (module, _) in _VLLM_MODELS.items() if module != "transformers"}
    tables = (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    seen = Counter[Any]()
    for model_type, family in SUPPORTED_FAMILIES.items():
        names = {table[model_type] for table in tables if model_type in table}
        counts = hasattr(
            getattr(transformers, str(processing_auto.PROCESSOR_MAPPING_NAMES.get(model_type)), None),
            "_get_num_multimodal_tokens",
        )
        seen[family.vllm] += 1
        if family.vllm == UNKNOWN_TO_VLLM:
            assert model_type not in CONFIG_MAPPING_NAMES and not names & of_vllm
        elif family.vllm == UNCOUNTED:
            assert names and not names & of_vllm and not counts, model_type
        elif family.vllm == BY_TRANSFORMERS:
            assert names and not names & of_vllm, model_type
            assert counts or model_type in ("fast_vlm", "glmga"), model_type  # with LLaVA's, GLM-4.6V's processor
        elif not isinstance(family.vllm, VllmClass):
            assert model_type in ("llava_next_video", "shieldgemma2", "ovis2", "fuyu", "hunyuan_vl")
    assert (seen[BY_TRANSFORMERS], seen[UNCOUNTED], seen[UNKNOWN_TO_VLLM]) == (8, 6, 9)

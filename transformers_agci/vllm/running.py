"""vLLM, started with our plugin: requests in, answers out, as many in flight as it has room for.

vLLM's asynchronous engine runs in an event loop in a thread of its own (inference/event_loop.py).
"""

import asyncio
import concurrent.futures
import itertools
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from transformers_agci.errors import InputError
from transformers_agci.inference.event_loop import EventLoopThread
from transformers_agci.method.lam import LAMBDA_KEY, lambda_text
from transformers_agci.vllm.injection import METHOD_KEY
from transformers_agci.vllm.worker import STARTED_BY, STORES

EXTENSION = "transformers_agci.vllm.worker.AgciWorker"
FINISHED = ("stop", "length")  # what an answer ends with that vLLM did not break off
MORE_THAN_RUNNING = 32  # requests that wait in vLLM while others run, so that none of its steps is short of work

T = TypeVar("T")


class RunningVllm:
    """One engine at one lambda; `close` ends its processes."""

    def __init__(self, arguments: Mapping[str, Any], lam: float, method: str = "agci") -> None:
        """Start vLLM and ask every worker whether AGCI is on.

        Args:
            arguments: of vLLM's AsyncEngineArgs.
            lam: set as `hf_overrides` sets it.
            method: AGCI, or one of its controls.

        Raises InputError where vLLM is not installed, refuses an argument or does not start, and where a worker does
        not have AGCI.
        """
        quiet_vllm()
        os.environ[STARTED_BY] = str(os.getpid())  # vLLM's processes end with this one, also where it is killed
        async_llm, engine_args = _classes()
        overrides = {**arguments.get("hf_overrides", {}), LAMBDA_KEY: lam}
        if method != "agci":
            overrides[METHOD_KEY] = method
        given = {**arguments, "hf_overrides": overrides, "worker_extension_cls": EXTENSION}
        self._loop: EventLoopThread | None = EventLoopThread("vllm")
        self._numbers = itertools.count()
        self._engine: Any = None
        # Copies of the model report for one of them; a store may hold what another engine has injected.
        counted = given.get("data_parallel_size") in (None, 1) and not any(given.get(name) for name in STORES)
        self._is_proven = not lam or not counted
        try:
            self._engine = self._start(async_llm, engine_args, given)
            self.in_flight = int(self._engine.vllm_config.scheduler_config.max_num_seqs) + MORE_THAN_RUNNING
            self._check_workers(lam, method)
            self._images = self._images_injected()  # by vLLM's own profiling
        except BaseException:
            self.close()
            raise

    def _start(self, async_llm: Any, engine_args: Any, given: Mapping[str, Any]) -> Any:
        """In this thread, so that Ctrl-C ends it; where a loop runs already (a notebook), in the loop of our own."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return _started(async_llm, engine_args, given)

        async def start() -> Any:
            return _started(async_llm, engine_args, given)

        return self.wait(start())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that is run in the engine's loop."""
        assert self._loop is not None
        return self._loop.wait(work)

    def reports(self) -> list[dict[str, Any]]:
        """What each worker says of AGCI: see worker.py."""
        return list(self.wait(self._engine.collective_rpc("agci_report")))

    async def generate(self, prompt: Mapping[str, Any], parameters: Any) -> Any:
        """The finished request (vLLM's RequestOutput); ValueError where vLLM refuses the prompt, or breaks off."""
        number = str(next(self._numbers))
        try:
            found = [output async for output in self._engine.generate(dict(prompt), parameters, number)][-1]
        except Exception as error:
            # vLLM 0.32 has its own class for what is the request's fault; versions before it raised ValueError
            if "VLLMClientError" in {each.__name__ for each in type(error).__mro__}:
                raise ValueError(in_one_line(error)) from error
            raise
        ended = found.outputs[0].finish_reason
        if ended not in FINISHED:
            raise ValueError(f"it broke the answer off: {ended}")
        return found

    def answers(self, jobs: Iterable[tuple[int, Callable[[], Awaitable[T]]]]) -> Generator[tuple[int, T], None, None]:
        """Run jobs in the loop, no more than `in_flight` at once, and give each result as soon as it is there."""
        assert self._loop is not None
        coming = iter(jobs)
        waiting: dict[concurrent.futures.Future[T], int] = {}
        try:
            while True:
                for number, job in itertools.islice(coming, self.in_flight - len(waiting)):
                    waiting[self._loop.start(_awaited(job))] = number
                if not waiting:
                    return
                done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), _result(future)
        finally:
            for future in waiting:
                future.cancel()

    def check_injection(self) -> None:
        """Where an image was answered about: InputError where no worker has injected one since the start."""
        if self._is_proven:
            return
        if self._images_injected() == self._images:
            raise InputError(
                "vLLM answered about an image that its workers have not injected: this version of vLLM, or one of "
                "`engine_args`, encodes images in another way. Use the engine transformers."
            )
        self._is_proven = True

    def _images_injected(self) -> list[int]:
        return [report["images"] for report in self.reports()]

    def close(self) -> None:
        """End the engine's processes and the loop."""
        if self._loop is not None:
            self._loop.close(_shut_down(self._engine))
            self._loop = self._engine = None

    def _check_workers(self, lam: float, method: str) -> None:
        for report in self.reports():
            if lam and (report["lambda"] != lam or report["method"] != method):
                raise InputError(
                    f"AGCI is not on in vLLM's worker ({report['class']}, lambda {report['lambda']}), although lambda "
                    f"{lambda_text(lam)} was asked for: vLLM must find the plugin `agci` of the entry point "
                    "vllm.general_plugins. Install transformers-agci with pip beside vLLM, and name agci in "
                    "VLLM_PLUGINS where that is set."
                )


def quiet_vllm() -> None:
    """Warnings only, and no usage statistics sent, unless the environment says otherwise."""
    for name, value in (("VLLM_LOGGING_LEVEL", "WARNING"), ("VLLM_NO_USAGE_STATS", "1"), ("DO_NOT_TRACK", "1")):
        os.environ.setdefault(name, value)


def sampling(max_tokens: int, token_ids: Sequence[int] = (), **more: Any) -> Any:
    """Greedy decoding; with the log-probabilities of `token_ids` where this vLLM can give those of chosen tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    scores: dict[str, Any] = {}
    if token_ids:
        chosen = hasattr(SamplingParams(), "logprob_token_ids")
        scores = {"logprob_token_ids": list(token_ids)} if chosen else {"logprobs": 20}
    return SamplingParams(
        temperature=0.0, max_tokens=max_tokens, output_kind=RequestOutputKind.FINAL_ONLY, **scores, **more
    )


def _result(future: "concurrent.futures.Future[T]") -> T:
    try:
        return future.result()
    except Exception as error:
        if type(error).__name__ != "EngineDeadError":  # vLLM's, which moved between its versions
            raise
        raise InputError(
            "vLLM's engine has ended, for a reason that the lines above may tell. Finished blocks are kept: the same "
            "command goes on."
        ) from error


async def _awaited(job: Callable[[], Awaitable[T]]) -> T:
    return await job()


def _started(async_llm: Any, engine_args: Any, given: Mapping[str, Any]) -> Any:
    try:
        arguments = engine_args(**given)
    except (TypeError, ValueError) as error:
        raise InputError(f"vLLM refuses an argument of `engine_args`: {in_one_line(error)}.") from None
    try:
        return async_llm.from_engine_args(arguments)
    except Exception as error:  # vLLM's own kinds are many, and the reason may stand in its log only
        raise InputError(f"vLLM did not start: {in_one_line(error)}. The lines above are vLLM's own.") from error


async def _shut_down(engine: Any) -> None:
    if engine is not None:
        engine.shutdown()


def in_one_line(error: BaseException) -> str:
    """The message of an error, which pydantic and vLLM put over several lines."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _classes() -> tuple[Any, Any]:
    try:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise InputError(
            f"The engine vllm needs the package vllm, which cannot be imported here ({in_one_line(error)}): "
            "pip install vllm."
        ) from error
    return AsyncLLM, AsyncEngineArgs

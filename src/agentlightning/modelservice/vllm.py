"""vLLM as an engine of the service: `vllm serve` as a process, asked over HTTP.

It is told to report token ids and the log-probabilities of the distribution it samples from, so that its calls can be
trained on. New weights are loaded in place by pointing the directory it serves elsewhere. Knows nothing of torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from agentlightning.config import ModelSpec
from agentlightning.gateway import OpenAIUpstream, RetryPolicy
from agentlightning.kit.errors import ModelError, UpstreamError
from agentlightning.kit.http import free_port
from agentlightning.kit.leash import leashed
from agentlightning.modelservice.engines import Progress, vllm_program
from agentlightning.modelservice.source import Source
from agentlightning.schemas.generation import EngineStats

_POLL_S = 0.25
_CLOSE_TIMEOUT_S = 15.0
_LOG_TAIL_BYTES = 3000
_RELOAD_TIMEOUT_S = 600.0


class VllmEngine:
    """One vLLM server. Create it with `start`."""

    is_exact = False

    def __init__(
        self, process: asyncio.subprocess.Process, url: str, key: str, spec: ModelSpec, folder: _Folder, log_path: Path
    ) -> None:
        """Use `start`."""
        self._process = process
        self._url = url
        self._spec = spec
        self._folder = folder
        self._log_path = log_path
        self._facts: dict[str, Any] = {}
        self._headers = {"Authorization": f"Bearer {key}"}
        self.pid = process.pid
        self.upstream = OpenAIUpstream(
            f"{url}/v1",
            api_key=key,
            model=spec.name,
            capture="vllm",
            has_processed_logprobs=True,
            retry=RetryPolicy(max_attempts=1),
        )

    @classmethod
    async def start(
        cls,
        spec: ModelSpec,
        source: Source,
        log_path: Path,
        on_progress: Progress,
        *,
        command: list[str] | None = None,
    ) -> VllmEngine:
        """Start `vllm serve` and wait until it is healthy.

        Raises:
            ModelError: It ended, or was not ready within `load_timeout_s`; with the end of its log.
        """
        folder = _Folder(source.path)
        port, key = free_port(), secrets.token_urlsafe(24)
        arguments = leashed([*(command or vllm_program() or ["vllm"]), *serve_arguments(spec, folder.served, port)])
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The key by environment, where other users of the machine cannot read it; the development mode has
                # the route that reloads weights.
                env={**os.environ, "VLLM_API_KEY": key, "VLLM_SERVER_DEV_MODE": "1", **_device(spec.device)},
                start_new_session=True,
            )
        self = cls(process, f"http://127.0.0.1:{port}", key, spec, folder, log_path)
        try:
            await self._wait_healthy(on_progress)
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def is_dead(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    def facts(self) -> dict[str, Any]:
        """What `/v1/models` tells."""
        return {"engine": "vllm", **self._facts}

    async def stats(self) -> EngineStats | None:
        """Nothing; vLLM has metrics of its own."""
        return None

    async def wait_dead(self) -> str:
        """Return when the process is gone, with the end of its log."""
        await self._process.wait()
        return f"vLLM ended (exit status {self._process.returncode}).\n{self._log_tail()}"

    async def swap(self, source: Source) -> None:
        """Take other weights of the same architecture; nobody may be asking it meanwhile.

        Raises:
            UpstreamError: It refused; it is ended then, because which weights it has is not known.
        """
        self._folder.point_to(source.path)
        try:
            await self._post("/collective_rpc", {"method": "reload_weights"})
            await self._post("/reset_prefix_cache", None)
        except UpstreamError:
            await self.close()
            raise

    async def close(self) -> None:
        """End it with all its processes: politely, then by force."""
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if self._process.returncode is None:
                    self._signal(number)
                with contextlib.suppress(TimeoutError):  # the next, harder signal follows
                    await asyncio.wait_for(self._process.wait(), _CLOSE_TIMEOUT_S)
                    break
            await self.upstream.aclose()
        finally:
            self._signal(signal.SIGKILL)  # for workers that outlived it
            self._folder.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._process.pid, number)

    async def _wait_healthy(self, on_progress: Progress) -> None:
        import aiohttp

        started = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                elapsed_s = time.monotonic() - started
                # How far it is, it does not say.
                on_progress("vllm", min(0.95, elapsed_s / (elapsed_s + 60)))
                if self.is_dead:
                    raise ModelError(
                        f"vLLM ended while it was loading {self._spec.origin}.\n{self._log_tail()}",
                        hint=f"The whole log is {self._log_path}.",
                    )
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):  # not listening yet: asked again below
                    async with session.get(f"{self._url}/health") as response:
                        if response.status == 200:
                            break
                if elapsed_s > self._spec.load_timeout_s:
                    raise ModelError(
                        f"vLLM was not ready within {self._spec.load_timeout_s:g} s.",
                        hint=f"Raise load_timeout_s or see {self._log_path}.",
                    )
                await asyncio.sleep(_POLL_S)
            async with session.get(f"{self._url}/v1/models", headers=self._headers) as response:
                served = [m for m in (await response.json()).get("data", ()) if m.get("id") == self._spec.name]
                self._facts = {"max_context": served[0].get("max_model_len")} if served else {}

    async def _post(self, path: str, body: dict[str, Any] | None) -> None:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=_RELOAD_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(f"{self._url}{path}", json=body) as response,
            ):
                if response.status >= 300:
                    reason = (await response.text())[:500]
                    raise UpstreamError(f"vLLM refused {path} with {response.status}: {reason}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamError(f"vLLM did not answer {path}: {error or type(error).__name__}") from error

    def _log_tail(self) -> str:
        try:
            with self._log_path.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
                return stream.read().decode(errors="replace")
        except OSError as error:
            return f"(its log cannot be read: {error})"


def serve_arguments(spec: ModelSpec, model: str, port: int) -> list[str]:
    """The command line of `vllm serve` after the program."""
    arguments = ["serve", model, "--host", "127.0.0.1", "--port", str(port)]
    # Log-probabilities after temperature and truncation: those of the distribution that is sampled from.
    arguments += ["--logprobs-mode", "processed_logprobs", "--max-num-seqs", str(spec.max_rows)]
    if spec.adapter is None:
        arguments += ["--served-model-name", spec.name]
    else:
        arguments += ["--served-model-name", f"{spec.name}-without-adapter"]
        arguments += ["--enable-lora", "--lora-modules", f"{spec.name}={spec.adapter}"]
    if spec.dtype != "auto":
        arguments += ["--dtype", spec.dtype]
    if spec.max_context is not None:
        arguments += ["--max-model-len", str(spec.max_context)]
    return [*arguments, *spec.vllm_args]


def _device(device: str) -> dict[str, str]:
    number = device.partition(":")[2]
    return {"CUDA_VISIBLE_DEVICES": number} if number else {}


class _Folder:
    """The directory vLLM is given: a link, which can be pointed to other weights. A hub id is given as it is."""

    def __init__(self, path: str) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.served = path
        if Path(path).expanduser().is_dir():
            self._temporary = tempfile.TemporaryDirectory(prefix="agentlightning-vllm-", ignore_cleanup_errors=True)
            self.served = os.path.join(self._temporary.name, "model")
            self.point_to(path)

    def point_to(self, path: str) -> None:
        """Show other weights there.

        Raises:
            ModelError: One of the two is no directory.
        """
        target = Path(path).expanduser().resolve()
        if self._temporary is None or not target.is_dir():
            raise ModelError("Weights can be replaced in place between directories only.", hint="Use swap='beside'.")
        link = Path(self.served)
        fresh = link.with_name("next")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)

    def close(self) -> None:
        """Remove the link."""
        if self._temporary is not None:
            self._temporary.cleanup()

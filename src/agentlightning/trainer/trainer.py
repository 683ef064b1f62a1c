"""The trainer: wires store, gateway, engine, runners and one algorithm into a run that can be stopped and resumed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agentlightning.agent import AgentOpsTracer, OtelTracer
from agentlightning.algorithm.base import Algorithm, Dataset, Report, RunContext, RunStopped, no_report
from agentlightning.algorithm.baseline import Baseline
from agentlightning.algorithm.evaluation import Evaluation, evaluate
from agentlightning.algorithm.prompt import PromptOptimizer
from agentlightning.algorithm.supervised import Supervised
from agentlightning.config import Settings
from agentlightning.kit.bridge import run_sync
from agentlightning.kit.clock import now
from agentlightning.kit.errors import AgentLightningError, ConfigError, StorageError
from agentlightning.kit.ids import new_name
from agentlightning.kit.signals import stop_requests
from agentlightning.registry import ModelRegistry, ModelVersion
from agentlightning.runner import FailurePolicy
from agentlightning.schemas import NamedResources
from agentlightning.store import LightningStore
from agentlightning.trainer.arguments import as_algorithm, strategy_name, under_old_names
from agentlightning.trainer.placement import Placement
from agentlightning.trainer.result import RunResult, as_evaluations, reward_gain, without_rewards
from agentlightning.trainer.runlog import MetricsLog, RunRecord
from agentlightning.trainer.session import Session, SessionConfig
from agentlightning.trainer.strategies import ClientServerExecutionStrategy, ExecutionStrategy

GREEDY = {"temperature": 0.0}
_RUNNERS_OWN = (type(None), OtelTracer, AgentOpsTracer)
"""Tracers that runner processes have anyway."""


class Trainer:
    """Runs an algorithm over an agent.

    Args:
        algorithm: An `Algorithm`, e.g. `GRPO(...)`, a function decorated with `@algo`, or the name of one: `grpo`,
            `sft`, `dpo`, or of a prompt optimizer: `apo`, `gepa`, `fewshot`, `edit`, `auto`. Default: `Baseline()`.
        model: Directory or hub id of a Hugging Face causal LM to serve (and train) with the embedded engine.
        n_runners: Runner processes.
        initial_resources: Named resources to start from (prompts, an `LLM` at any OpenAI-compatible address).
        store: A store of your own; by default the file `.agentlightning/store.db`.
        evaluator: `(task, output) -> reward`, for agents that do not score themselves.
        policy: What a failure means, per error class.
        max_concurrency: Rollouts at once per runner.
        strategy: `"cs"` (runners of their own) or `"shm"` (one runner in this process), or one of 0.3's objects.
        runner: Where runners of their own are: `"process"`, `"subprocess"` (a process for each rollout at a time) or
            `"ray"`; a mapping has settings beside the `type`, see `trainer.placement.Placement`.
        name: Prefix of run ids and name of registered models.
        register: Register the trained model as a version: when it is shown to be better (true), never, or `"always"`.
        run_id: Continue this run, or start one under this id.
        seed: Seeds task order and sampling.
        on_event: Receives progress events.
        port: Port of gateway and store; 0 takes a free one.
        **renamed: Old names of 0.3: `n_workers` (`n_runners`), `max_tasks` (`max_rollouts`), `triplet_exporter`
            (`adapter`); `daemon` has no effect.

    Raises:
        ConfigError: Arguments contradict each other, or one has no effect with the others.
    """

    def __init__(
        self,
        *,
        algorithm: Algorithm | Callable[..., Any] | str | None = None,
        model: str | Path | None = None,
        n_runners: int | None = None,
        max_rollouts: int | None = None,
        initial_resources: NamedResources | None = None,
        tracer: Any = None,
        adapter: Any = None,
        store: LightningStore | None = None,
        strategy: str | Mapping[str, Any] | ExecutionStrategy | None = None,
        runner: str | Mapping[str, Any] | None = None,
        port: int | None = None,
        llm_proxy: Any = None,
        hooks: Any = None,
        evaluator: Callable[..., Any] | str | None = None,
        policy: FailurePolicy | None = None,
        max_concurrency: int = 64,
        name: str = "run",
        run_id: str | None = None,
        seed: int = 0,
        on_event: Report | None = None,
        settings: Settings | None = None,
        device: str = "auto",
        threads: int | None = None,
        lora: dict[str, Any] | None = None,
        register: bool | Literal["always"] = True,
        **renamed: Any,
    ) -> None:
        n_runners, max_rollouts, adapter = under_old_names(renamed, n_runners, max_rollouts, adapter)
        self.algorithm = as_algorithm(algorithm)
        self.settings = settings or Settings()
        self.name = name
        self.run_id = run_id or new_name(name)
        self.seed = seed
        self.model = str(model) if model is not None else None
        self.adapter = adapter
        self.llm_proxy = llm_proxy
        self.initial_resources: NamedResources = dict(initial_resources or {})
        self.on_event: Report = on_event or no_report
        self.register = register
        self._store = store
        if isinstance(strategy, ExecutionStrategy):
            n_runners = strategy.n_runners if n_runners is None else n_runners
        host, port = self.settings.host, self.settings.port if port is None else port
        if isinstance(strategy, ClientServerExecutionStrategy):
            host = strategy.server_host or host
            port = strategy.server_port if strategy.server_port is not None else port
        self._session_options: dict[str, Any] = {
            "n_runners": n_runners,
            "placement": Placement.parse(runner),
            "max_rollouts": max_rollouts,
            "tracer": tracer,
            "strategy": strategy_name(strategy),
            "port": port,
            "host": host,
            "hooks": tuple(hooks) if isinstance(hooks, Sequence) else (hooks,) if hooks else (),
            "evaluator": evaluator,
            "policy": policy,
            "max_concurrency": max_concurrency,
            "device": device,
            "threads": threads,
            "lora": lora,
        }
        self._check_arguments()

    def _check_arguments(self) -> None:
        if self.algorithm.trains_weights and self.model is None:
            raise ConfigError(
                f"{type(self.algorithm).__name__} trains weights and needs model=PATH_OR_HUB_ID.",
                hint="The embedded one is agentlightning.nano.model_path().",
            )
        if self.model is None:
            unused = [key for key in ("lora", "threads") if self._session_options[key] is not None]
            if unused:
                raise ConfigError(f"Without model= these have no effect: {', '.join(unused)}.")
        if self._session_options["strategy"] == "shm" and self._session_options["placement"] != Placement():
            raise ConfigError("runner= has no effect with strategy='shm', which has one runner in this process.")
        tracer = self._session_options["tracer"]
        if type(tracer) not in _RUNNERS_OWN and self._session_options["strategy"] != "shm":
            raise ConfigError("tracer= is used with strategy='shm' only; runner processes make their own.")

    @property
    def directory(self) -> Path:
        """Folder of the run."""
        return self.settings.runs_path / self.run_id

    @property
    def store(self) -> LightningStore | None:
        """The store given to the trainer, if any."""
        return self._store

    def fit(
        self,
        agent: Any = None,
        train_dataset: Dataset[Any] | None = None,
        *,
        val_dataset: Dataset[Any] | None = None,
        test_datasets: Mapping[str, Dataset[Any]] | None = None,
    ) -> RunResult:
        """Run the algorithm to its end; repeat with the same `run_id` to continue.

        Weight-training algorithms are evaluated before and after, sampled and greedy, on `test_datasets` (or
        `val_dataset`); a model version is registered when the sampled gain's 95 % interval excludes zero. `SFT` and
        `DPO` need an agent only for `test_datasets`; without them the gain is that on their held-out examples.

        Args:
            agent: Decorated function, `LitAgent`, plain callable, `CommandAgent`, or an `import:path`.
            train_dataset: Tasks to learn from; for `SFT` and `DPO` rows of examples, or none to learn from the store.
            val_dataset: Tasks to watch progress on; for `SFT` and `DPO` rows of held-out examples.
            test_datasets: Named sets of tasks for before and after only.

        Raises:
            RunStopped: Ctrl-C; the last checkpoint stays.
            SignalError: There is nothing to learn from.
            AgentLightningError: Anything else that is known, with the next step.
        """
        return run_sync(self.fit_async(agent, train_dataset, val_dataset=val_dataset, test_datasets=test_datasets))

    async def fit_async(
        self,
        agent: Any = None,
        train_dataset: Dataset[Any] | None = None,
        *,
        val_dataset: Dataset[Any] | None = None,
        test_datasets: Mapping[str, Dataset[Any]] | None = None,
    ) -> RunResult:
        """`fit` for async callers."""
        self._check_agent(agent, test_datasets)
        started = now()
        self.directory.mkdir(parents=True, exist_ok=True)
        record = RunRecord(self.directory)
        metrics = MetricsLog(self.directory)
        tests = self._tests(val_dataset, test_datasets)
        result = RunResult(self.run_id, self.directory)
        try:
            async with self._open(agent, metrics, record, test_datasets) as session:
                context = session.context
                self._plan(context, train_dataset, val_dataset, tests, record)
                result.before = await self._compare(context, tests, "before", record)
                await self._run_algorithm(context, session, train_dataset, val_dataset)
                result.after = await self._compare(context, tests, "after", record)
                result.gain = reward_gain(result.before, result.after)
                if isinstance(self.algorithm, Supervised) and self.algorithm.result is not None:
                    result.learning = self.algorithm.result
                    record.update(learning=result.learning.as_dict())
                if isinstance(self.algorithm, PromptOptimizer) and self.algorithm.result is not None:
                    result.optimization = self.algorithm.result
                    result.gain = result.optimization.gain
                    result.before, result.after = as_evaluations(result.optimization)
                    record.update(before=result.before, after=result.after)
                result.model = await self._register(session, result)
        except RunStopped:
            _note_end(record, started, status="stopped")
            raise
        except (AgentLightningError, asyncio.CancelledError) as error:
            _note_end(record, started, status="failed", error=str(error))
            raise
        finally:
            metrics.close()
        result.seconds = record.data.get("seconds", 0.0) + now() - started
        record.update(
            status="succeeded",
            seconds=result.seconds,
            gain=result.gain,
            model=result.model.ref if result.model else None,
        )
        return result

    def dev(
        self,
        agent: Any,
        train_dataset: Dataset[Any] | None = None,
        *,
        val_dataset: Dataset[Any] | None = None,
    ) -> RunResult:
        """Try the agent out: `Baseline` in this process on a few tasks, every trace reported.

        Raises:
            ConfigError: The trainer's algorithm is one that trains; give `Baseline()` or an `@algo` function.
            SignalError: No rollout got a reward.
        """
        if self.algorithm.trains_weights:
            self.algorithm = Baseline(span_verbosity="key_values")
        self._session_options |= {"strategy": "shm", "placement": Placement()}
        few = _head(train_dataset, 10)
        return self.fit(agent, few, val_dataset=_head(val_dataset, 10))

    def _check_agent(self, agent: Any, test_datasets: Mapping[str, Dataset[Any]] | None) -> None:
        if agent is not None:
            return
        if self.algorithm.needs_agent:
            raise ConfigError(f"{type(self.algorithm).__name__} needs an agent.", hint="trainer.fit(agent, tasks)")
        if test_datasets:
            raise ConfigError(
                f"test_datasets are tasks for an agent, and there is none: {', '.join(test_datasets)}.",
                hint="Give the agent, too; held-out examples are val_dataset.",
            )

    @contextlib.asynccontextmanager
    async def _open(
        self, agent: Any, metrics: MetricsLog, record: RunRecord, tests: Mapping[str, Dataset[Any]] | None
    ) -> AsyncGenerator[Session]:
        def report(event: dict[str, Any]) -> None:
            if event["type"] == "resumed":
                metrics.rewind(event["step"])
            metrics.append(event)
            self.on_event(event)

        config = SessionConfig(
            run_id=self.run_id,
            directory=self.directory,
            store_location=self.settings.store_location,
            model=self.model,
            seed=self.seed,
            initial_resources=self.initial_resources,
            tests=tests or {},
            fronts_environment=self.algorithm.reads_model_calls,
            report=report,
            **self._session_options,
        )
        self.on_event({"type": "phase", "name": "starting"})
        session = Session(agent, config, store=self._store)
        # The first Ctrl-C or SIGTERM finishes cleanly, the second interrupts at once.
        with stop_requests(lambda number: session.stopping.set()):
            async with session:
                record.update(
                    run_id=self.run_id,
                    name=self.name,
                    status="running",
                    algorithm=getattr(self.algorithm, "__name__", type(self.algorithm).__name__),
                    config=_config_of(self.algorithm),
                    base_model=self.model,
                    seed=self.seed,
                    created_at=record.data.get("created_at", now()),
                    url=session.url,
                )
                yield session

    async def _run_algorithm(self, context: RunContext, session: Session, train_dataset: Any, val_dataset: Any) -> None:
        algorithm = self.algorithm
        algorithm.set_trainer(self)
        algorithm.set_context(context)
        algorithm.set_llm_proxy(session.gateway)
        algorithm.set_initial_resources(self.initial_resources)
        if self.adapter is not None:
            algorithm.set_adapter(self.adapter)
        self.on_event({"type": "phase", "name": algorithm.phase})
        if algorithm.is_async():
            work = algorithm.run(train_dataset=train_dataset, val_dataset=val_dataset)
            if not inspect.isawaitable(work):
                raise ConfigError(f"{type(algorithm).__name__}.run() claims to be async but returned no awaitable.")
            await work
        else:
            await asyncio.to_thread(algorithm.run, train_dataset=train_dataset, val_dataset=val_dataset)

    def _tests(self, val_dataset: Any, test_datasets: Mapping[str, Any] | None) -> dict[str, Any]:
        if not self.algorithm.trains_weights:
            return {}
        if isinstance(self.algorithm, Supervised):
            val_dataset = None  # rows to measure on, not tasks
        named = dict(test_datasets or ({"val": val_dataset} if val_dataset is not None else {}))
        return {name: data for name, data in named.items() if len(data)}

    async def _compare(
        self, context: RunContext, tests: dict[str, Any], when: str, record: RunRecord
    ) -> dict[str, dict[str, Any]]:
        """Evaluate each test set sampled and greedy; finished evaluations are kept in the run's record."""
        known: dict[str, dict[str, Any]] = dict(record.data.get(when) or {})
        sampling = getattr(getattr(self.algorithm, "config", None), "temperature", 1.0)
        limits = {"max_tokens": getattr(getattr(self.algorithm, "config", None), "max_tokens", 256)}
        for name, data in tests.items():
            for kind, overrides in (("sampled", {"temperature": sampling}), ("greedy", GREEDY)):
                key = f"{name}/{kind}"
                if key in known:
                    continue
                self.on_event({"type": "phase", "name": when, "detail": key})
                evaluation: Evaluation = await evaluate(
                    context,
                    data,
                    label=f"{when}-{name}-{kind}",
                    overrides={**limits, **overrides},
                    mode="test",
                )
                known[key] = {**evaluation.as_dict(), "rewards": evaluation.rewards}
                record.update(**{when: known})
                self.on_event({"type": "compare", "when": when, "name": key, **evaluation.as_dict()})
        return known

    def _plan(
        self,
        context: RunContext,
        train_dataset: Any,
        val_dataset: Any,
        tests: dict[str, Any],
        record: RunRecord,
    ) -> None:
        """Say how many rollouts are coming, so that a view can estimate the time left."""
        config = getattr(self.algorithm, "config", None)
        total = 4 * sum(len(data) for data in tests.values())
        steps = getattr(config, "steps", 0)
        if config is not None and steps:
            total += steps * config.prompts_per_step * config.group_size
            if config.eval_every and val_dataset is not None:
                count = len({*range(0, steps, config.eval_every), steps})
                total += count * min(len(val_dataset), config.eval_limit or len(val_dataset))
        del context, train_dataset
        self.on_event({"type": "plan", "rollouts": total, "steps": steps, "resumed": bool(record.data.get("before"))})

    async def _register(self, session: Session, result: RunResult) -> ModelVersion | None:
        if not (self.register and session.engine and self.algorithm.trains_weights):
            return None
        source = await session.engine.save_model(self.directory / "model")
        learning = result.learning
        gain = learning.gain if learning is not None and not result.before else result.gain
        if self.register != "always" and (gain is None or gain[1] <= 0):
            return None
        summary = {"before": without_rewards(result.before), "after": without_rewards(result.after)}
        if learning is not None:
            summary["learning"] = learning.as_dict()
        return await asyncio.to_thread(
            ModelRegistry(self.settings.models_path).register,
            self.name,
            source,
            base=str(self.model),
            run_id=self.run_id,
            step=learning.steps if learning else getattr(getattr(self.algorithm, "config", None), "steps", 0),
            metrics={**summary, "gain": None if gain is None else list(gain)},
        )


def _note_end(record: RunRecord, started: float, **facts: Any) -> None:
    """Record how the run ended; a full disk must not hide the error that is on its way up."""
    with contextlib.suppress(StorageError):
        record.update(seconds=record.data.get("seconds", 0.0) + now() - started, **facts)


def _config_of(algorithm: Algorithm) -> dict[str, Any]:
    config = getattr(algorithm, "config", None)
    return config.model_dump() if config is not None and hasattr(config, "model_dump") else {}


def _head(dataset: Any, n: int) -> Any:
    return None if dataset is None else [dataset[i] for i in range(min(n, len(dataset)))]

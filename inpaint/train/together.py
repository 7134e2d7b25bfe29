"""Several adapters trained at once in this process, on one frozen base: one forward and backward for all of them.

Guarantees: each adapter is what it would be alone (`alone.py`): it has its own rows and plan, optimizer state, learning
rates, validation, checkpoints and end, in the same files, and either way goes on where the other ended. One whose rows
or loss fail ends with its error, and the others go on. Where a GPU's memory does not hold a step of all, they take it
in turns of half as many.
Not covered: several workers, fp16, optimizers that need whole parameters.

Each training runs the loop in a thread of its own, one of them at a time. Where all wait for a step, the caller's
thread makes it for all, so that the memory of a step is held once by the allocator, and not in each thread's arena.
Shapes: K adapters, B rows of each, P numbers of one adapter's parameters.
"""

import gc
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from inpaint.data.plan import StepLayout
from inpaint.device import on_device
from inpaint.errors import InpaintError
from inpaint.models.prompt_text import read_prompt, tokenize
from inpaint.models.stacked import Stacked
from inpaint.train import optimizers
from inpaint.train.alone import train_here
from inpaint.train.checkpoint import Progress, State
from inpaint.train.engine import average_decay
from inpaint.train.latent import LatentInpainting
from inpaint.train.objective import MicroBatch, ParameterGroup
from inpaint.train.recipe import Recipe
from inpaint.train.settings import MOMENTS, Offload, Optimizer, Precision, TrainSettings
from inpaint.train.trainer import Training

FAILURES = (InpaintError, FloatingPointError, OSError)
"""What ends one training and no other."""
Ended = Progress | InpaintError | FloatingPointError | OSError
"""Where a training ended, or why it could not."""


def check_together(settings: TrainSettings) -> None:
    """Raises InpaintError for settings that adapters cannot be trained together with."""
    if settings.precision is Precision.FP16:
        raise InpaintError("precision fp16 scales the loss of one training: give bf16 or fp32 to train several at once")
    if settings.optimizer not in MOMENTS:
        raise InpaintError(f"optimizer {settings.optimizer} is for one training alone: give adamw or sgd")
    if settings.offload is not Offload.NONE:
        raise InpaintError(f"offload {settings.offload} is for one training alone: what several share is the base")


def train_together(trainings: Sequence[Training], device: torch.device, threads: int) -> list[Ended]:
    """Train all to their ends, from their newest checkpoints on; returns what became of each.

    Args:
        trainings: of one recipe, each bound to its own rows.
        threads: that read the samples of each.

    Raises:
        InpaintError: settings, or a base, that adapters cannot share.
    """
    recipe = trainings[0].recipe.joined([training.recipe for training in trainings])
    check_together(recipe.train)
    ended = _train(trainings, recipe, device, threads)
    # As in `train_alone`: what refers to each other in a circle holds the device's memory.
    gc.collect()
    return ended


def _train(trainings: Sequence[Training], recipe: Recipe, device: torch.device, threads: int) -> list[Ended]:
    objective = recipe.objective(device)
    if not isinstance(objective, LatentInpainting):
        raise InpaintError(f"{recipe.title}: only adapters of a base can be trained together")
    base = _SharedBase(objective, len(trainings))

    def train(number: int) -> Ended:
        with base.turn:
            try:
                return train_here(trainings[number], lambda: _AdapterEngine(base, number, recipe), device, threads)
            except FAILURES as error:
                return error
            finally:
                base.leave()

    with ThreadPoolExecutor(len(trainings)) as pool:
        ended = [pool.submit(train, number) for number in range(len(trainings))]
        base.make_steps()
        return [future.result() for future in ended]


class _SharedBase:
    """Where the trainings' steps meet."""

    def __init__(self, objective: LatentInpainting, adapters: int) -> None:
        self.objective, self.groups = objective.train(), objective.groups()
        self.stack = Stacked(objective, [group.parameters for group in self.groups], adapters)
        self.turn = threading.Condition()
        """Held by the thread that computes; let go by those that wait for a step, or for all to."""
        self._training, self._at_once = adapters, adapters
        self._asked: dict[_AdapterEngine, list[MicroBatch]] = {}
        self._failure: BaseException | None = None

    def gradients(self, engine: "_AdapterEngine", batches: list[MicroBatch]) -> None:
        """Returns once the engine has its step's loss, and its vectors their gradients."""
        self._asked[engine] = batches
        self.turn.notify_all()
        self.turn.wait_for(lambda: engine not in self._asked or self._failure is not None)
        if self._failure is not None:
            raise self._failure

    def leave(self) -> None:
        """A training that has ended is waited for no more."""
        self._training -= 1
        self.turn.notify_all()

    def make_steps(self) -> None:
        """Compute whenever all wait for a step, until all have left or a step failed, which is then raised by all."""
        with self.turn:
            try:
                while self._failure is None:
                    self.turn.wait_for(lambda: len(self._asked) == self._training)
                    if not self._training:
                        return
                    for waiting in self._of_one_shape():
                        while waiting:
                            waiting = waiting[self._compute(waiting[: self._at_once]) :]
                    self._asked.clear()
                    self.turn.notify_all()
            except BaseException as error:
                self._failure = error
                self.turn.notify_all()
                if not isinstance(error, Exception):
                    raise

    def _of_one_shape(self) -> "list[list[_AdapterEngine]]":
        """Those that wait, by the shape of their images, which is one in all batches of a step."""
        found: dict[tuple[int, ...], list[_AdapterEngine]] = {}
        for engine, batches in self._asked.items():
            found.setdefault(batches[0]["hole"].shape, []).append(engine)
        return list(found.values())

    def _compute(self, engines: "list[_AdapterEngine]") -> int:
        """The losses and gradients of some; returns of how many, 0 where fewer are to be tried."""
        try:
            for engine in engines:
                engine.begin_step()
            for micro_batches in zip(*(self._asked[engine] for engine in engines), strict=True):
                self._backward(engines, micro_batches)
            return len(engines)
        except torch.OutOfMemoryError:
            if len(engines) == 1:
                raise
        self._at_once = (len(engines) + 1) // 2
        torch.cuda.empty_cache()
        return 0

    def _backward(self, engines: "list[_AdapterEngine]", batches: Sequence[MicroBatch]) -> None:
        self.install(engines, batches)
        batch = _joined(batches)
        weighed_KB = self.objective(batch) * on_device(batch["weight"], engines[0].device)
        losses_K = weighed_KB.unflatten(0, (len(engines), -1)).sum(1) / engines[0].layout.global_batch
        losses_K.sum().backward()
        for engine, loss in zip(engines, losses_K.detach(), strict=True):
            engine.loss = engine.loss + loss

    def install(self, engines: "Sequence[_AdapterEngine]", batches: Sequence[MicroBatch]) -> None:
        """Let the base compute with these adapters; of each come the rows of one batch."""
        self.stack.install([engine.number for engine in engines], [engine.shown for engine in engines])
        self.stack.text_rows[:] = self._text_rows(batches) if len(engines) > 1 else []

    def _text_rows(self, batches: Sequence[MicroBatch]) -> list[int]:
        """Chunks of each batch's prompts, where some have more than others."""
        base, settings = self.objective.base, self.objective.prompts
        if settings.prompt_chunks == 1:
            return []
        read = [read_prompt(str(prompt), settings) for batch in batches for prompt in batch["prompt"]]
        chunks = np.array(tokenize(base.tokenizers, [read] * len(base.tokenizers)).counts)
        rows: list[int] = chunks.reshape(len(batches), -1).sum(1).tolist()
        return rows if len(set(rows)) > 1 else []


@dataclass(eq=False)
class _AdapterEngine:
    """One adapter on the shared base: an `Engine` of one worker."""

    base: _SharedBase
    number: int
    recipe: Recipe
    shown: Sequence[Tensor] = field(init=False)
    """What the base computes with when it is this adapter's turn: P of each group."""
    loss: Tensor = field(init=False)
    """Of the last step."""

    def __post_init__(self) -> None:
        self.settings: TrainSettings = self.recipe.train
        self.layout: StepLayout = self.settings.layout(1)
        self.objective, self._groups = self.base.objective, self.base.groups
        initial = self.base.stack.initial(self.number)
        self._vectors = [nn.Parameter(vector.float()) for vector in self.base.stack.vectors(initial)]
        self.device = self._vectors[0].device
        self.shown, self.loss = self._vectors, torch.zeros((), device=self.device)
        rates = [group.learning_rate for group in self._groups]
        named = [{str(i): vector} for i, vector in enumerate(self._vectors)]
        groups = [ParameterGroup(rate, parameters) for rate, parameters in zip(rates, named, strict=True)]
        self._optimizer = optimizers.build(groups, self.settings)
        self._moments = MOMENTS[self.settings.optimizer]
        zeros = {name: torch.zeros_like(value) for name, value in initial.items()}
        self.load({"trained": initial, "ema": initial, **dict.fromkeys(self._moments, zeros)}, steps=0)

    def begin_step(self) -> None:
        """Forget the last step's gradients and loss."""
        self._optimizer.zero_grad()
        self.loss = torch.zeros_like(self.loss)

    def train_step(self, batches: list[MicroBatch], lr_scale: float) -> Tensor:
        """One optimizer step, its gradients made together with those of the others; returns the batch's loss."""
        self.base.gradients(self, batches)
        if self.settings.max_grad_norm:
            nn.utils.clip_grad_norm_(self._vectors, self.settings.max_grad_norm)
        for group, of_base in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["lr"] = of_base.learning_rate * lr_scale
        self._optimizer.step()
        self.steps += 1
        if self.settings.ema_halflife is not None:
            decay = average_decay(self.settings.ema_halflife, batch=self.layout.global_batch, steps=self.steps)
            for average, vector in zip(self._average, self._vectors, strict=True):
                average.lerp_(vector.detach(), 1 - decay)
        return self.loss

    @torch.no_grad()
    def validation_loss(self, batch: MicroBatch) -> Tensor:
        """The sum of the weighed losses of a validation batch."""
        losses_B: Tensor = self.objective(batch, validating=True)
        return (losses_B * on_device(batch["weight"], losses_B.device)).sum()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, the base is this adapter's, in evaluation mode: of the moving average, where one is kept."""
        self.shown = self._average or self._vectors
        with torch.no_grad():
            self.base.install([self], [])
        self.objective.eval()
        try:
            yield
        finally:
            self.objective.train()
            self.shown = self._vectors

    def gather(self) -> State:
        """The full training state, as that of a training alone."""
        kept = [self._optimizer.state[vector] for vector in self._vectors]
        kinds: dict[str, Sequence[Tensor]] = {"trained": [vector.detach() for vector in self._vectors]}
        kinds |= {moment: [state[moment] for state in kept] for moment in self._moments}
        kinds |= {"ema": self._average} if self._average else {}
        return {
            kind: {name: value.to("cpu", copy=True) for name, value in self.base.stack.named(vectors).items()}
            for kind, vectors in kinds.items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Tensor]], *, steps: int) -> None:
        """Continue from a gathered state after `steps` optimizer steps."""
        vectors = {kind: self._on_device(state[kind]) for kind in ("trained", *self._moments)}
        for index, vector in enumerate(self._vectors):
            vector.copy_(vectors["trained"][index])
            kept = {moment: vectors[moment][index] for moment in self._moments}
            if self.settings.optimizer is Optimizer.ADAMW:
                kept["step"] = torch.tensor(float(steps), device=self.device)
            self._optimizer.state[vector] = kept
        self.steps = steps
        """Optimizer steps that were made."""
        self._average = [] if self.settings.ema_halflife is None else self._on_device(state["ema"])

    def _on_device(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        return [vector.to(self.device) for vector in self.base.stack.vectors(named)]


def _joined(batches: Sequence[MicroBatch]) -> MicroBatch:
    """One after another. Rows without an input see their image, where other batches have inputs."""
    names = set().union(*batches)
    return {name: np.concatenate([batch.get(name, batch.get("image")) for batch in batches]) for name in names}

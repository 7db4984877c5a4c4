"""What training changes: the student, its average and its optimizer, whole or sharded over the processes."""

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from workbench.config import Config
from workbench.objectives.base import Batch
from workbench.runs.finite import first_not_finite
from workbench.training.student import Losses, Student


class TrainState:
    """The student on its device, ready to step; ``parts`` are the same tensors whatever the number of processes.

    ``training.sharding`` "ddp" keeps a copy in each process, "fsdp" splits parameters, gradients, average and
    optimizer (PyTorch's fully_shard, a group for each block). ``training.compile`` compiles each block, student's
    and teacher's: all blocks share one graph, so that starting takes seconds, and taps stay explicit.
    """

    def __init__(self, student: Student, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config.training, accelerator
        self.student = student.to(accelerator.device)
        self.ema = copy.deepcopy(self.student.backbone).eval().requires_grad_(False)
        self.sharded = self.config.sharding == "fsdp" and accelerator.num_processes > 1
        if self.sharded:
            _shard(self.student, self.student.backbone.blocks, accelerator)
            _shard(self.ema, self.ema.blocks, accelerator)
        if self.config.compile:
            teacher = student.objective.context.teacher
            for backbone in (self.student.backbone, *([teacher] if teacher else [])):
                for block in backbone.blocks:
                    block.compile()
        self.optimizer = build_optimizer(self.student, config)
        self._stepper = accelerator.prepare_optimizer(self.optimizer)
        self.aligned: bool | None = None

    def align(self, aligned: bool) -> None:
        """Prepare for a phase: without alignment, nothing may wait for the gradients of the heads."""
        if aligned == self.aligned:
            return
        self.aligned = aligned
        self.student.objective.requires_grad_(aligned)
        for parameter in self.student.objective.parameters():
            parameter.grad = None
        self.accelerator._models.clear()  # it would keep the buffers of the phase before
        self.model = self.student if self.sharded else self.accelerator.prepare_model(self.student)

    def losses(self, batch: Batch) -> Losses:
        """Both losses of a batch, in the precision of training."""
        # Not Accelerate's own: its precision is global to the process, that of this state is not.
        dtype = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[self.config.precision]
        with torch.autocast(self.accelerator.device.type, dtype, enabled=dtype is not None):
            return self.model(batch, self.aligned, self.ema)

    def step(
        self,
        batches: Iterator[Batch],
        weight: float,
        learning_rate: float,
        check: Callable[[Tensor], None] = lambda total: None,
    ) -> tuple[list[Losses], Tensor]:
        """One optimizer step: both losses of the next `training.accumulation` micro-batches, clip, update, average.

        Args:
            batches: This process's micro-batches, on any device.
            weight: Factor of the alignment loss; without alignment if it is 0.
            learning_rate: The learning rate.
            check: Called with the loss of each micro-batch before its gradients are computed.

        Returns:
            The losses of each micro-batch, and the norm of the gradients before clipping.
        """
        self.align(weight > 0)
        count, parts = self.config.accumulation, []
        for number in range(1, count + 1):
            with self.local(final=number == count):
                losses = self.losses(next(batches).to(self.accelerator.device))
                total = losses.denoise.mean()
                if losses.alignment is not None:
                    total = total + weight * losses.alignment.mean()
                check(total)
                self.backward(total / count, final=number == count)
            parts.append(losses.detached())
        return parts, self.update(learning_rate)

    def backward(self, loss: Tensor, final: bool) -> None:
        """Add the gradients of ``loss``; processes exchange them after the ``final`` micro-batch only."""
        if self.sharded:
            self.student.set_requires_gradient_sync(final)
        self.accelerator.backward(loss)

    def local(self, final: bool) -> contextlib.AbstractContextManager:
        """Where a micro-batch that is not ``final`` runs, forward and backward, under DDP."""
        return contextlib.nullcontext() if final or self.sharded else self.accelerator.no_sync(self.model)

    def update(self, learning_rate: float) -> Tensor:
        """Clip, step, average; returns the norm of the gradients before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.clip or float("inf"))
        self._stepper.step()
        self._stepper.zero_grad()
        with torch.no_grad():
            averages, weights = _local(self.ema.parameters()), _local(self.student.backbone.parameters())
            torch._foreach_lerp_(averages, weights, 1 - self.config.ema)
        return norm.full_tensor() if _sharded(norm) else norm

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint: model, ema, and AdamW's by name, as ``blocks.0.attn.qkv.weight/exp_avg``.

        Every process has to ask, because shards are gathered.
        """
        return {
            part: {name: _whole(value) for name, value in tensors.items()} for part, tensors in self._named().items()
        }

    def not_finite(self) -> str | None:
        """The first tensor of ``parts`` that is not finite, as ``model backbone.blocks.0.attn.qkv.weight``, or None.

        Every process has to ask, because each looks at its own shards.
        """
        named = {
            f"{part} {name}": value
            for part, tensors in self._named().items()
            for name, value in tensors.items()
            if value.is_floating_point() and not name.endswith("/step")  # a count, which stays on the CPU
        }
        first = first_not_finite(_local(named.values())).to(self.accelerator.device)
        index = int(self.accelerator.gather(first.reshape(1)).min())
        return list(named)[index] if index < len(named) else None

    def _named(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of ``parts`` as this process holds them."""
        optimizer = {
            f"{name}/{key}": value
            for name, parameter in self.student.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {"model": self.student.state_dict(), "ema": self.ema.state_dict(), "optimizer": optimizer}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what ``parts`` gave, on any number of processes; ValueError for tensors of another model."""
        for module, part in ((self.student, "model"), (self.ema, "ema")):
            own = module.state_dict()
            _check_fit(part, own, parts[part])
            module.load_state_dict({name: _like(value, own.get(name)) for name, value in parts[part].items()})
        parameters = dict(self.student.named_parameters())
        _check_moments(parameters, parts["optimizer"])
        for name, value in parts["optimizer"].items():
            parameter, key = name.rsplit("/", 1)
            like = parameters[parameter] if key != "step" else None
            self.optimizer.state[parameters[parameter]][key] = _like(value, like).to(self.accelerator.device)


def accelerate(config: Config) -> Accelerator:
    """Accelerate's view of this process; ValueError if they are not as many as asked for or cannot share a batch."""
    training = config.training
    AcceleratorState._reset_state()  # it remembers the precision of an earlier run in this process
    accelerator = Accelerator(mixed_precision=training.precision, cpu=not torch.cuda.is_available())
    if training.precision == "fp16" and accelerator.scaler is None:
        raise ValueError("training.precision fp16 needs a GPU; on a CPU take bf16 or no")
    processes = accelerator.num_processes
    expected = int(os.environ.get("WORKBENCH_PROCESSES", processes))
    if processes != expected:
        raise ValueError(f"{expected} processes were asked for, but {processes} started")
    training.check_processes(processes)
    return accelerator


def build_optimizer(student: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW over every trained parameter, heads included, with the configuration's constants; fused kernels."""
    training = config.training
    trained = [p for p in student.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )


def _shard(module: nn.Module, blocks: Iterable[nn.Module], accelerator: Accelerator) -> None:
    """Split a module over all processes: each block is a group that is gathered when it runs, the rest another."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # The average has no backward pass after which its outermost group would be split again.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    if hasattr(module, "features"):
        register_fsdp_forward_method(module, "features")


def _sharded(tensor: Any) -> bool:
    """Whether FSDP shares it among processes; where it does, the module of its kind of tensors is loaded."""
    tensors = sys.modules.get("torch.distributed.tensor")  # most of a second to import, needed by nothing else
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def _local(parameters: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor."""
    return [p.to_local() if _sharded(p) else p for p in parameters]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().cpu() if _sharded(tensor) else tensor


def _check_fit(part: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    wrong = sorted(own.keys() ^ given.keys()) or [name for name in own if own[name].shape != given[name].shape]
    if wrong:
        found = tuple(given[wrong[0]].shape) if wrong[0] in given else "missing"
        wanted = tuple(own[wrong[0]].shape) if wrong[0] in own else "absent"
        raise ValueError(f"{part} of the checkpoint is of another model: {wrong[0]} is {found}; it must be {wanted}")


def _check_moments(parameters: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """ValueError for moments of other parameters: the optimizer's kernels would read beyond the end of the tensors."""
    kinds = {name.rpartition("/")[2] for name in given}
    for name, value in given.items():
        parameter, _, kind = name.rpartition("/")
        found, wanted = tuple(value.shape), "absent"
        if parameter in parameters:
            wanted = () if kind == "step" else tuple(parameters[parameter].shape)
        if found != wanted:
            raise ValueError(f"optimizer of the checkpoint is of another model: {name} is {found}; it must be {wanted}")
        lacking = sorted(other for other in kinds if f"{parameter}/{other}" not in given)
        if lacking:
            raise ValueError(f"optimizer of the checkpoint is damaged: {parameter} lacks {lacking[0]}")


def _like(value: Tensor, own: Tensor | None) -> Tensor:
    """``value`` split as ``own`` is."""
    if not _sharded(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)

"""Training state: the student, its EMA weights and its optimizer, replicated or sharded over the processes."""

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeGuard

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from workbench.backbones.base import TransformerBackbone
from workbench.config import Config
from workbench.diffusion.precision import HALF, reduced
from workbench.objectives.base import Batch
from workbench.runs.checkpoints import PARTS, size_of
from workbench.runs.finite import first_not_finite
from workbench.training.muon import MuonAdamW, matrices
from workbench.training.student import Losses, Student

_PORTION = 2**24  # bytes


class TrainState:
    """The student on its device with its EMA and optimizer; `step` trains it, `parts` returns its checkpoint.

    The tensors of a checkpoint do not depend on the number of processes. ``training.sharding`` "ddp" keeps a copy in
    each process, "fsdp" shards parameters, gradients, EMA and optimizer (PyTorch's fully_shard, one group per block).
    ``training.compile`` compiles each block of student and teacher: all blocks share one graph, so compilation takes
    seconds. ``config`` has no option that is still "auto".
    """

    def __init__(self, student: Student, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config.training, accelerator
        self.student = student.to(accelerator.device)
        self.ema = copy.deepcopy(self.student.backbone).eval().requires_grad_(False)
        self.sharded = self.config.sharding == "fsdp" and accelerator.num_processes > 1
        if self.config.compile:  # before sharding, as PyTorch documents: what is gathered is outside of the graphs
            teacher = student.objective.context.teacher
            for backbone in (self.student.backbone, teacher):
                if isinstance(backbone, TransformerBackbone):
                    for block in backbone.blocks:
                        block.compile()
        if self.sharded:
            _shard(self.student, self.student.backbone.blocks, accelerator, config.training.precision)
            _shard(self.ema, self.ema.blocks, accelerator, config.training.precision)
        # Listed once: walking the modules takes milliseconds.
        self._parameters = list(self.student.parameters())
        self._weights, self._averages = list(self.student.backbone.parameters()), list(self.ema.parameters())
        self.optimizer = build_optimizer(self.student, config)
        self._stepper = accelerator.prepare_optimizer(self.optimizer)
        self.aligned: bool | None = None
        self.before_update: Callable[[], None] = lambda: None  # called before weights, moments and EMA change

    def align(self, aligned: bool) -> None:
        """Switch the objective on or off: when off, DDP must not wait for the gradients of its heads."""
        if aligned == self.aligned:
            return
        self.aligned = aligned
        self.student.objective.requires_grad_(aligned)
        for parameter in self.student.objective.parameters():
            parameter.grad = None
        self.accelerator._models.clear()  # otherwise it keeps the old DDP buffers
        self.model = self.student if self.sharded else self.accelerator.prepare_model(self.student)

    def losses(self, batch: Batch) -> Losses:
        """Both losses of a batch, in the precision ``training.precision``."""
        # Not Accelerate's autocast, whose precision is global to the process.
        with reduced(self.config.precision, self.accelerator.device):
            return self.model(batch, self.aligned, self.ema)

    def step(
        self,
        batches: Iterator[Batch],
        weight: float,
        learning_rate: float,
        check: Callable[[Tensor], None] = lambda total: None,
    ) -> tuple[list[Losses], Tensor]:
        """One optimizer step: losses of the next `training.accumulation` micro-batches, clipping, update, EMA.

        Args:
            batches: This process's micro-batches, on any device.
            weight: Factor of the alignment loss; at 0 the objective is not evaluated.
            learning_rate: The learning rate.
            check: Called with the loss of each micro-batch before its gradients are computed.

        Returns:
            The losses of each micro-batch, and the gradient norm before clipping.
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
        """Accumulate the gradients of ``loss``; processes reduce them after the ``final`` micro-batch only."""
        if self.sharded:
            from torch.distributed.fsdp import FSDPModule

            assert isinstance(self.student, FSDPModule)
            self.student.set_requires_gradient_sync(final)
        self.accelerator.backward(loss)

    def local(self, final: bool) -> contextlib.AbstractContextManager:
        """Context for forward and backward of a micro-batch; DDP does not reduce gradients unless it is ``final``."""
        return contextlib.nullcontext() if final or self.sharded else self.accelerator.no_sync(self.model)

    def update(self, learning_rate: float) -> Tensor:
        """Clip gradients, step the optimizer, update the EMA; returns the gradient norm before clipping."""
        self.before_update()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = self.accelerator.clip_grad_norm_(self._parameters, self.config.clip or float("inf"))
        self._stepper.step()
        self._stepper.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(_local(self._averages), _local(self._weights), 1 - self.config.ema)
        return norm.full_tensor() if _is_sharded(norm) else norm

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint: "model", "ema" and "optimizer", as ``blocks.0.attn.qkv.weight/exp_avg``.

        Every process has to call it, because shards are gathered; the main process alone keeps them. Tensors that are
        not sharded are those of the training itself.
        """
        kept: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        for part, name, whole in self.gathered():
            if self.accelerator.is_main_process:
                kept[part][name] = whole.cpu() if self.sharded else whole
        return kept

    def gathered(self) -> Iterator[tuple[str, str, Tensor]]:
        """Part, name and whole tensor of all that `parts` has, gathered one after the other, in every process."""
        for part, tensors in self._named().items():
            for name, value in tensors.items():
                yield part, name, value.full_tensor() if _is_sharded(value) else value

    def bytes(self) -> int:
        """Size of a checkpoint in bytes."""
        return size_of(self._named())

    def not_finite(self) -> str | None:
        """Name of the first tensor that is not finite, as ``model backbone.blocks.0.attn.qkv.weight``, or None.

        Every process has to call it, because each checks its own shards.
        """
        named = {
            f"{part} {name}": value
            for part, tensors in self._named().items()
            for name, value in tensors.items()
            if value.is_floating_point() and not name.endswith("/step")  # a step count on the CPU
        }
        first = first_not_finite(_local(named.values())).to(self.accelerator.device)
        index = int(self.accelerator.gather(first.reshape(1)).min())
        return list(named)[index] if index < len(named) else None

    def _named(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of `parts`, sharded as in this process."""
        optimizer = {
            f"{name}/{key}": value
            for name, parameter in self.student.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {"model": self.student.state_dict(), "ema": self.ema.state_dict(), "optimizer": optimizer}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load the tensors of `parts`, on any number of processes; ValueError if they belong to another model.

        Shards are sent by the main process, tensor by tensor: in one order, whatever the order of a file is.
        """
        for module, part in ((self.student, "model"), (self.ema, "ema")):
            own = module.state_dict()
            _check_fit(part, own, parts[part])
            for names in _portions(own):
                tensors = {name: _like(parts[part][name], own[name]) for name in names}
                module.load_state_dict(tensors, strict=False)
        parameters = dict(self.student.named_parameters())
        _check_moments(self.student, self.optimizer, parts["optimizer"])
        for name in sorted(parts["optimizer"]):
            parameter, key = name.rsplit("/", 1)
            like, value = parameters[parameter] if key != "step" else None, parts["optimizer"][name]
            # A copy, as the given tensors may be mapped from a file.
            self.optimizer.state[parameters[parameter]][key] = _like(value, like).to(self.accelerator.device, copy=True)


def accelerate(config: Config) -> Accelerator:
    """Create the Accelerator of this process.

    Raises ValueError if the number of processes is not the requested one or does not divide the batch.
    """
    training = config.training
    AcceleratorState._reset_state()  # it keeps the precision of an earlier run in this process
    # Gradients are views into DDP's buckets instead of copies, and no buffer of ours ever changes.
    replicas = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    accelerator = Accelerator(
        mixed_precision=training.precision, cpu=not torch.cuda.is_available(), kwargs_handlers=[replicas]
    )
    if training.precision == "fp16" and accelerator.scaler is None:
        raise ValueError("training.precision fp16 needs a GPU; on a CPU take bf16 or no")
    processes = accelerator.num_processes
    expected = int(os.environ.get("WORKBENCH_PROCESSES", processes))
    if processes != expected:
        raise ValueError(f"{expected} processes were requested, but {processes} started")
    training.check_processes(processes)
    return accelerator


def build_optimizer(student: Student, config: Config) -> torch.optim.Optimizer:
    """The optimizer ``training.optimizer`` over all trainable parameters, the objective's heads included."""
    training = config.training
    trained = [p for p in student.parameters() if p.requires_grad]
    options: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    options["betas"] = (training.beta1, training.beta2)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(trained, fused=True, **options)
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"training.optimizer muon needs PyTorch 2.9 or newer; this is {torch.__version__}")
    by_muon = set(matrices(student.backbone))
    return MuonAdamW(
        [p for p in trained if p in by_muon],
        [p for p in trained if p not in by_muon],
        momentum=training.momentum,
        **options,
    )


def _shard(module: nn.Module, blocks: Iterable[nn.Module], accelerator: Accelerator, precision: str) -> None:
    """Shard a module over all processes: one group per block, gathered when it runs, and one for the rest.

    In half precision the weights of the blocks are gathered in it, which halves what is sent and kept; their gradients
    are summed over the processes in float32. Inputs are left to autocast, so that tokens stay in float32 between
    blocks, as without sharding; so do the embeddings and heads, the other group.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    policy = MixedPrecisionPolicy()
    if (dtype := HALF.get(precision)) is not None:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The EMA has no backward pass after which its outermost group would be resharded.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    if hasattr(module, "features"):
        register_fsdp_forward_method(module, "features")


class _Sharded(Protocol):
    """The part of PyTorch's DTensor that is used here."""

    device: torch.device
    device_mesh: Any
    placements: Any

    def to_local(self) -> Tensor: ...

    def full_tensor(self) -> Tensor: ...


def _is_sharded(tensor: Tensor | None) -> TypeGuard[_Sharded]:
    """Whether a tensor is a DTensor. FSDP imports the class, which takes most of a second; nothing else needs it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _local(parameters: Iterable[Tensor]) -> list[Tensor]:
    """This process's shard of each tensor."""
    return [p.to_local() if _is_sharded(p) else p for p in parameters]


def _portions(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Names of tensors that are loaded together, about 16 MB: all at once would be in memory twice."""
    names, size = [], 0
    for name, tensor in tensors.items():
        names.append(name)
        size += tensor.numel() * tensor.element_size()
        if size >= _PORTION:
            yield names
            names, size = [], 0
    yield names


def _check_fit(part: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    wrong = sorted(own.keys() ^ given.keys()) or [name for name in own if own[name].shape != given[name].shape]
    if wrong:
        shape = tuple(given[wrong[0]].shape) if wrong[0] in given else "missing"
        expected = tuple(own[wrong[0]].shape) if wrong[0] in own else "absent"
        raise ValueError(f"{part} of the checkpoint is of another model: {wrong[0]} is {shape}; it must be {expected}")


def _check_moments(student: nn.Module, optimizer: torch.optim.Optimizer, given: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the state of another model or optimizer: kernels would read past the end of the tensors."""
    names = {parameter: name for name, parameter in student.named_parameters()}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            shape = tuple(parameter.shape)
            muon = {"momentum_buffer": shape}
            adamw = {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
            shapes[names[parameter]] = muon if "momentum" in group else adamw
    for name, value in given.items():
        parameter, _, kind = name.rpartition("/")
        shape, expected = tuple(value.shape), shapes.get(parameter, {}).get(kind, "absent")
        if shape != expected:
            raise ValueError(
                f"optimizer of the checkpoint is of another model: {name} is {shape}; it must be {expected}"
            )
        lacking = sorted(other for other in shapes[parameter] if f"{parameter}/{other}" not in given)
        if lacking:
            raise ValueError(f"optimizer of the checkpoint is damaged: {parameter} lacks {lacking[0]}")


def _like(value: Tensor, own: Tensor | None) -> Tensor:
    """``value`` sharded as ``own`` is."""
    if not _is_sharded(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)

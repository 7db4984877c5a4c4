"""The records of a configuration: what can be set, with a reason beside each default."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from workbench.config.checks import coerce
from workbench.config.ranges import Count, FromStep, NotNegative, Positive, Range, Seed, Share, Steps, shown

_NAME_BYTES = 240  # of a folder's 255, with a hyphen and eight digits of the fingerprint
_BelowOne = Annotated[float, Range(at_least=0, below=1)]
_Channels = Annotated[int, Range(at_least=1, at_most=65_536)]


@cache
def record_options(kind: type) -> dict[str, Any]:
    """The options of a record with their types and ranges."""
    return typing.get_type_hints(kind, include_extras=True)


@dataclass(frozen=True)
class DataConfig:
    """Which images. ``size`` and ``crop`` matter for folders and archives only; the other sets have one size."""

    name: str = "fashion-mnist"
    source: str = "auto"  # fashion-mnist: embedded subset, full set, or the full set when there is one
    path: str | None = None
    size: Annotated[int, Range(at_least=1, at_most=8192)] = 256
    crop: Literal["adm", "none"] = "adm"
    limit: Count | None = None  # so many images: the first, or evenly spread where they are listed class by class
    flip: bool = False  # mirrored images too, each drawn half the time: SiT and LightningDiT do, REPA's family not
    precision: Literal["float32", "float16"] = "float32"  # of stored latents; half as much disk is half as exact


@dataclass(frozen=True)
class CodecConfig:
    """Pixels to latents and back: a name of `data.codecs.load_codec`, or a folder with an autoencoder's weights."""

    name: str = "kl-f4"


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise path and what is drawn for each training sample."""

    path: Literal["linear", "cosine"] = "linear"
    time: Literal["uniform", "lognormal"] = "uniform"
    label_dropout: _BelowOne = 0.1  # share of samples that see the null class (SiT, REPA and the paper)
    cosine_weight: NotNegative = 0.0  # of LightningDiT's 1 - cos(v_hat, v) along the channels; its own default is 1


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation recipe; defaults are those of SiT (methods of Table 1)."""

    steps: Steps = 400_000
    batch: Annotated[int, Range(at_least=1, at_most=10**6)] = 256  # over all processes and accumulation steps
    accumulation: Annotated[int, Range(at_least=1, at_most=10**6)] = 1
    learning_rate: Positive = 1e-4
    warmup_steps: FromStep = 0  # the published recipes use none
    beta1: _BelowOne = 0.9
    beta2: _BelowOne = 0.999
    weight_decay: NotNegative = 0.0
    clip: Positive | None = 1.0  # REPA and Self-Transcendence; SiT itself does not clip
    ema: _BelowOne = 0.9999
    precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    tf32: bool = True  # single-precision products on a GPU in TF32, as every published code has it
    sharding: Literal["ddp", "fsdp"] = "ddp"  # a copy in each process, or a share of parameters and optimizer
    seed: Seed = 0
    log_every: Steps = 100
    checkpoint_every: Steps = 10_000
    keep: Count = 2  # newest checkpoints that can be resumed from
    milestone_every: Steps | None = 50_000  # checkpoints whose weights are kept for ever, for looking at
    tracker: Literal["none", "tensorboard"] = "none"  # records also go to RUN/tensorboard

    def check_processes(self, processes: int) -> None:
        """ValueError for a number of processes that cannot share the batch."""
        if processes < 1:
            raise ValueError(f"processes must be at least 1; got {processes}")
        if self.batch % (processes * self.accumulation):
            raise ValueError(
                f"training.batch {self.batch} cannot be shared by {processes} processes with "
                f"training.accumulation {self.accumulation}"
            )


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn when the run is scored."""

    sampler: Literal["euler", "heun", "euler-maruyama"] = "euler-maruyama"
    steps: Annotated[int, Range(at_least=1, at_most=10**6)] = 250
    last_step: Annotated[float, Range(above=0, below=1)] = 0.04
    shift: Positive = 1.0  # LightningDiT's timestep shift: below 1 spends more steps near noise
    guidance_scale: NotNegative = 1.0
    guidance_low: Share = 0.0
    guidance_high: Share = 1.0
    guidance_channels: _Channels | None = None  # 3 guides the first three channels only, as original SiT
    weights: Literal["ema", "raw"] = "ema"
    count: Count = 50_000
    # Equal counts, as LDM- and MAR-type code has them; DiT, SiT and REPA draw each label at random, and their scores
    # differ (LDM #262: its published FID needs 50 images a class).
    labels: Literal["balanced", "random"] = "balanced"
    seed: Seed = 0


@dataclass(frozen=True)
class Plugin:
    """A backbone or an objective: the name of its file and every option of its constructor."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """Everything that decides what a training run computes, and how it is scored by default."""

    name: str = "run"
    recipe: Literal["paper", "released"] | None = None
    data: DataConfig = DataConfig()
    codec: CodecConfig = CodecConfig()
    backbone: Plugin = Plugin("sit")
    diffusion: DiffusionConfig = DiffusionConfig()
    objective: Plugin = Plugin("denoise")
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        """Every value again, for a record may be made without `from_dict`, and what one range alone cannot say."""
        for section in ("data", "codec", "diffusion", "training", "sampling"):
            record = getattr(self, section)
            for key, hint in record_options(type(record)).items():
                coerce(f"{section}.{key}", getattr(record, key), hint)
        if len(self.name.encode()) > _NAME_BYTES:
            raise ValueError(f"name is longer than {_NAME_BYTES} bytes, which no folder could have: {shown(self.name)}")
        training, sampling = self.training, self.sampling
        if training.batch % training.accumulation:
            raise ValueError(
                f"training.batch {training.batch} is not divisible by training.accumulation {training.accumulation}"
            )
        if sampling.guidance_low > sampling.guidance_high:
            raise ValueError(
                f"sampling.guidance_low {sampling.guidance_low} must be at most "
                f"sampling.guidance_high {sampling.guidance_high}"
            )

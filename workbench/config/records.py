"""The records of a configuration: what can be set, with a reason beside each default."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class DataConfig:
    """Which images. ``size`` and ``crop`` matter for folders and archives only; the other sets have one size."""

    name: str = "fashion-mnist"
    source: str = "auto"  # fashion-mnist: embedded subset, full set, or the full set when there is one
    path: str | None = None
    size: int = 256
    crop: Literal["adm", "none"] = "adm"
    limit: int | None = None  # so many images: the first, or evenly spread where they are listed class by class
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
    label_dropout: float = 0.1  # share of samples that see the null class (SiT, REPA and the paper)
    cosine_weight: float = 0.0  # of LightningDiT's 1 - cos(v_hat, v) along the channels; its own default is 1


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation recipe; defaults are those of SiT (methods of Table 1)."""

    steps: int = 400_000
    batch: int = 256  # over all processes and accumulation steps
    accumulation: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 0  # the published recipes use none
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip: float | None = 1.0  # REPA and Self-Transcendence; SiT itself does not clip
    ema: float = 0.9999
    precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    tf32: bool = True  # single-precision products on a GPU in TF32, as every published code has it
    sharding: Literal["ddp", "fsdp"] = "ddp"  # a copy in each process, or a share of parameters and optimizer
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 10_000
    keep: int = 2  # newest checkpoints that can be resumed from
    milestone_every: int | None = 50_000  # checkpoints whose weights are kept for ever, for looking at
    tracker: Literal["none", "tensorboard"] = "none"  # records also go to RUN/tensorboard


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn when the run is scored."""

    sampler: Literal["euler", "heun", "euler-maruyama"] = "euler-maruyama"
    steps: int = 250
    last_step: float = 0.04
    shift: float = 1.0  # LightningDiT's timestep shift: below 1 spends more steps near noise
    guidance_scale: float = 1.0
    guidance_low: float = 0.0
    guidance_high: float = 1.0
    guidance_channels: int | None = None  # 3 guides the first three channels only, as original SiT
    weights: Literal["ema", "raw"] = "ema"
    count: int = 50_000
    # Equal counts, as LDM- and MAR-type code has them; DiT, SiT and REPA draw each label at random, and their scores
    # differ (LDM #262: its published FID needs 50 images a class).
    labels: Literal["balanced", "random"] = "balanced"
    seed: int = 0


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
        training = self.training
        for key in ("steps", "batch", "accumulation", "log_every", "checkpoint_every", "keep"):
            if getattr(training, key) < 1:
                raise ValueError(f"training.{key} must be at least 1; got {getattr(training, key)}")
        for key in ("learning_rate", "clip", "milestone_every"):
            value = getattr(training, key)
            if value is not None and value <= 0:
                raise ValueError(f"training.{key} must be above 0; got {value}")
        for key in ("beta1", "beta2", "ema"):
            if not 0 <= getattr(training, key) < 1:
                raise ValueError(f"training.{key} must be in [0, 1); got {getattr(training, key)}")
        if self.sampling.count < 1:
            raise ValueError(f"sampling.count must be at least 1; got {self.sampling.count}")
        if self.data.limit is not None and self.data.limit < 1:
            raise ValueError(f"data.limit must be at least 1; got {self.data.limit}")
        if training.batch % training.accumulation:
            raise ValueError(
                f"training.batch {training.batch} is not divisible by training.accumulation {training.accumulation}"
            )
        if not 0 <= self.diffusion.label_dropout < 1:
            raise ValueError(f"diffusion.label_dropout must be in [0, 1); got {self.diffusion.label_dropout}")

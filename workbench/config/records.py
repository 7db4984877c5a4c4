"""The dataclasses of a configuration: all options, with the reason for each default."""

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from workbench.config.checks import coerce
from workbench.config.ranges import Count, FromStep, NotNegative, Positive, Range, Seed, Share, Steps, shown

_NAME_BYTES = 240  # a folder name has at most 255, including a hyphen and eight digits of the fingerprint
_BelowOne = Annotated[float, Range(at_least=0, below=1)]
_Channels = Annotated[int, Range(at_least=1, at_most=65_536)]


@cache
def record_options(kind: type) -> dict[str, Any]:
    """Options of a configuration dataclass, with types and ranges."""
    return typing.get_type_hints(kind, include_extras=True)


@dataclass(frozen=True)
class DataConfig:
    """The training images. ``size`` and ``crop`` apply to folders and archives, ``size`` also to scenes (32 or 64)."""

    name: str = "fashion-mnist"
    source: str = (
        "auto"  # fashion-mnist and scenes: "embedded" subset, "full" set, or "auto": the full set if available
    )
    path: str | None = None
    masks: str | None = None  # image-folder: a folder with MASKS/same/path.png for each image, white on the object
    size: Annotated[int, Range(at_least=1, at_most=8192)] = 256
    crop: Literal["adm", "none"] = "adm"
    limit: Count | None = None  # maximum number of images (the first n; evenly spaced if sorted by class)
    flip: bool = False  # random horizontal flips, as in SiT and LightningDiT but not in REPA and its successors
    precision: Literal["float32", "float16"] = "float32"  # of stored latents


@dataclass(frozen=True)
class VaeConfig:
    """The autoencoder between pixels and latents: a name in `data.vae.load_vae`, or a folder with weights."""

    name: str = "kl-f4"


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise path and the random draws of each training sample."""

    path: Literal["linear", "cosine"] = "linear"
    time: Literal["uniform", "lognormal"] = "uniform"
    label_dropout: _BelowOne = 0.1  # fraction of samples trained with the null class (SiT, REPA and the paper)
    cosine_weight: NotNegative = 0.0  # weight of LightningDiT's 1 - cos(v_hat, v) over channels; its own default is 1


@dataclass(frozen=True)
class TrainingConfig:
    """Optimization; defaults are those of SiT (methods of Table 1)."""

    steps: Steps = 400_000
    batch: Annotated[int, Range(at_least=1, at_most=10**6)] = 256  # over all processes and accumulation steps
    accumulation: Annotated[int, Range(at_least=1, at_most=10**6)] = 1
    learning_rate: Positive = 1e-4
    warmup_steps: FromStep = 0  # the published recipes use none
    # muon: PyTorch's Muon for the matrices of the blocks, AdamW for all other weights, at the same learning rate
    optimizer: Literal["adamw", "muon"] = "adamw"
    momentum: _BelowOne = 0.95  # of Muon
    beta1: _BelowOne = 0.9  # of AdamW, as beta2
    beta2: _BelowOne = 0.999
    weight_decay: NotNegative = 0.0
    clip: Positive | None = 1.0  # REPA and Self-Transcendence; SiT itself does not clip
    ema: _BelowOne = 0.9999
    # auto: bf16 where the GPU or the processor multiplies matrices in bfloat16; decided and recorded when it starts
    precision: Literal["no", "fp16", "bf16", "auto"] = "no"
    # the blocks; auto: in a training of 200 steps or more where a compiler is installed, decided as precision is
    compile: bool | Literal["auto"] = False
    tf32: bool = True  # float32 matrix products on a GPU in TF32, as in all published code
    sharding: Literal["ddp", "fsdp"] = "ddp"  # full replicas, or parameters and optimizer sharded over processes
    seed: Seed = 0
    log_every: Steps = 100
    checkpoint_every: Steps = 10_000
    keep: Count = 2  # number of newest checkpoints that are kept complete, for resuming
    milestone_every: Steps | None = 50_000  # the weights of these checkpoints are kept permanently
    # where records go, beside metrics.jsonl: tensorboard writes to RUN/tensorboard, the others need their own package
    tracker: Literal[
        "none", "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
    ] = "none"

    def check_processes(self, processes: int) -> None:
        """ValueError for a number of processes that cannot share the batch."""
        if processes < 1:
            raise ValueError(f"processes must be at least 1; got {processes}")
        if self.batch % (processes * self.accumulation):
            raise ValueError(
                f"training.batch {self.batch} cannot be divided among {processes} processes with "
                f"training.accumulation {self.accumulation}"
            )


@dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled when the run is scored."""

    sampler: Literal["euler", "heun", "euler-maruyama"] = "euler-maruyama"
    steps: Annotated[int, Range(at_least=1, at_most=10**6)] = 250
    last_step: Annotated[float, Range(above=0, below=1)] = 0.04
    shift: Positive = 1.0  # LightningDiT's timestep shift: below 1, more steps are near noise
    guidance_scale: NotNegative = 1.0
    guidance_low: Share = 0.0
    guidance_high: Share = 1.0
    guidance_channels: _Channels | None = None  # 3 guides the first three channels only, as in the original SiT
    weights: Literal["ema", "raw"] = "ema"
    count: Count = 50_000
    # "balanced" has equal counts per class, as LDM and MAR; DiT, SiT and REPA draw labels at random. Scores differ
    # (LDM issue #262: its published FID needs 50 images per class).
    labels: Literal["balanced", "random"] = "balanced"
    seed: Seed = 0
    # of the network; auto: bf16 where the machine multiplies matrices in it, decided and recorded with the scores; no
    # is float32, with TF32 on a GPU as published code samples (unless training.tf32=false)
    precision: Literal["no", "bf16", "auto"] = "no"

    def described(self) -> dict[str, Any]:
        """All options as they are stored with samples and scores; ``precision`` unless it is "no", as in older ones."""
        options = asdict(self)
        if self.precision == "no":
            del options["precision"]
        return options


@dataclass(frozen=True)
class Plugin:
    """A backbone or an objective: its name and all options of its constructor."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """The complete configuration of a training run, and how it is scored by default."""

    name: str = "run"
    recipe: Literal["paper", "released"] | None = None
    data: DataConfig = DataConfig()
    vae: VaeConfig = VaeConfig()
    backbone: Plugin = Plugin("sit")
    diffusion: DiffusionConfig = DiffusionConfig()
    objective: Plugin = Plugin("denoise")
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self) -> None:
        """Check all values, as a record may be created without `from_dict`, and conditions on several options."""
        for section in ("data", "vae", "diffusion", "training", "sampling"):
            record = getattr(self, section)
            kind: Any = type(record)
            for key, hint in record_options(kind).items():
                coerce(f"{section}.{key}", getattr(record, key), hint)
        if len(self.name.encode()) > _NAME_BYTES:
            raise ValueError(f"name is longer than {_NAME_BYTES} bytes, the limit for a folder: {shown(self.name)}")
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

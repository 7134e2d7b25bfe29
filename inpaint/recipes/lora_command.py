"""What the commands share that train a LoRA and call some settings as other trainers do: all that is called alike."""

from dataclasses import dataclass, field
from typing import Any

from inpaint.data.bank import Bank
from inpaint.diffusion.objective import LossSettings
from inpaint.train.encoding import EncodingSettings, Latents
from inpaint.train.settings import Offload, Precision, TrainSettings, ValidationSettings

_OF_TRAINING = (
    "seed",
    "max_micro_batch",
    "gradient_checkpointing",
    "ema_halflife",
    "workers",
    "zero_stage",
    "offload",
)
_OF_THE_RUN = ("max_bad_fraction", "kohya", "card_samples", "bank", "latents", "encoding", "loss", "validation")


@dataclass(frozen=True, kw_only=True)
class LoraCommand:
    """The settings of these names, whose meaning and place in a recipe are the same for all."""

    seed: int = 0
    mixed_precision: Precision = Precision.BF16
    """Compute type of the forward and backward."""
    max_micro_batch: int = 4
    """Most samples per forward on one worker; what remains of the batch is accumulated."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward: less memory, about a third more time."""
    ema_halflife: float | None = None
    """Half-life, in samples, of a moving average of the LoRA, which is then exported; unset: none is kept."""
    workers: int | tuple[int, int] = (1, 8)
    """Of one training: as many of (fewest, most) as the cluster has GPUs for; one number is exactly that many."""
    zero_stage: int = 1
    """DeepSpeed ZeRO: 0 nothing sharded, 1 optimizer states, 2 and gradients, 3 and parameters."""
    offload: Offload = Offload.NONE
    """What ZeRO keeps in the CPUs' memory, for small cards: `optimizer` its states, `parameters` (with `zero_stage` 3)
    the base's weights, too."""
    max_bad_fraction: float = 0.05
    """The job stops before training when more of the images than this cannot be used."""
    kohya: bool = False
    """Write the adapter for A1111 and ComfyUI, too: one file in its folder `kohya`."""
    card_samples: int = 4
    """Pictures for an adapter's model card; 0: none."""
    bank: Bank = Bank()
    """The holes, crops and mirrorings of each image that samples draw among."""
    latents: Latents = Latents.ONLINE
    """Where latents come from: a run learns the same with each."""
    encoding: EncodingSettings = EncodingSettings()
    """Of `latents` cached and streamed."""
    loss: LossSettings = LossSettings()
    validation: ValidationSettings = field(default_factory=lambda: ValidationSettings(samples=16))

    def run_settings(self) -> dict[str, Any]:
        """Those of the recipe itself."""
        return {name: getattr(self, name) for name in _OF_THE_RUN}

    def train_settings(self, **own: Any) -> TrainSettings:
        """How it is trained; `own`: what a command calls otherwise."""
        shared = {name: getattr(self, name) for name in _OF_TRAINING}
        return TrainSettings(precision=self.mixed_precision, **shared, **own)

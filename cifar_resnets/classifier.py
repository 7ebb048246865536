"""The one LightningModule: any network, its loss, metrics, optimizer and schedule."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from cifar_resnets import __version__
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import ConfigurationError, DivergenceError, require
from cifar_resnets.evaluation.metrics import Evaluation, EvaluationMetrics, TrainingMetrics
from cifar_resnets.evaluation.tta import average_views, check_views
from cifar_resnets.models.init import init_dirac, whiten_first_layer
from cifar_resnets.models.registry import create_network, try_network
from cifar_resnets.models.weights import load_weights
from cifar_resnets.training.fast_loop import use_loop
from cifar_resnets.training.optimizers import build_optimizer
from cifar_resnets.training.run_length import run_length
from cifar_resnets.training.schedules import Constant, Cosine, Schedule
from cifar_resnets.training.seeding import seed_noise

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
NUM_WHITENED = 2000  # images by which the first layer is whitened
_require = functools.partial(require, "model")


class Evaluator(pl.LightningModule):
    """Evaluates an image classifier, exactly for any number of ranks.

    Batches are (images, labels): images float (n, 3, h, w), normalised; labels int64 (n,).

    Args:
        network: makes logits (n, num_classes) of images.
        class_names: names of the classes, in the order of the labels.
        tta: views of test-time augmentation, see `average_views`.
    """

    def __init__(self, network: nn.Module, class_names: Sequence[str], tta: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        self.class_names = list(class_names)
        self.tta = list(tta)
        self.val_metrics = EvaluationMetrics(len(self.class_names))
        self.test_metrics = EvaluationMetrics(len(self.class_names))
        self.evaluations: dict[str, Evaluation] = {}  # by stage, val or test: the newest
        self.val_acc: float | None = None  # of the newest validation, also of one before the run was resumed

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, num_classes) of normalised images (n, 3, h, w)."""
        logits: Tensor = self.network(images)
        return logits

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Takes in a validation batch; its logits (n, num_classes) go to the callbacks."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Takes in a test batch; its logits (n, num_classes) go to the callbacks."""
        return self._evaluate(batch, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation figures."""
        self._evaluated("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Logs the test figures."""
        self._evaluated("test", self.test_metrics)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Probabilities (n, num_classes) of a batch."""
        logits: Tensor = self(batch[0])
        return logits.float().softmax(dim=1)

    def _evaluate(self, batch: tuple[Tensor, Tensor], metrics: EvaluationMetrics) -> Tensor:
        images, labels = batch
        logits: Tensor = self(images)
        metrics.update(logits, labels, average_views(self, images, logits, self.tta) if self.tta else None)
        return logits

    def _evaluated(self, stage: str, metrics: EvaluationMetrics) -> None:
        self.evaluations[stage] = metrics.pop()
        if stage == "val":
            self.val_acc = self.evaluations[stage].accuracy
        self._log(self.evaluations[stage].scalars(stage, self.class_names))

    def _log(self, values: Mapping[str, float | Tensor]) -> None:
        for name, value in values.items():
            self.log(name, value)


class ImageClassifier(Evaluator):
    """Trains and evaluates an image classifier.

    Batches are (images, labels): images float (n, 3, h, w), normalised; labels int64 (n,), or probabilities
    (n, num_classes) after mixup. Everything is logged once an epoch, so that a step costs no device synchronisation.

    Args:
        class_names: names of the classes, in the order of the labels; from the data source on the command line.
        network: a name of timm's registry: `cifar_resnet20`, ..., or any of timm's own.
        network_args: more arguments of the network, for example `{shortcut: B}`.
        weights: file with weights to start from: a checkpoint of ours, a state dict, or a public trainer's; see
            `load_weights`. Not read when a run is resumed.
        init: what the weights start from besides: `dirac`, convolutions that hand on their channels, see `init_dirac`;
            `whiten`, a first layer that whitens the training images and stays so, see `whiten_first_layer`.
        label_smoothing: part of each label that is spread over all classes, from 0 to below 1.
        optimizer: a class of torch.optim (`SGD`, `AdamW`) or a name of timm's (`lamb`); SGD has Nesterov momentum 0.9.
        lr: base learning rate of the schedule; the peak of a one-cycle.
        weight_decay: weight decay.
        decay_norm_and_bias: decay all parameters, as He et al.; otherwise leave out biases and batch normalisation.
        norm_bias_scale: how many times as fast the biases of normalisation layers learn, see `parameter_groups`.
        optimizer_args: more arguments of the optimizer, for example `{nesterov: false}`.
        schedule: OneCycle, Step, Cosine or Constant.
        channels_last: keep weights in the memory format that is fastest for convolutions.
        compile: mode of `torch.compile`, by which network and loss of a training step are compiled: `default`;
            `reduce-overhead`, on a GPU in CUDA graphs; `max-autotune`, which tries many kernels. Evaluation is not.
        fast: train by a loop that calls only what somebody listens to, see `lean_loop`; all else stays as it is.
        tta: test-time augmentation, `mirror` and `shift1` (or more pixels): evaluations then give two accuracies, that
            of the images and, as `acc_tta`, that of the logits averaged over views of them, see `average_views`.

    Raises:
        ConfigurationError: for an unknown network or a value out of range.
        CheckpointError: for weights that cannot be read, or are not the network's.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        network: str = "cifar_resnet20",
        network_args: dict[str, Any] | None = None,
        weights: str | None = None,
        init: list[Literal["dirac", "whiten"]] | None = None,
        label_smoothing: float = 0.0,
        optimizer: str = "SGD",
        lr: float = 0.1,
        weight_decay: float = 5e-4,
        decay_norm_and_bias: bool = True,
        norm_bias_scale: float = 1.0,
        optimizer_args: dict[str, Any] | None = None,
        schedule: Schedule | None = None,
        channels_last: bool = True,
        compile: CompileMode | None = None,  # noqa: A002  as torch has it
        fast: bool = False,
        tta: list[str] | None = None,
    ) -> None:
        _require(0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "a number from 0 to below 1")
        _require(0 < lr < math.inf, "lr", lr, "a number above 0")
        _require(weight_decay >= 0, "weight_decay", weight_decay, "0 or more")
        _require(0 < norm_bias_scale < math.inf, "norm_bias_scale", norm_bias_scale, "a number above 0")
        check_views(tta or ())
        if weights is not None and init:
            raise ConfigurationError(f"model.init: {', '.join(init)} would change model.weights, leave one of them out")
        super().__init__(create_network(network, len(class_names), network_args), class_names, tta or ())
        if "dirac" in (init or ()):
            init_dirac(self.network)
        if weights is not None:
            load_weights(self.network, weights)
        if channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.label_smoothing = label_smoothing
        if isinstance(schedule, Mapping):  # from the hyperparameters of a checkpoint
            schedule = Schedule.from_config(schedule)
        self.schedule = schedule or Cosine()
        hparams = {
            "class_names": self.class_names,
            "network": network,
            "network_args": network_args or {},
            "init": list(init or ()),
            "label_smoothing": label_smoothing,
            "optimizer": optimizer,
            "lr": lr,
            "weight_decay": weight_decay,
            "decay_norm_and_bias": decay_norm_and_bias,
            "norm_bias_scale": norm_bias_scale,
            "optimizer_args": optimizer_args or {},
            "schedule": self.schedule.to_config(),
            "channels_last": channels_last,
            "compile": compile,
            "fast": fast,
            "tta": self.tta,
        }
        # given as primitives, so that a checkpoint holds no code; they are logged where the final metrics are known;
        # `weights` is not among them: a checkpoint stands alone, and that file may be gone when it is tested
        self.save_hyperparameters(hparams, logger=False)
        self.configured = {"lr": lr, "schedule": hparams["schedule"]}  # LRFinder may put others into the hparams
        self.train_metrics = TrainingMetrics(len(self.class_names))
        self._logits_and_loss = torch.compile(logits_and_loss, mode=compile) if compile else logits_and_loss
        self.step_rates: dict[str, float] = {}  # of the newest step: learning rate and momentum
        self.step_loss = torch.tensor(0.0)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats of logits (n, num_classes) and labels, (n,) or (n, num_classes)."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def setup(self, stage: str) -> None:
        """Tries the network on an image, before anything is trained, whitens its first layer if it is to, picks a loop.

        Raises:
            ConfigurationError: when it, or test-time augmentation, does not take images of the data's size, or there is
                nothing to whiten.
        """
        use_loop(self.trainer, lean=self.hparams["fast"])
        data = getattr(self.trainer, "datamodule", None)
        whitens = stage == "fit" and "whiten" in self.hparams["init"]
        if isinstance(data, ImageDataModule):
            try_network(self.network, self.hparams["network"], data.image_shape)
            check_views(self.tta, data.image_shape)
            if whitens:
                whiten_first_layer(self.network, data.sample(NUM_WHITENED))
        else:
            _require(not whitens, "init", "whiten", "dirac alone, or an ImageDataModule to the Trainer")

    # Training.

    def on_train_start(self) -> None:
        """Refuses a cycle without its initial rate.

        Raises:
            ConfigurationError: when the rate was not found.
        """
        if self.wants_lr_min and not getattr(self.trainer, "fast_dev_run", False):
            raise ConfigurationError("model.schedule.lr_min: found takes trainer.callbacks LRFinder, or give a number")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Gives the network's random numbers to this batch alone."""
        seed = getattr(getattr(self.trainer, "datamodule", None), "seed", 0)
        seed_noise(self.device, seed, self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images, labels = batch
        logits, loss = self._logits_and_loss(self, images, labels)
        self.step_loss = loss.detach()
        self.train_metrics.add(loss, logits, labels if labels.ndim == 1 else labels.argmax(dim=1))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Counts the batches of the step, and notes the rate and the momentum that it uses."""
        self.train_metrics.count()
        group = optimizer.param_groups[0]
        self.step_rates = {"lr": float(group["lr"])}
        if "momentum" in group or "betas" in group:
            self.step_rates["momentum"] = float(group["momentum"] if "momentum" in group else group["betas"][0])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Validates at the end of a run of `max_steps`, also within an epoch: Lightning would end it without."""
        if 0 <= self.trainer.max_steps <= self.global_step:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's training figures, with the rate of its last step."""
        if self.train_metrics.is_empty:  # all of its steps were skipped
            return
        self._check_training()
        loss, accuracy, of_classes = self.train_metrics.pop()
        per_class = {f"train_class_acc/{n}": a for n, a in zip(self.class_names, of_classes, strict=True)}
        self._log({"train/loss": loss, "train/acc": accuracy, **self.step_rates, **per_class})

    def on_validation_start(self) -> None:
        """Stops before a diverged network is validated."""
        if not self.train_metrics.is_empty:  # the sanity check comes before the first step
            self._check_training()

    def check_weights(self) -> None:
        """Stops a run whose last step, though its gradients were finite, has made weights that are not.

        Raises:
            DivergenceError: then.
        """
        self._require_finite("weights", torch.stack([p.isfinite().all() for p in self.network.parameters()]).all())

    def _check_training(self) -> None:
        # where no guard looks at each step: of a Trainer of one's own
        self._require_finite("training loss", self.train_metrics.compute()[0].isfinite())
        self.check_weights()

    def _require_finite(self, what: str, is_finite: Tensor) -> None:
        if not is_finite:
            raise DivergenceError(
                f"the {what} became infinite or NaN in epoch {self.current_epoch + 1}, at a learning rate of "
                f"{self.step_rates['lr']:.3g}: try a lower model.lr or a longer warm-up"
            )

    # Optimisation.

    def new_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer at the base rate `lr`, before any step. A subclass may give its groups rates of their own."""
        hparams = self.hparams
        return build_optimizer(
            self.network,
            hparams["optimizer"],
            hparams["lr"],
            hparams["weight_decay"],
            hparams["decay_norm_and_bias"],
            hparams["optimizer_args"],
            hparams["norm_bias_scale"],
            fused=self._fuses,
        )

    @property
    def _fuses(self) -> bool:
        # not where gradients are clipped: in mixed precision Lightning refuses that to optimizers that could be scaled
        clips = self._trainer is not None and self.trainer.gradient_clip_val is not None
        return not clips and all(parameter.is_cuda for parameter in self.network.parameters())

    def set_rates(self, lr: float, lr_min: float | None = None) -> None:
        """Takes rates that were found, as if they had been given: they count when the optimizer is configured next.

        Args:
            lr: base rate of the schedule, or the peak of a one-cycle.
            lr_min: what takes the place of `lr_min: found` in a one-cycle; its `div_factor` if not given.
        """
        self.hparams["lr"] = lr
        if self.wants_lr_min:
            self.schedule = dataclasses.replace(self.schedule, lr_min=lr_min)  # type: ignore[type-var]  # a dataclass
            self.hparams["schedule"] = self.schedule.to_config()

    @property
    def wants_lr_min(self) -> bool:
        """Whether the schedule's initial rate is still to be found."""
        return getattr(self.schedule, "lr_min", None) == "found"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with the schedule stepped after each of its steps."""
        optimizer = self.new_optimizer()
        # a dry run is shorter than any warm-up
        schedule = Constant() if getattr(self.trainer, "fast_dev_run", False) else self.schedule
        scheduler = schedule.build(optimizer, *run_length(self.trainer), lr=self.hparams["lr"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to test the network on the same data without any other file."""
        checkpoint["cifar_resnets_version"] = __version__
        if isinstance(data := getattr(self.trainer, "datamodule", None), ImageDataModule):
            checkpoint["data"] = data.describe()
        if self.val_acc is not None:
            checkpoint["val_acc"] = self.val_acc


def logits_and_loss(module: ImageClassifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What a training step computes of a batch."""
    logits = module(images)
    return logits, module.loss(logits, labels)

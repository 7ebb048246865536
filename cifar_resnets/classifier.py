"""The one LightningModule: an image classifier with its loss, metrics, optimizer and schedule.

One training step, in order. Lightning's training loop calls the parts, or with `fast` that of `training.fast_loop`;
with `trainer.accumulate_grad_batches`, steps 5 to 9 follow only every so many batches.

1. `data.loaders.TrainLoader` crops, flips and normalises a batch of the images in memory, and mixes it if configured.
2. `on_train_batch_start` unfreezes layers if it is time, and seeds dropout and stochastic depth (`seed_noise`).
3. `training_step` computes logits and loss (`logits_and_loss`) and hands them to the metrics (`TrainingMetrics.add`).
4. The loop sets the gradients to None and computes new ones (`backward`), which DDP averages over the ranks.
5. The callback `NonfiniteGuard` stops the run, or skips the step, if the loss or a gradient is infinite or NaN.
6. `on_before_optimizer_step` counts the batch in the metrics and notes the learning rate and the momentum.
7. The loop clips the gradients if `trainer.gradient_clip_val` is given.
8. The optimizer (`new_optimizer`) updates the weights.
9. The schedule (`configure_optimizers`) sets learning rate and momentum of the next step.
10. `on_train_batch_end` ends a run that has reached `trainer.max_steps`, with a validation.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from cifar_resnets import __version__
from cifar_resnets.data.datamodule import ImageDataModule
from cifar_resnets.errors import ConfigurationError, require
from cifar_resnets.evaluation.metrics import Evaluation, EvaluationMetrics, TrainingMetrics
from cifar_resnets.evaluation.tta import average_views, check_views
from cifar_resnets.models.init import NUM_WHITENED, initial_network, whiten_first_layer
from cifar_resnets.models.registry import try_network, without_weights
from cifar_resnets.training import losses
from cifar_resnets.training.fast_loop import use_loop
from cifar_resnets.training.freezing import Freezing
from cifar_resnets.training.optimizers import build_optimizer, check_rates, rates
from cifar_resnets.training.run_length import batch_weight, run_length
from cifar_resnets.training.schedules import Constant, Cosine, Schedule
from cifar_resnets.training.seeding import seed_noise

OPTIMIZER_ARGS = ("lr", "weight_decay", "decay_norm_and_bias", "optimizer_args", "norm_bias_scale", "layer_decay")
START = ("weights", "weights_strict", "pretrained")  # no hyperparameters


class ImageClassifier(pl.LightningModule):
    """Trains and evaluates an image classifier.

    Batches are (images, labels): images float (n, 3, h, w), normalised; labels int64 (n,), or probabilities
    (n, num_classes) after mixup. Everything is logged once an epoch, so that no step synchronises with the device.

    Args:
        class_names: names of the classes, in the order of the labels; by default those of the checkpoint or the data.
        network: a name of timm's registry, such as `cifar_resnet20`, or a function that builds one, as `mine:net`.
        network_args: more arguments of the network, for example `{shortcut: B}`.
        weights: file with weights to start from: a checkpoint of ours, a state dict, or a public trainer's; see
            `load_weights`. Not read when a run is resumed.
        weights_strict: refuse weights with a head of another number of classes, instead of leaving out the head.
        pretrained: start from timm's weights of this network, of its hub or the hub's cache.
        init: special initial weights: `dirac`, convolutions that pass their channels on, see `init_dirac`;
            `whiten`, a first layer that whitens the training images and is not trained, see `whiten_first_layer`.
        freeze: what is not trained: `backbone`, all but the classifier; `stem`, what comes before the first stage; or
            names of modules, as `[conv1, layer1]`. Their batch norms are in evaluation mode.
        unfreeze_epoch: number of epochs after which everything is trained; never if not given.
        label_smoothing: part of each label that is spread over all classes, from 0 to below 1.
        class_weights: weights of the classes in the training loss, of which only the ratios count: a number for each
            class, or `balanced`, in inverse proportion to its number of training images; see `losses.cross_entropy`.
        optimizer: a class of torch.optim (`SGD`, `AdamW`), a name of timm's (`lamb`), or the path of a class
            (`mine.MySGD`); SGD has Nesterov momentum 0.9.
        lr: base learning rate of the schedule; the peak of a one-cycle.
        weight_decay: weight decay.
        decay_norm_and_bias: decay all parameters, as He et al.; otherwise leave out biases and batch normalisation.
        norm_bias_scale: factor of the learning rate of the biases of normalisation layers, see `parameter_groups`.
        layer_decay: factor of the learning rate from each of timm's groups of layers to the one before, as 0.75.
        optimizer_args: more arguments of the optimizer, for example `{nesterov: false}`.
        schedule: OneCycle, Step, Cosine or Constant.
        channels_last: keep weights in the memory format that is fastest for convolutions.
        compile: mode of `torch.compile` for network and loss of a training step: `default`; `reduce-overhead`, with
            CUDA graphs on a GPU; `max-autotune`, which tries many kernels. Evaluation is not compiled.
        fast: train with a loop that skips hooks without a listener, see `fast_loop`; the results are the same.
        tta: test-time augmentation, `mirror` and `shift1` (or more pixels): evaluations then give two accuracies, that
            of the images and, as `acc_tta`, that of the logits averaged over views of them, see `average_views`.

    Raises:
        ConfigurationError: for an unknown network or a value out of range.
        CheckpointError: for weights that cannot be read, or are not the network's.
    """

    def __init__(
        self,
        class_names: Sequence[str | int] | None = None,
        network: str = "cifar_resnet20",
        network_args: dict[str, Any] | None = None,
        weights: str | None = None,
        weights_strict: bool = False,
        pretrained: bool = False,
        init: list[Literal["dirac", "whiten"]] | None = None,
        freeze: str | list[str] | None = None,
        unfreeze_epoch: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: losses.ClassWeights | None = None,
        optimizer: str = "SGD",
        lr: float = 0.1,
        weight_decay: float = 5e-4,
        decay_norm_and_bias: bool = True,
        norm_bias_scale: float = 1.0,
        layer_decay: float = 1.0,
        optimizer_args: dict[str, Any] | None = None,
        schedule: Schedule | None = None,
        channels_last: bool = True,
        compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None,  # noqa: A002  as torch has it
        fast: bool = False,
        tta: list[str] | None = None,
    ) -> None:
        require("model", bool(class_names), "class_names", class_names, "the names of the classes")
        check_rates(lr, weight_decay, norm_bias_scale, layer_decay)
        check_views(tta or ())
        class_weights = losses.checked_weights(class_weights, label_smoothing, len(class_names or ()))
        class_names, init, tta = list(map(str, class_names or ())), list(init or ()), list(tta or ())
        network_args, optimizer_args = network_args or {}, optimizer_args or {}
        # a checkpoint's hyperparameters hold its configuration
        schedule = Schedule.from_config(schedule) if isinstance(schedule, Mapping) else schedule or Cosine()
        arguments = locals()
        super().__init__()
        # primitives, so that a checkpoint holds no code; it has weights of its own
        hparams = {key: arguments[key] for key in inspect.signature(ImageClassifier).parameters if key not in START}
        hparams |= {"schedule": schedule.to_config(), "network_args": without_weights(network_args)}
        self.save_hyperparameters(hparams, logger=False)
        self.class_names: list[str] = hparams["class_names"]
        self.label_smoothing, self.schedule, self.tta, self.weights = label_smoothing, schedule, tta, weights
        self.class_weights: Tensor | None = None  # (num_classes,), of the training images of a fit
        start = (init, weights, weights_strict, pretrained)
        self.network, self.line_of_weights = initial_network(network, len(class_names), network_args, *start)
        if channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.freezing = Freezing(self.network, freeze, unfreeze_epoch)
        self._logits_and_loss = torch.compile(logits_and_loss, mode=compile) if compile else logits_and_loss
        self.train_metrics = TrainingMetrics(len(class_names))
        self.val_metrics, self.test_metrics = (EvaluationMetrics(len(class_names)) for _ in range(2))
        self.evaluations: dict[str, Evaluation] = {}  # the newest of each stage, val or test
        self.val_acc: float | None = None  # of the weights after `val_step`, also if the run was resumed since
        self.step_rates: dict[str, float] = {}  # learning rate and momentum of the newest step
        self.step_loss, self.step_weight, self.val_step = torch.tensor(0.0), 1.0, -1

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (n, num_classes) of normalised images (n, 3, h, w)."""
        logits: Tensor = self.network(images)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean loss in nats of logits (n, num_classes) and labels, (n,) or (n, num_classes)."""
        return losses.cross_entropy(logits, labels, self.label_smoothing, self.class_weights)

    def setup(self, stage: str) -> None:
        """Selects the loop, tries and whitens the network, scales the weights of the classes, and freezes layers."""
        use_loop(self.trainer, fast=self.hparams["fast"])
        data = getattr(self.trainer, "datamodule", None)
        whitens = stage == "fit" and "whiten" in self.hparams["init"]
        if isinstance(data, ImageDataModule):
            try_network(self.network, self.hparams["network"], data.image_shape, len(self.class_names))
            check_views(self.tta, data.image_shape)
            if whitens:
                whiten_first_layer(self.network, data.sample(NUM_WHITENED))
        else:
            require("model", not whitens, "init", "whiten", "dirac alone, or an ImageDataModule to the Trainer")
        if stage == "fit":
            frequencies, device = getattr(data, "class_frequencies", None), self.trainer.strategy.root_device
            self.class_weights = losses.fit_weights(self.hparams["class_weights"], frequencies, device)
            self.freezing.start(self.trainer)

    # Training.

    def on_train_start(self) -> None:
        """Raises ConfigurationError if no rate was found for `lr_min: found`."""
        if self.schedule.awaits_rate and not getattr(self.trainer, "fast_dev_run", False):
            raise ConfigurationError("model.schedule.lr_min: found takes trainer.callbacks LRFinder, or give a number")

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Sets the mode as `nn.Module.train`, but leaves batch norms of frozen layers in evaluation mode."""
        super().train(mode)
        self.freezing.set_modes()
        return self

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Unfreezes, seeds the random numbers of the network for this batch alone, and notes the factor of its loss."""
        self.freezing.follow(self.trainer)
        vars(self)["step_weight"] = batch_weight(self.trainer, batch_idx)
        seed = getattr(getattr(self.trainer, "datamodule", None), "seed", 0)
        seed_noise(self.device, seed, self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss of a batch."""
        images, labels = batch
        logits, loss = self._logits_and_loss(self, images, labels)
        vars(self)["step_loss"] = loss.detach()  # as `self.step_loss =`, without the microseconds of nn.Module
        self.train_metrics.add(loss, logits, labels if labels.ndim == 1 else labels.argmax(dim=1))
        return loss if self.step_weight == 1 else loss * self.step_weight

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Counts the batches of the step, and notes its learning rate and momentum."""
        self.train_metrics.count()
        vars(self)["step_rates"] = rates(optimizer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ends a run at `max_steps` with a validation, which Lightning leaves out within an epoch."""
        if 0 <= self.trainer.max_steps <= self.global_step:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Logs the training metrics of the epoch, with the learning rate and the momentum of its last step."""
        if self.train_metrics.is_empty:  # all of its steps were skipped
            return
        loss, accuracy, class_accuracy = self.train_metrics.pop()
        self._check_training(loss)
        per_class = {f"train_class_acc/{n}": a for n, a in zip(self.class_names, class_accuracy, strict=True)}
        self.log_dict({"train/loss": loss, "train/acc": accuracy, **self.step_rates, **per_class})

    def _check_training(self, loss: Tensor) -> None:  # for a Trainer without NonfiniteGuard, which checks each step
        losses.require_finite("training loss", loss.isfinite(), self.current_epoch, self.step_rates)
        losses.require_finite_weights(self.network, self.current_epoch, self.step_rates)

    # Evaluation.

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Adds a batch to the validation metrics, and returns its logits (n, num_classes) for the callbacks."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Adds a batch to the test metrics, and returns its logits (n, num_classes) for the callbacks."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the probabilities (n, num_classes) of a batch."""
        return torch.softmax(self(batch[0]).float(), dim=1)

    def on_validation_start(self) -> None:
        """Stops the run before a diverged network is validated."""
        if not self.train_metrics.is_empty:  # the sanity check comes before the first step
            self._check_training(self.train_metrics.figures()[0])

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        self._log_evaluation("val", self.val_metrics)
        self.val_acc, self.val_step = self.evaluations["val"].accuracy, self.global_step

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._log_evaluation("test", self.test_metrics)

    def _evaluate(self, batch: tuple[Tensor, Tensor], metrics: EvaluationMetrics) -> Tensor:
        images, labels = batch
        logits: Tensor = self(images)
        metrics.update(logits, labels, average_views(self, images, logits, self.tta) if self.tta else None)
        return logits

    def _log_evaluation(self, stage: str, metrics: EvaluationMetrics) -> None:
        self.evaluations[stage] = metrics.pop()
        self.log_dict(self.evaluations[stage].scalars(stage, self.class_names))

    # Optimisation.

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Builds the optimizer at the rate `lr`, also of frozen layers; a subclass may give groups other rates."""
        args = {name: self.hparams[name] for name in OPTIMIZER_ARGS}
        # in mixed precision Lightning clips no gradients of a fused optimizer
        fused = all(each.is_cuda for each in self.network.parameters()) and self.trainer.gradient_clip_val is None
        with self.freezing.lifted():
            return build_optimizer(self.network, self.hparams["optimizer"], **args, fused=fused)

    def set_rates(self, lr: float, lr_min: float | None = None) -> None:
        """Sets rates that were found, for the optimizer that is configured next.

        Args:
            lr: base rate of the schedule, or the peak of a one-cycle.
            lr_min: replaces `lr_min: found` of a one-cycle; if not given, its `div_factor` determines the rate.
        """
        self.hparams["lr"] = lr
        self.schedule = self.schedule.with_found(lr_min)
        self.hparams["schedule"] = self.schedule.to_config()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns the optimizer, with the schedule stepped after each of its steps."""
        optimizer = self.new_optimizer()
        schedule = Constant() if getattr(self.trainer, "fast_dev_run", False) else self.schedule  # too short for any
        scheduler = schedule.build(optimizer, *run_length(self.trainer), lr=self.hparams["lr"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the version, the description of the data and, if these weights were validated, their accuracy."""
        checkpoint["cifar_resnets_version"] = __version__
        if isinstance(data := getattr(self.trainer, "datamodule", None), ImageDataModule):
            checkpoint["data"] = data.describe()
        if self.val_acc is not None and self.val_step == self.global_step:
            checkpoint["val_acc"] = self.val_acc


def logits_and_loss(module: ImageClassifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Computes logits (n, num_classes) and mean loss of a batch."""
    logits = module(images)
    return logits, module.loss(logits, labels)

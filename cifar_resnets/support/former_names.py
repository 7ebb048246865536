"""Class paths of former versions, which stand in recipes and checkpoints, and where the classes are now."""

from typing import Any

NOW = {
    "cifar_resnets.schedules.OneCycle": "cifar_resnets.training.schedules.OneCycle",
    "cifar_resnets.schedules.Step": "cifar_resnets.training.schedules.Step",
    "cifar_resnets.schedules.Cosine": "cifar_resnets.training.schedules.Cosine",
    "cifar_resnets.schedules.Constant": "cifar_resnets.training.schedules.Constant",
    "cifar_resnets.callbacks.console.EpochBar": "cifar_resnets.callbacks.progress.EpochBar",
    "cifar_resnets.callbacks.console.EpochLines": "cifar_resnets.callbacks.progress.EpochLines",
    "cifar_resnets.reports.writer.ReportWriter": "cifar_resnets.callbacks.report_writer.ReportWriter",
    "cifar_resnets.runs.batch_norm.AgreeingBuffers": "cifar_resnets.callbacks.sync_buffers.AgreeingBuffers",
    "cifar_resnets.runs.batch_norm.BatchNormSync": "cifar_resnets.distributed.sync_batchnorm.BatchNormSync",
    "cifar_resnets.runs.checkpoint_file.AtomicCheckpointIO": "cifar_resnets.runs.checkpoint_io.AtomicCheckpointIO",
    "cifar_resnets.runs.continuation.Continuation": "cifar_resnets.callbacks.exact_resume.Continuation",
    "cifar_resnets.runs.guards.NonfiniteGuard": "cifar_resnets.callbacks.nonfinite_guard.NonfiniteGuard",
    "cifar_resnets.runs.guards.WritableFolders": "cifar_resnets.callbacks.writable_folders.WritableFolders",
    "cifar_resnets.runs.last_checkpoint.LastCheckpoint": "cifar_resnets.callbacks.last_checkpoint.LastCheckpoint",
}


def current_names(value: Any) -> Any:
    """Replaces the class paths of former versions by those of today.

    Args:
        value: dicts, lists and primitives: a recipe, settings in a checkpoint, or arguments, also as `--key=value`.

    Returns:
        A copy of the dicts and lists.
    """
    if isinstance(value, dict):
        return {key: current_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [current_names(item) for item in value]
    if isinstance(value, str):
        key, equals, name = value.rpartition("=")
        return f"{key}{equals}{NOW.get(name, name)}"
    return value

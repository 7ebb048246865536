"""Sets up the console: the project's own lines, and no warning that a user cannot act on."""

import logging
import threading
import warnings

from cifar_resnets.support.text import printable

# warnings of Lightning about what is done on purpose here
EXPECTED_WARNINGS = (
    r".*smaller than the logging interval.*",  # everything is logged once an epoch
    r"Experiment logs directory .* exists and is not empty.*",  # several loggers share the run's folder
    r"The dirpath has changed from.*",  # each run has a folder of its own
    r"Checkpoint directory .* exists and is not empty.*",
    r"It is recommended to use `self.log\(.*sync_dist=True\)`.*",  # the metrics are the same on all ranks already
    r"Total length of `list` across ranks is zero.*",  # with `--data.val_fraction 0` there is nothing to validate on
    r"Couldn't infer the batch indices fetched.*",  # the predictions are in order
    r".*isinstance\(treespec, LeafSpec\).*",
    # where a resumed run ends an epoch once more, or nothing is validated; for a misspelt name it is an error
    r"`ModelCheckpoint\(monitor='val(/loss|/acc|/acc_\w+|/f1_macro|_class_acc/.*)'\)` could not find.*",
    # with OnExceptionCheckpoint: a fit that is new has a folder without checkpoints
    r"`\.fit\(ckpt_path=None\)` was called without a model.*",
    r"\.fit\(ckpt_path=\"last\"\) is set, but there is no last checkpoint available.*",
    r"You requested to overfit but enabled .* shuffling.*",  # the loaders do so
    r"The `srun` command is available on your system but is not used.*",  # a laptop may have it, a login node has
    r"You're using the WeightAveraging callback, but .* outside the 'fit' stage.*",  # the averaged weights are there
    r"Be aware that when using `ckpt_path`, .* callbacks: \['Misclassified'\]\.",  # it is left out by `--explain null`
)
# of an evaluation: its checkpoint alone counts, not the callbacks of the training
_CALLBACKS_OF_TRAINING = r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint.*"


class _Lines(logging.Handler):
    """Prints the messages of the project's loggers as plain lines on stdout; stderr is for errors."""

    def emit(self, record: logging.LogRecord) -> None:
        print(*map(printable, self.format(record).split("\n")), sep="\n", flush=True)


# errors in threads, such as the one that writes TensorBoard's files
errors_of_threads: list[OSError] = []


def _note(args: threading.ExceptHookArgs) -> None:
    """Keeps an OSError, which the user can fix, for the end of the run: the main thread may not see it otherwise."""
    if isinstance(args.exc_value, OSError):
        errors_of_threads.append(args.exc_value)
    else:
        threading.__excepthook__(args)


def set_up_messages(evaluates: bool = False) -> None:
    """Shows the project's messages, and silences those of Lightning that a user cannot act on.

    Args:
        evaluates: whether the command trains nothing.
    """
    errors_of_threads.clear()
    threading.excepthook = _note
    own = logging.getLogger("cifar_resnets")
    own.handlers = [_Lines()]
    own.setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    profilers = logging.getLogger("lightning.pytorch.profilers")  # their reports
    profilers.handlers, profilers.propagate = [_Lines()], False
    profilers.setLevel(logging.INFO)
    # says which rank has failed, when Lightning's launcher ends the others
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each fork that it ends
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    if evaluates:
        expect_evaluation()


def expect_evaluation() -> None:
    """Silences what matters only to a training, where an evaluation begins."""
    warnings.filterwarnings("ignore", _CALLBACKS_OF_TRAINING)

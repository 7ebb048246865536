"""The keys that the project adds to those of the Trainer, the network and the data."""

from lightning.pytorch.cli import LightningArgumentParser

from cifar_resnets.callbacks.best_checkpoint import BestCheckpoint
from cifar_resnets.callbacks.exact_resume import OnChangedData
from cifar_resnets.callbacks.last_checkpoint import LastCheckpoint
from cifar_resnets.callbacks.nonfinite_guard import OnNonfinite
from cifar_resnets.cli.config_checks import seed_of
from cifar_resnets.cli.default_callbacks import ALL, Explanations

CONFIG = "a recipe or hardware file, or the name of one that comes with the package, see `cifar-resnets recipes`"
NAME = "folder of the run below default_root_dir; the network's name if not given"
EXPLAIN = "what is shown of the network's mistakes; nothing if null"
ON_NONFINITE = "what a loss or gradients that are infinite or NaN do: `stop` the run, or `skip` the step"
MAX_SKIPPED = "steps in a row that may be skipped"
ON_CHANGED_DATA = "whether to `refuse` or `accept` to resume a run on other images than those of its checkpoint"


def add_keys(parser: LightningArgumentParser) -> None:
    """Adds the keys to the parser of a subcommand, and links one section's arguments to another's."""
    # argparse has no other way to another's argument
    parser._option_string_actions["--config"].help = CONFIG
    parser.add_argument("--name", type=str | None, help=NAME)
    parser.add_argument("--explain", type=Explanations | None, default=ALL, help=EXPLAIN)
    parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
    parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
    parser.add_argument("--on_nonfinite", type=OnNonfinite, default="stop", help=ON_NONFINITE)
    parser.add_argument("--max_skipped_steps", type=int, default=10, help=MAX_SKIPPED)
    parser.add_argument("--on_changed_data", type=OnChangedData, default="refuse", help=ON_CHANGED_DATA)
    parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=seed_of)

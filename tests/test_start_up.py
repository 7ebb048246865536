"""What the command line does not import before it is needed.

Lightning imports torchmetrics, which imports scipy, matplotlib and torchvision, and that much of torch: these cannot be
listed here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import TINY, shell

pytestmark = pytest.mark.process

TESTS = Path(__file__).parent
# where each of them is used first
REPORT = {"jinja2", "markupsafe", "cifar_resnets.reports.page"}  # after a test
HEATMAPS = {"pytorch_grad_cam", "cv2"}  # by a method that is not ours
FIGURES = {"matplotlib.backends.backend_agg"}  # after a validation
RARE = {"timm.optim", "torchvision.transforms.v2"}  # by recipes that name one of their parts
UNUSED = REPORT | HEATMAPS | FIGURES | RARE
LOGS = {"tensorboard", "torch.utils.tensorboard", "google.protobuf", "absl"}  # by a run that writes them
DIGITS = {"sklearn", "joblib"}  # by the data source of that name
# as `python -m cifar_resnets` does, then the names of the imported modules
HELP = """
import contextlib, io, sys
from cifar_resnets.__main__ import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print("\\n".join(sys.modules))
"""


@pytest.fixture(scope="module")
def after_help() -> set[str]:
    """The modules that `fit --help` has imported."""
    done = subprocess.run([sys.executable, "-c", HELP, "fit", "--help"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def at_first_step(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules that a fit has imported when it begins to train, with everything that a run has by itself."""
    folder = tmp_path_factory.mktemp("run")
    probe = f"{{class_path: start_up.ModulesAtFirstStep, init_args: {{path: {folder / 'modules'}}}}}"
    schedule = "model: {schedule: {class_path: OneCycle}}\ntrainer: {callbacks: [" + probe + "]}"
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "probe.yaml").write_text(schedule)
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    result = shell("fit", "-c", "tiny.yaml", "-c", "probe.yaml", cwd=folder, PYTHONPATH=path)
    assert result.status == 0, result.err
    return set((folder / "modules").read_text().split())


def test_the_help_imports_nothing_that_it_does_not_show(after_help: set[str]) -> None:
    assert {"cifar_resnets.cli.train", "lightning", "timm"} <= after_help  # it has run
    assert sorted(after_help & (UNUSED | LOGS | DIGITS)) == []


def test_a_fit_imports_nothing_that_its_steps_do_not_need(at_first_step: set[str]) -> None:
    assert {"cifar_resnets.cli.train", "cifar_resnets.data.digits", "sklearn", "tensorboard"} <= at_first_step
    assert sorted(at_first_step & UNUSED) == []

"""docs/results.md says what the kept records of the runs say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import results_page
import yaml
from scipy import stats
from sweep_runs import write_trained

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs/results"


def tables() -> list[list[dict[str, str]]]:
    """Returns the tables between the marks of the page, each as its rows."""
    page = (ROOT / "docs/results.md").read_text()
    found = []
    for text in re.findall(r"<!-- [^\n]* -->\n(.*?)<!-- end of", page, re.DOTALL):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def runs() -> dict[str, list[Path]]:
    """Returns the folders of the runs of each row."""
    found: dict[str, list[Path]] = {}
    for file in sorted(KEPT.rglob("run.json")):
        found.setdefault(str(file.parents[1].relative_to(KEPT)), []).append(file.parent)
    return found


def test_each_row_is_recomputed_from_the_records_by_numpy_and_scipy() -> None:
    rows = {row["run"]: row for row in tables()[0]}
    assert rows.keys() == runs().keys()
    for name, folders in runs().items():
        tests = [json.loads((folder / "test.json").read_text()) for folder in folders]
        accuracies = np.array([100 * test["correct"] / test["images"] for test in tests])
        assert rows[name]["seeds"] == str(len(folders))
        assert rows[name]["test, %"].split(" ± ")[0] == f"{accuracies.mean():.2f}"
        if len(folders) > 1:
            assert rows[name]["test, %"].split(" ± ")[1] == f"{accuracies.std(ddof=1):.2f}"
            low, high = stats.t.interval(0.95, len(folders) - 1, accuracies.mean(), stats.sem(accuracies))
            assert rows[name]["95 % interval"] == f"{low:.2f} to {high:.2f}"
        views = [100 * test["tta"]["accuracy"] for test in tests if "tta" in test]
        assert rows[name]["with views, %"].split(" ± ")[0] == (f"{np.mean(views):.2f}" if views else "")


def test_the_runs_of_a_row_differ_in_their_seed_alone_and_are_of_a_commit_without_changes() -> None:
    for name, folders in runs().items():
        configs = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders]
        seeds = [config.pop("seed_everything") for config in configs]
        assert [folder.name for folder in folders] == [f"seed_{seed}" for seed in seeds], name
        found = any(each["class_path"].endswith("LRFinder") for each in configs[0]["trainer"]["callbacks"] or [])
        for config in configs:
            for key in ("ckpt_path", "last_checkpoint"):
                config.pop(key)
            if found:
                config["model"].pop("lr")
            assert config == configs[0], name
        assert not [
            each for folder in folders for each in json.loads((folder / "run.json").read_text())["git"]["changed"]
        ]


def test_the_records_hold_no_path_of_a_machine() -> None:
    for file in KEPT.rglob("*"):
        if file.is_file():
            assert not re.search(r"(?<![\w.])/(home|root|tmp|work|mnt|data|usr)/", file.read_text()), file


def test_the_page_is_what_the_script_writes() -> None:
    page = (ROOT / "docs/results.md").read_text()
    assert results_page.with_tables(page, KEPT) == page


def test_a_finished_run_is_kept_without_its_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, accuracy in enumerate((0.91, None)):
        write_trained(tmp_path / f"results/seed_0/resnet20/version_{version}", version, accuracy, 0.9, name="resnet20")
    results_page.keep([tmp_path / "results"], tmp_path / "kept")
    [folder] = [file.parent for file in (tmp_path / "kept").rglob("run.json")]
    assert folder == tmp_path / "kept/resnet20/seed_0"
    assert sorted(each.name for each in folder.iterdir()) == sorted(results_page.FILES)
    assert not any(str(tmp_path) in each.read_text() for each in folder.iterdir())
    assert json.loads((folder / "run.json").read_text())["hardware"] == results_page.hardware()

"""The classes of a network and those of the data, in every relation to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cifar_resnets.cli.class_names import network_classes
from cifar_resnets.data.datamodule import ImageDataModule, Images, Labels, Split
from cifar_resnets.errors import CheckpointError, ConfigurationError

NAMES = ["bird", "cat", "ship"]


class Source(ImageDataModule):
    """Ten images of each class, which all have the class's number as their value."""

    names: Sequence[str] = NAMES

    def source_classes(self) -> Sequence[str]:
        return self.names

    def load(self, split: Split) -> tuple[Images, Labels]:
        labels = np.repeat(np.arange(len(self.names)), 10)
        return np.broadcast_to(labels[:, None, None, None], (len(labels), 4, 4, 3)).astype(np.uint8), labels


def source(names: Sequence[str] = NAMES, **arguments: Any) -> Source:
    data = Source(**arguments)
    data.names = names
    return data


def checkpoint(names: Sequence[str] = NAMES, **arguments: Any) -> dict[str, Any]:
    return {"hyper_parameters": {"class_names": list(names)}, "data": source(names, **arguments).describe()}


def typed_from(content: dict[str, Any], names: Sequence[str] = NAMES, **typed: Any) -> Source:
    """The data of an evaluation: what is typed comes over what the checkpoint says."""
    return source(names, **{"classes": content["data"]["init_args"]["classes"], **typed})


def label_of(data: Source) -> dict[str, int]:
    """The label of each class among the test images."""
    data.mean = data.std = [0.5] * 3
    data.setup("test")
    images, labels = data._sets["test"]
    return {data.names[int(image)]: int(label) for image, label in zip(images[:, 0, 0, 0], labels, strict=True)}


# A network that is trained.


def test_a_new_network_has_the_classes_of_the_data() -> None:
    assert network_classes("fit", source(), None, None) == NAMES
    assert network_classes("fit", source(classes=["ship", "cat"]), None, None) == ["ship", "cat"]
    assert network_classes("fit", source(), NAMES, None) == NAMES
    with pytest.raises(ConfigurationError, match=r"model.class_names: .*\(cat\), .*\(bird, cat, ship\)"):
        network_classes("fit", source(), ["cat"], None)


@pytest.mark.parametrize(
    ("now", "error"),
    [
        (["bird", "boat", "cat"], ConfigurationError),
        (["cat", "bird", "ship"], ConfigurationError),
        (["bird", "cat"], CheckpointError),
        ([*NAMES, "truck"], CheckpointError),
    ],
)
def test_a_run_is_not_resumed_on_other_classes(now: list[str], error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"3 classes \(bird, cat, ship\), .* {len(now)} classes \({', '.join(now)}\)"):
        network_classes("fit", source(now), None, checkpoint())


def test_a_class_of_another_name_is_accepted_by_name() -> None:
    now = ["bird", "cat", "zeppelin"]
    assert network_classes("fit", source(now), now, checkpoint()) == now
    with pytest.raises(ConfigurationError, match="model.class_names"):
        network_classes("fit", source(now), NAMES, checkpoint())


@pytest.mark.parametrize("change", [{"split_seed": 7}, {"val_fraction": 0.2}, {"num_train": 9}])
def test_a_run_is_not_resumed_on_another_split(change: dict[str, Any]) -> None:
    (name, value), *_ = change.items()
    with pytest.raises(ConfigurationError, match=rf"data.{name} \S+ -> {value}"):
        network_classes("fit", source(**change), None, checkpoint())


# A network that is tested.


@pytest.mark.parametrize("command", ["test", "predict"])
def test_some_of_the_classes_have_the_labels_of_the_network(command: str, capsys: Any) -> None:
    data = typed_from(checkpoint(), classes=["cat", "ship"])
    assert network_classes(command, data, None, checkpoint()) == NAMES
    assert label_of(data) == {"cat": 1, "ship": 2}
    assert capsys.readouterr().out == "evaluated on 2 of the network's 3 classes: cat, ship\n"
    assert label_of(typed_from(checkpoint(), classes=["cat", "ship"])) == {
        "cat": 0,
        "ship": 1,
    }  # of a network of its own


def test_one_class_is_enough() -> None:
    data = typed_from(checkpoint(), classes=["ship"])
    network_classes("test", data, None, checkpoint())
    assert label_of(data) == {"ship": 2}


def test_all_classes_in_the_order_of_a_checkpoint(capsys: Any) -> None:
    content = checkpoint(classes=["ship", "bird", "cat"])
    content["hyper_parameters"]["class_names"] = ["ship", "bird", "cat"]
    data = typed_from(content)
    assert network_classes("test", data, None, content) == ["ship", "bird", "cat"]
    assert label_of(data) == {"ship": 0, "bird": 1, "cat": 2}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("classes", [["cat", "bird"], ["ship", "cat", "bird"], ["bird", "truck"]])
def test_other_classes_or_another_order_are_refused(classes: list[str]) -> None:
    data = typed_from(checkpoint(), [*NAMES, "truck"], classes=classes)
    with pytest.raises(ConfigurationError, match=rf"\(bird, cat, ship\), .*\({', '.join(classes)}\)"):
        network_classes("test", data, None, checkpoint())


def test_a_class_that_the_data_lack_is_named(capsys: Any) -> None:
    data = typed_from(checkpoint(), ["bird", "ship"])
    network_classes("test", data, None, checkpoint())
    assert label_of(data) == {"bird": 0, "ship": 2}
    assert capsys.readouterr().out == "evaluated on 2 of the network's 3 classes: bird, ship\n"


def test_a_class_that_the_network_lacks_is_named(capsys: Any) -> None:
    data = typed_from(checkpoint(), ["ape", *NAMES])
    network_classes("test", data, None, checkpoint())
    assert label_of(data) == {"bird": 0, "cat": 1, "ship": 2}
    assert "does not have, are left out: ape\n" in capsys.readouterr().out


@pytest.mark.parametrize("names", [["bird", "boat", "cat"], ["apple", "pear", "plum"]])
def test_a_class_that_may_have_another_name_is_not_left_out(names: list[str]) -> None:
    data = typed_from(checkpoint(), names)
    with pytest.raises(ConfigurationError, match=rf"\(bird, cat, ship\), .*\({', '.join(names)}\).*model.class_names"):
        network_classes("test", data, None, checkpoint())
    data = typed_from(checkpoint(), names)
    assert network_classes("test", data, [names[0], names[2], names[1]], checkpoint())
    assert label_of(data) == {names[0]: 0, names[1]: 2, names[2]: 1}


# A network that is validated.


def test_validation_images_are_those_of_the_run() -> None:
    assert network_classes("validate", typed_from(checkpoint()), None, checkpoint()) == NAMES
    for change in ({"split_seed": 7}, {"val_fraction": 0.2}):
        with pytest.raises(ConfigurationError, match="validate: data.* would take images that were trained on"):
            network_classes("validate", typed_from(checkpoint(), **change), None, checkpoint())
    # with fewer images to train on, the validation images are the same
    network_classes("validate", typed_from(checkpoint(), num_train=9), None, checkpoint())


@pytest.mark.parametrize("names", [["bird", "boat", "cat"], ["bird", "cat"]])
def test_other_classes_are_not_validated(names: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="--ckpt_path: the network has"):
        network_classes("validate", typed_from(checkpoint(), names), None, checkpoint())
    with pytest.raises(ConfigurationError, match="--ckpt_path: the network has"):
        network_classes("validate", typed_from(checkpoint(), classes=["bird", "cat"]), None, checkpoint())
    if len(names) == 3:
        given = ["bird", "cat", "boat"]
        assert network_classes("validate", typed_from(checkpoint(), names), given, checkpoint()) == given

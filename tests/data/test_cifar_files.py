import shutil

import numpy as np
import pytest
from cifar_archives import Tiny, message_of, png

from cifar_resnets.data import cifar_files
from cifar_resnets.data.cifar import CIFAR10, CIFAR100
from cifar_resnets.data.cifar_files import BINARY
from cifar_resnets.errors import ConfigurationError

SMALL = {CIFAR10: (20, 100, 20), CIFAR100: (100, 100, 100)}  # images of a file, for training and for testing


@pytest.fixture(params=SMALL, ids=lambda module: module.__name__)
def tiny(request, monkeypatch):
    return small(request.param, monkeypatch)


@pytest.fixture
def tiny10(monkeypatch):
    return small(CIFAR10, monkeypatch)


def small(module, monkeypatch):
    num_each, num_train, num_test = SMALL[module]
    monkeypatch.setitem(cifar_files.NUM_IMAGES, "train", num_train)
    monkeypatch.setitem(cifar_files.NUM_IMAGES, "test", num_test)
    return Tiny(module, monkeypatch, num_each)


def coarse_labels_are_right(tiny, root):
    if tiny.module is CIFAR100:
        data = CIFAR100(str(root), coarse=True)
        for split in ("train", "test"):
            assert data.load(split)[1].tolist() == [label % 20 for label in tiny.labels[f"{split}_list"]]


# The binary version.


@pytest.mark.parametrize("inside", [True, False])
def test_binary_version(tiny, tmp_path, inside):
    folder = tiny.write_binary(tmp_path / BINARY[tiny.source.__name__][0])
    root = tmp_path if inside else folder
    tiny.check(root, has_names=False)
    coarse_labels_are_right(tiny, root)


def test_python_version_comes_first(tiny, tmp_path):
    tiny.write_binary(tmp_path / BINARY[tiny.source.__name__][0])
    tiny.write_folder(tmp_path / tiny.source.base_folder)
    tiny.check(tmp_path, has_names=True)


def test_damaged_and_missing_binary_files(tiny10, tmp_path):
    path = tiny10.write_binary(tmp_path / "cifar-10-batches-bin") / "data_batch_2.bin"
    data = CIFAR10(str(tmp_path))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for call in (data.prepare_data, lambda: data.load("train")):
        assert f"{path} is damaged (its md5 is not " in message_of(call)
    path.unlink()
    assert f"{path} is missing; remove the folder" in message_of(data.prepare_data)


def cut_off(rows):
    return rows[:-1].tobytes()


def broken_row(rows):
    return rows.tobytes()[:-5]


def other_label(rows):
    rows[0, 1] = (rows[0, 1] + 1) % 100
    return rows.tobytes()


def no_such_label(rows):
    rows[0, 1] = 100
    return rows.tobytes()


@pytest.mark.parametrize("damage", [cut_off, broken_row, other_label, no_such_label, lambda rows: b""])
def test_binary_files_without_a_known_checksum_hold_all_images(monkeypatch, tmp_path, damage):
    folder = small(CIFAR100, monkeypatch).write_binary(tmp_path / "cifar-100-binary")
    rows = np.frombuffer((folder / "train.bin").read_bytes(), np.uint8).reshape(-1, 3074).copy()
    (folder / "train.bin").write_bytes(damage(rows))
    message = message_of(lambda: CIFAR100(str(tmp_path)).load("train"))
    assert message.startswith(f"{folder}: the train files do not hold ") and message.endswith("put a sound copy there")


def test_known_binary_files():
    for module in SMALL:
        files = BINARY[module.__name__][1]
        assert [name.removesuffix(".bin") for split in files for name in files[split]] == [
            name for name, _ in [*module._source.train_list, *module._source.test_list]
        ]


# Parquet files.


@pytest.fixture
def pyarrow():
    return pytest.importorskip("pyarrow")


@pytest.mark.parametrize("layout", ["{}-00000-of-00001", "hub/{}-00000-of-00001", "{}/0000", "cifar-{}"])
@pytest.mark.usefixtures("pyarrow")
def test_parquet_files(tiny, tmp_path, layout):
    layout = layout.replace("hub", cifar_files.PARQUET[tiny.source.__name__][0]).replace("cifar-{}", "{}")
    for split in ("train", "test"):
        tiny.write_parquet(tmp_path / f"{layout.format(split)}.parquet", split)
    tiny.check(tmp_path, has_names=False)
    coarse_labels_are_right(tiny, tmp_path)


@pytest.mark.usefixtures("pyarrow")
def test_the_crab_of_hugging_face_is_a_cra(monkeypatch, tmp_path):
    tiny = small(CIFAR100, monkeypatch)
    names = ["cra" if name == "crab" else name for name in CIFAR100._names]
    tiny.write_parquet(tmp_path / "train.parquet", "train", names)
    assert "test-*.parquet is missing" in message_of(CIFAR100(str(tmp_path)).prepare_data)
    tiny.write_parquet(tmp_path / "test.parquet", "test", names)
    tiny.check(tmp_path, has_names=False)


@pytest.mark.usefixtures("pyarrow")
def test_batches_in_the_order_of_the_hub_are_put_back(tiny10, tmp_path, monkeypatch):
    batches = np.split(np.array(tiny10.labels["train_list"]), 5)
    monkeypatch.setattr(cifar_files, "HUB_LABELS", tuple(batches[number - 1][:16].tolist() for number in (4, 1)))
    images = np.split(tiny10.pixels("train"), 5)
    # as `tar -t` lists them: data_batch_4, test_batch, data_batch_3, data_batch_2, data_batch_5, data_batch_1
    rows = [{"bytes": png(image)} for number in (4, 3, 2, 5, 1) for image in images[number - 1]]
    labels = np.concatenate([batches[number - 1] for number in (4, 3, 2, 5, 1)])
    tiny10.write_parquet(tmp_path / "train.parquet", "train", img=rows, label=labels.tolist())
    tiny10.write_parquet(tmp_path / "test.parquet", "test")
    tiny10.check(tmp_path, has_names=False)


BAD = {
    "other classes": (lambda tiny: {"names": [*tiny.module._names[:-1], "tree"]}, "its class names are not those"),
    "fewer classes": (lambda tiny: {"names": tiny.module._names[:-1]}, "its class names are not those"),
    "other labels": (lambda tiny: {"label": [0] * 100}, "10 of each of the 10 classes, but 100; put a sound copy"),
    "negative labels": (lambda tiny: {"label": [-1] * 100}, "10 of each of the 10 classes"),
    "texts as labels": (lambda tiny: {"label": ["cat"] * 100}, "cannot be read (invalid literal for int()"),
    "no PNG": (lambda tiny: {"img": [{"bytes": b"GIF89a"}] * 100}, "cannot be read (cannot identify image file"),
    "no bytes": (lambda tiny: {"img": [{"path": "1.png"}] * 100}, "cannot be read ("),
    "another size": (
        lambda tiny: {"img": [{"bytes": png(np.zeros((28, 28, 3), np.uint8))}] * 100},
        "image 0 has 28x28 pixels, not 32x32",
    ),
    "texts as images": (lambda tiny: {"img": ["1.png"] * 100}, "cannot be read ("),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
@pytest.mark.usefixtures("pyarrow")
def test_parquet_files_of_something_else(tiny10, tmp_path, change, said):
    tiny10.write_parquet(tmp_path / "train.parquet", "train", **change(tiny10))
    tiny10.write_parquet(tmp_path / "test.parquet", "test")
    message = message_of(lambda: CIFAR10(str(tmp_path)).load("train"))
    assert str(tmp_path) in message and said in message


def test_parquet_files_of_another_data_set(pyarrow, tiny10, tmp_path):
    for split in ("train", "test"):
        pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / f"{split}.parquet")
    message = message_of(lambda: CIFAR10(str(tmp_path)).load("train"))
    assert message.endswith("train.parquet: there is no column img, it is of another data set")


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"])
@pytest.mark.usefixtures("pyarrow")
def test_damaged_parquet_file(tiny10, tmp_path, content):
    tiny10.write_parquet(tmp_path / "test.parquet", "test")
    shutil.copy(tmp_path / "test.parquet", tmp_path / "train.parquet")
    (tmp_path / "train.parquet").write_bytes(content)
    message = message_of(lambda: CIFAR10(str(tmp_path)).load("train"))
    assert message.startswith(f"{tmp_path / 'train.parquet'} cannot be read (")


def test_parquet_files_without_pyarrow(tiny10, tmp_path, monkeypatch):
    (tmp_path / "train.parquet").touch()
    monkeypatch.setattr(cifar_files.importlib.util, "find_spec", lambda name: None)
    data = CIFAR10(str(tmp_path))
    for call in (data.prepare_data, lambda: data.load("train")):
        message = message_of(call, ConfigurationError)
        assert message == (
            f"data.root: {tmp_path} has parquet files, and pyarrow is not installed: pip install .[parquet]"
        )

import pytest
import torchvision
from cifar_archives import Tiny, folder_without_permission, message_of

from cifar_resnets.data.cifar import CIFAR10, CIFAR100
from cifar_resnets.errors import ConfigurationError

# Classes.


def test_classes_need_no_files(tmp_path):
    assert CIFAR10(str(tmp_path / "nothing")).class_names == [
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ]  # fmt: skip
    names = CIFAR100(str(tmp_path / "nothing")).class_names
    assert len(set(names)) == 100 and names == sorted(names)
    assert names[:3] == ["apple", "aquarium_fish", "baby"] and names[-3:] == ["wolf", "woman", "worm"]
    assert not list(tmp_path.iterdir())


def test_other_classes_in_the_meta_file(tiny, tmp_path):
    tiny.set_meta(["thing", *tiny.module._names[1:]])
    folder = tiny.write_folder(tmp_path / tiny.source.base_folder)
    message = message_of(lambda: tiny.module(str(tmp_path)).load("train"))
    assert str(folder / tiny.source.meta["filename"]) in message


def test_coarse_labels_of_cifar100(monkeypatch, tmp_path):
    tiny = Tiny(CIFAR100, monkeypatch)
    tiny.write_folder(tmp_path / tiny.source.base_folder)
    data = CIFAR100(str(tmp_path), coarse=True)
    assert len(data.class_names) == 20 and data.class_names == sorted(data.class_names)
    assert data.class_names[0] == "aquatic_mammals" and data.class_names[-1] == "vehicles_2"
    assert data.describe()["init_args"]["coarse"] is True
    data.prepare_data()
    for split in ("train", "test"):
        assert data.load(split)[1].tolist() == [label % 20 for label in tiny.labels[f"{split}_list"]]


def test_addresses_are_no_folders():
    for module in (CIFAR10, CIFAR100):
        with pytest.raises(ConfigurationError, match=r"^data.root: s3://bucket is an address"):
            module("s3://bucket")


@pytest.mark.parametrize("url", ["ftp://host/file", "host/file", "file:///etc/passwd", ""])
def test_addresses_of_the_archive_are_http(url):
    with pytest.raises(ConfigurationError, match=r"^data.urls: .* give addresses with http:// or https://$"):
        CIFAR10(urls=["https://host/file", url])
    assert CIFAR10(urls="https://host/file").urls == ["https://host/file"]


def test_addresses_say_nothing_of_the_images(tmp_path):
    for module in (CIFAR10, CIFAR100):
        plain, mirrored = module(str(tmp_path)), module(str(tmp_path), urls=["https://host/file"])
        assert plain.describe() == mirrored.describe() and "urls" not in plain.describe()["init_args"]


# A folder that is there.


def test_folder_inside_root(tiny, tmp_path):
    tiny.write_folder(tmp_path / tiny.source.base_folder)
    tiny.check(tmp_path)


@pytest.mark.parametrize("name", [None, "renamed"])
def test_root_is_the_folder(tiny, tmp_path, name):
    tiny.check(tiny.write_folder(tmp_path / (name or tiny.source.base_folder)))


def test_home_folder(tiny10, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny10.write_folder(tmp_path / "sets" / tiny10.source.base_folder)
    tiny10.check("~/sets")
    assert CIFAR10("~/sets").describe()["init_args"]["root"] == "~/sets"


def test_a_relative_folder_is_found_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CIFAR10("sets").describe()["init_args"]["root"] == str(tmp_path / "sets")


def test_nothing_is_downloaded_where_a_checkpoint_says(tmp_path):
    data = CIFAR10(str(tmp_path / "sets"))
    data.may_download = False
    assert message_of(data.prepare_data).endswith("where the checkpoint has them: give --data.root DIR")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_damaged_files(tiny, tmp_path):
    folder = tiny.write_folder(tmp_path / tiny.source.base_folder)
    data = tiny.module(str(tmp_path))
    for name, content in tiny.contents.items():
        (folder / name).write_bytes(content[:-1] + b"x")
        for call in (data.prepare_data, lambda: data.load("test")):
            message = message_of(call)
            assert str(folder / name) in message and "damaged" in message and "remove the folder" in message
        (folder / name).unlink()
        assert f"{folder / name} is missing" in message_of(data.prepare_data)
        (folder / name).write_bytes(content)
    data.prepare_data()


def test_folder_that_cannot_be_written(tiny10):
    with folder_without_permission() as (root, closed):
        tiny10.write_folder(root / tiny10.source.base_folder)
        (root / tiny10.source.base_folder).chmod(0o555)
        before = sorted(root.rglob("*"))
        with closed():
            tiny10.check(root)
        assert sorted(root.rglob("*")) == before


def test_load_without_any_folder(tiny10, tmp_path):
    assert "there is no cifar-10-batches-py" in message_of(lambda: CIFAR10(str(tmp_path)).load("train"))


def test_checksums_are_torchvisions():
    assert CIFAR10._source is torchvision.datasets.CIFAR10 and CIFAR100._source is torchvision.datasets.CIFAR100


def test_batches_without_names_have_none(monkeypatch, tmp_path):
    tiny = Tiny(CIFAR10, monkeypatch, with_names=False)
    tiny.write_folder(tmp_path / "cifar-10-batches-py")
    assert CIFAR10(str(tmp_path)).file_names("test") is None

"""The parameters of a class, those of its bases included."""

from cifar_resnets.data.cifar import CIFAR10
from cifar_resnets.data.digits import Digits
from cifar_resnets.support.signature import parameters_of


class Base:
    def __init__(self, first: int, second: str = "a") -> None: ...


class Passes(Base):
    def __init__(self, third: float, second: str = "b", **kwargs) -> None: ...


class Ends(Passes):
    def __init__(self, fourth: int) -> None: ...


def test_own_parameters_come_first_and_override_those_of_the_bases() -> None:
    parameters = parameters_of(Passes)
    assert list(parameters) == ["third", "second", "first"]
    assert parameters["second"].default == "b"


def test_bases_that_receive_no_keywords_are_left_out() -> None:
    assert list(parameters_of(Ends)) == ["fourth"]


def test_a_data_source_has_its_own_parameters_and_the_shared_ones() -> None:
    assert list(parameters_of(CIFAR10))[:4] == ["root", "urls", "batch_size", "eval_batch_size"]
    assert parameters_of(Digits)["augment"].default.flip is False

"""Loads weights from files: checkpoints of this project, state dicts, and files of common public CIFAR trainers."""

import codecs
import os
import pickle
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar_resnets.errors import CheckpointError
from cifar_resnets.support.torch_archive import MAGIC, ArchiveError, check_archive, check_legacy

__all__ = ["load_weights", "read_file"]

State = Mapping[str, Tensor]

# Keys under which trainers save the state dict, beside the epoch, the accuracy and the optimizer.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
# Keys of averaged weights beside them, which are the ones that trainers evaluate; timm reads them, too.
AVERAGED = ("state_dict_ema", "model_ema")
# Prefixes that DataParallel, torch.compile and other trainers' modules add to every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
CLASSIFIERS = ("linear", "classifier", "fc")
LFS = b"version https://git-lfs"  # a clone without Git LFS has such files in place of large ones
NUM_SHOWN = 8
DEEPEST = 4  # levels of such keys
# An accuracy beside the weights is often a NumPy scalar, which torch refuses unless it is listed.
_scalar: Any = np.float64().__reduce__()[0]
NUMPY_NUMBERS: list[Any] = [
    _scalar,
    (_scalar, "numpy.core.multiarray.scalar"),  # before NumPy 2
    np.dtype,
    *(type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?")),
    codecs.encode,
]


def load_weights(module: nn.Module, file: str | Path, strict: bool = True) -> str | None:
    """Loads all weights and statistics of a network from a file, or none of them if they do not fit.

    The file is a checkpoint of this project, a state dict, or a dict with one under `state_dict`,
    `model_state_dict`, `model` or `net`; averaged weights beside it, under `state_dict_ema` or `model_ema`, are taken
    in its place. A prefix that all names share (`module.`, `_orig_mod.`, `model.`, `net.`) is removed. A name that the
    network does not have is replaced by its common synonym if the network has that: `linear`, `classifier` or `fc` for
    the classifier, `shortcut` for `downsample` and the reverse.

    Args:
        module: The network, or a module that holds it as `network`. Precision, device and memory format are kept.
        file: Written by torch.save or safetensors, whatever its name is. Python objects in it are refused, not
            executed.
        strict: If false, a classifier of another number of classes, or none, is left out, and that of the network
            stays as it is.

    Returns:
        A line that says so if the classifier was left out.

    Raises:
        CheckpointError: If the file is missing, damaged or holds no state dict; if a value is not finite; or if a
            name is missing, unexpected, duplicate, or of another shape. `num_batches_tracked` may be missing.
    """
    network = getattr(module, "network", module)
    where, own = f"weights: {file}", network.state_dict()
    state = _strip_prefixes(_find_state(read_file(file, "weights"), where), own)
    classifier = _classifier_name(network)
    state = _rename(_check_kind(state, where), own, classifier, where)
    line = None if strict else _line_of_head(state, own, classifier)
    if line is not None:
        state = {name: value for name, value in state.items() if not name.startswith(f"{classifier}.")}
        state |= {name: value for name, value in own.items() if name.startswith(f"{classifier}.")}
    _check_head(state, own, classifier, where)
    _check_names(state, own, where)
    _check_finite(state, own, where)
    network.load_state_dict({**own, **state})
    return None if line is None else f"{where}: {line}"


def read_file(file: str | Path, argument: str) -> Any:
    """Reads tensors and primitives from a file, onto the CPU; executes no code.

    Args:
        file: Written by torch.save or safetensors.
        argument: Name of the user's argument, for the error message.

    Returns:
        The saved object.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds Python objects.
    """
    if not os.path.isfile(file):
        what = f"{file} is a folder" if os.path.isdir(file) else f"there is no file {file}"
        raise CheckpointError(f"{argument}: {what}, give a checkpoint of a fit or a state dict")
    try:
        # torch's warnings either become an error below, or do not concern tensors
        with warnings.catch_warnings(action="ignore"):
            return _read(Path(file))
    except Exception as error:  # zipfile, pickle and torch raise many kinds for a damaged file
        raise CheckpointError(f"{argument}: {file} {_reason(error)}") from error


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(len(LFS))
        is_archive = start.startswith(MAGIC)
        if start == LFS:
            raise ArchiveError("is a pointer of Git LFS, download the file itself: git lfs pull")
        # a header in JSON follows the 8 bytes of its length
        if not is_archive and (path.suffix == ".safetensors" or start[8:9] == b"{"):
            from safetensors.torch import load_file  # comes with timm, but is no requirement of ours

            return load_file(path)
        (check_archive if is_archive else check_legacy)(file)
        file.seek(0)
        with torch.serialization.safe_globals(NUMPY_NUMBERS):  # not by the name, which torch would go by
            return torch.load(file, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    if code := re.search(r"GLOBAL (\S+)|(TorchScript)", str(error)):
        objects = f"holds Python objects ({code[1] or code[2]}) rather than plain tensors"
        return f"{objects} and will not be executed, give a file with its state dict alone"
    if isinstance(error, ArchiveError):
        return str(error)
    if isinstance(error, ImportError):
        return "needs a package that is not installed: pip install safetensors"
    if isinstance(error, PermissionError):
        return f"cannot be read: {error.strerror}"
    # torch's text for an unpickling error advises to disable `weights_only`; that of a KeyError is a byte of the file
    lines = [] if isinstance(error, (pickle.UnpicklingError, KeyError)) else str(error).splitlines()
    return "is damaged, or no file of torch.save or safetensors" + (f": {_cut(lines[0])}" if lines else "")


def _find_state(content: Any, where: str) -> Mapping[str, Any]:
    found = list(_states(content))
    if not found:
        holds = f"only {', '.join(map(str, content)) or 'nothing'}" if isinstance(content, dict) else "no dict"
        raise CheckpointError(f"{where} has no state dict, on top or in {', '.join(CONTAINERS)}: {_cut(holds)}")
    if len(found) > 1:
        raise CheckpointError(f"{where} holds {len(found)} state dicts, give a file with one of them alone")
    return found[0]


def _states(content: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yields the innermost state dicts of nested dicts; a dict around one may hold tensors, too, such as an EMA."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content) or depth > DEEPEST:
        return
    inner = [state for key in AVERAGED for state in _states(content.get(key), depth + 1)]
    inner = inner or [state for key in CONTAINERS for state in _states(content.get(key), depth + 1)]
    has_tensors = any(isinstance(value, Tensor) for value in content.values())
    yield from inner or ([content] if has_tensors else [])


def _strip_prefixes(state: Mapping[str, Any], own: State) -> Mapping[str, Any]:
    state = {name: value for name, value in state.items() if name != "n_averaged"}  # of torch's AveragedModel
    while not own.keys() & state.keys():
        # a checkpoint of this project may also hold the state of metrics
        ours = [name for name in state if name.startswith("network.")]
        prefix = "network." if ours else next((p for p in PREFIXES if all(n.startswith(p) for n in state)), "")
        if not prefix:
            break
        state = {name.removeprefix(prefix): state[name] for name in ours or state}
    return state


def _check_kind(state: Mapping[str, Any], where: str) -> State:
    for name, value in state.items():
        plain = isinstance(value, Tensor) and value.layout is torch.strided
        if not plain or value.is_quantized or value.is_meta or value.is_nested:
            raise CheckpointError(f"{where} holds {_cut(name)}, which is no plain tensor, take it out")
    return state


def _rename(state: State, own: State, classifier: str, where: str) -> State:
    origin: dict[str, str] = {}
    for name in state:
        place = next((new for new in (name, *_other_names(name, classifier)) if new in own), name)
        if place in origin:
            raise CheckpointError(f"{where}: {origin[place]} and {name} both stand for {place}, take one of them out")
        origin[place] = name
    return {place: state[name] for place, name in origin.items()}


def _other_names(name: str, classifier: str) -> Iterator[str]:
    head, _, leaf = name.rpartition(".")
    if head in CLASSIFIERS:
        yield f"{classifier}.{leaf}"
    yield name.replace(".shortcut.", ".downsample.")
    yield name.replace(".downsample.", ".shortcut.")


def _classifier_name(network: nn.Module) -> str:
    classifier = getattr(network, "get_classifier", lambda: None)()
    return next((name for name, module in network.named_modules() if module is classifier), "fc")


def _line_of_head(state: State, own: State, classifier: str) -> str | None:
    """Returns what is left out if the classifier in a file is of another number of classes, or is missing."""
    head = f"{classifier}.weight"
    if head not in own or (head in state and _fits(state[head], own[head])):
        return None
    if head in state and state[head].shape[1:] != own[head].shape[1:]:
        return None  # of another network
    found = f"the head of {len(state[head])} classes is left out" if head in state else "it has no head"
    return f"{found}, that of {len(own[head])} starts anew"


def _check_head(state: State, own: State, classifier: str, where: str) -> None:
    """Raises CheckpointError if the network is the file's but for the number of its classes."""
    differ = {name for name in own.keys() & state.keys() if not _fits(state[name], own[name])}
    head, bias = f"{classifier}.weight", f"{classifier}.bias"
    if head in differ and not differ - {head, bias} and state[head].shape[1:] == own[head].shape[1:]:
        has, wants = len(state[head]), len(own[head])
        remedy = f"give data of {has} classes, or all {has} names as --model.class_names to evaluate some of them"
        raise CheckpointError(f"{where} has a head of {has} classes, the network has {wants}: {remedy}")


def _check_names(state: State, own: State, where: str) -> None:
    both = [name for name in own if name in state and not _fits(state[name], own[name])]
    found = {
        "of another shape": [f"{n}: file {_describe(state[n])}, network {_describe(own[n])}" for n in both],
        "missing": [n for n in own if n not in state and not n.endswith("num_batches_tracked")],
        "unexpected": [name for name in state if name not in own],
    }
    parts = [f"{len(names)} {kind} ({_join_names(names)})" for kind, names in found.items() if names]
    if parts:
        raise CheckpointError(f"{where} is not of this network: {'; '.join(parts)}; give the network it was made for")


def _fits(value: Tensor, own: Tensor) -> bool:
    return value.shape == own.shape and (value.is_floating_point() or not own.is_floating_point())


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f" of {tensor.dtype}")


def _join_names(names: list[str]) -> str:
    more = f", and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(_cut(name) for name in names[:NUM_SHOWN]) + more


def _cut(text: str) -> str:
    """Shortens text from a file to one line."""
    return textwrap.shorten(text, 120, placeholder="...")


def _check_finite(state: State, own: State, where: str) -> None:
    for name, value in state.items():
        # a double may be too large for the network's precision; a counter may have been saved as a float
        dtype = own[name].dtype if own[name].is_floating_point() else torch.double
        if not value.to(dtype).isfinite().all():
            raise CheckpointError(
                f"{where}: {name} is not finite in {dtype}, give a checkpoint from before it diverged"
            )

"""The parameters of constructors, through inheritance."""

import inspect


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a class by name, followed by those of the bases that receive its `**kwargs`."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            own = inspect.signature(base.__init__).parameters  # type: ignore[misc]  # of a class
            found |= {name: each for name, each in own.items() if name not in found}
            if not any(each.kind is each.VAR_KEYWORD for each in own.values()):
                break
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: each for name, each in found.items() if each.kind in kinds and name != "self"}

"""Options that belong to some kinds only. A field that is left out is None, or an empty list, and takes the default of
the class that the kind stands for; one that the kind does not have is an error that names it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

Options = Mapping[str, Collection[str]]
"""The options that each kind takes."""


def is_given(value: object) -> bool:
    """Whether a recipe says something about a field."""
    return value is not None and value != ()


def given_options(section: object, names: Collection[str]) -> dict[str, Any]:
    """Those options that a section sets; the others keep the defaults of their class."""
    return {name: value for name in names if is_given(value := getattr(section, name))}


def foreign_options(key: str, section: object, selector: str, options: Options) -> Iterator[str]:
    """Options that are set but belong to another kind, a line each.

    Args:
        key: of the section, for messages.
        section: holds the options and the kind.
        selector: the field that says which kind it is.
        options: those of every kind.
    """
    kind = getattr(section, selector)
    own = options[kind]
    for name in sorted({name for names in options.values() for name in names}.difference(own)):
        if is_given(getattr(section, name)):
            yield f'{key}.{name}: {selector} "{kind}" has no such option; it takes {", ".join(own) or "none"}'


def missing_options(key: str, section: object, selector: str, needed: Options) -> Iterator[str]:
    """Options that a kind cannot do without and that are not set, a line each."""
    kind = getattr(section, selector)
    for name in needed.get(kind, ()):
        if not is_given(getattr(section, name)):
            yield f'{key}.{name} is missing: {key}.{selector} = "{kind}" needs it'

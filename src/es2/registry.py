"""Names for kinds of things that anyone may add to: a decorator here, an entry point elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from es2.errors import Es2Error

Kind = TypeVar("Kind", bound=type)


class Registry(Mapping[str, Kind], Generic[Kind]):
    """Classes by their `name`: es2's own, and those that installed packages bring.

    Another package adds a class by an entry point in the group, whose value is the class:

        [project.entry-points."es2.attacks"]
        shout = "my_package:Shout"

    Args:
        kind: what the classes are, in error messages.
        group: the entry points' group.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._known: dict[str, Kind] = {}
        self._looked = False

    def register(self, added: Kind) -> Kind:
        """Class decorator: adds the class under its `name`.

        Raises:
            Es2Error: if another class has that name.
        """
        name: str = added.name  # type: ignore[attr-defined]
        if self._known.get(name, added) is not added:
            other = self._known[name]
            raise Es2Error(
                f"two {self.kind}s are called {name!r}: {other.__module__}.{other.__qualname__} "
                f"and {added.__module__}.{added.__qualname__}; rename one"
            )
        self._known[name] = added
        return added

    def find(self, name: str) -> Kind:
        """The class of that name, as a user gave it.

        Raises:
            Es2Error: if there is none, naming those that there are.
        """
        if name not in self:
            raise Es2Error(f"unknown {self.kind} {name!r}; there are {', '.join(sorted(self))}")
        return self[name]

    def __getitem__(self, name: str) -> Kind:
        if name not in self._known:
            self._look()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        self._look()
        return iter(self._known)

    def __len__(self) -> int:
        self._look()
        return len(self._known)

    def _look(self) -> None:
        """Loads what other packages bring, once."""
        if self._looked:
            return
        self._looked = True
        for point in entry_points(group=self.group):
            try:
                added = point.load()
            except Exception as error:  # anything may go wrong in a stranger's module
                raise Es2Error(
                    f"{self.kind} {point.name!r} ({point.value}) cannot be loaded: {error}; "
                    "mend or uninstall the package that brings it"
                ) from error
            self.register(added)

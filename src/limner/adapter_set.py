"""Several adapters on one base: loaded once, set to strengths, swapped and removed; the base stays as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, combinations, count
from pathlib import Path

from limner.adapter_file import AdapterFile, WordsFile, read_adapter
from limner.adapters.adapter import Attached, Layered
from limner.adapters.lora import StackedLoRA
from limner.adapters.strength import Strength, as_strength, check_parts
from limner.errors import UserError
from limner.families.family import Family


class AdapterSet:
    """Any number of adapters for one base, by name; those that are set act, and the others wait on the CPU.

    The base's weights are never written to: with nothing set it is bit for bit what it was. What acts is the same
    whatever was set before.

        adapters = AdapterSet(family)
        adapters.load("dog.safetensors")                      # called "dog"
        adapters.load("runs/style-1", name="style")
        adapters.set({"dog": 0.8, "style": Strength(0.5, {"text": 0})})
        adapters.set({})                                      # the base
        adapters.remove("dog")
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self._layers = [f"{root}.{name}" for root, m in family.modules.items() for name, _ in m.named_parameters()]
        self._loaded: dict[str, list[AdapterFile]] = {}
        self._resting: dict[int, list[StackedLoRA]] = {}
        """LoRAs that need not be built again to act, by their file: their memory is the file's own, on the CPU."""
        self._attached: dict[str, list[tuple[AdapterFile, list[Attached]]]] = {}
        self._strengths: dict[str, Strength] = {}
        self._merged: list[Attached] = []

    @property
    def names(self) -> list[str]:
        """Return what is loaded."""
        return list(self._loaded)

    @property
    def active(self) -> dict[str, Strength]:
        """Return what is set, and how strongly."""
        return dict(self._strengths)

    @property
    def tokens(self) -> dict[str, str]:
        """Return the word that each adapter was trained for, where its file says it."""
        return {name: t for name, files in self._loaded.items() if (t := ", ".join(_tokens(files)))}

    @property
    def left_out(self) -> list[str]:
        """Return lines about what was left out of the files that are loaded."""
        return [line for files in self._loaded.values() for file in files for line in file.left_out()]

    def load(self, path: str | Path, *, name: str | None = None, partial: bool = False) -> str:
        """Read a file or a run's adapter to the CPU and make sure that it fits the base; return its name.

        Left out, the name is the file's or the run's, with a number where that is taken. With `partial`, what of a
        LoRA's file does not fit is left out, and `left_out` tells it.

        Raises:
            UserError: the file is damaged, or for another base, or the name is taken.
        """
        path = Path(path)
        files = read_adapter(path, partial=partial)
        files = [file.fitting(self.family) for file in files] if partial else files
        if name in self._loaded:
            raise UserError(f"{name!r}: is loaded already.", "Remove that one first, or take another name.")
        names = chain([name or path.stem], (f"{path.stem}-{number}" for number in count(2)))
        name = next(name for name in names if name not in self._loaded)
        with self._none_acting():
            for file in files:
                adapters = file.attach(self.family)
                for adapter in adapters:
                    adapter.detach()
                resting = [adapter for adapter in adapters if isinstance(adapter, StackedLoRA)]
                if len(resting) == len(adapters) and self.family.device.type == "cpu":
                    self._resting[id(file)] = resting
        self._loaded[name] = files
        return name

    def set(self, strengths: Mapping[str, Strength | float]) -> None:
        """Let these adapters act, each at its strength, and no others.

        Raises:
            UserError: a name is not loaded, a part of the model is not there, two adapters cannot act together, or an
                adapter cannot act so (then none does).
        """
        wanted = {name: as_strength(strength) for name, strength in strengths.items()}
        for name, strength in wanted.items():
            self._require(name)
            check_parts(strength, self._layers, name)
        # in the order given, so that sums round the same every time
        if self._merged or list(wanted) != list(self._attached):
            self._check_together(list(wanted))
            self._detach()
        try:
            for name, strength in wanted.items():
                self._act(name, strength)
        except UserError:
            self._detach()
            raise
        self._strengths = wanted

    def remove(self, name: str) -> None:
        """Forget an adapter, whether it acts or not; the others act on."""
        self._require(name)
        self.set({other: strength for other, strength in self._strengths.items() if other != name})
        for file in self._loaded.pop(name):
            self._resting.pop(id(file), None)

    def merge(self) -> None:
        """Fold what acts into the base's weights, in float32 where they are; `set` restores them bit for bit.

        Nothing is left on the layers, so that they run, or are compiled, as the base's own.
        What depends on the weights that it finds comes first, so that it finds the base's.
        """
        parts = [part for own in self._attached.values() for part in own]
        first = sorted(parts, key=lambda part: not part[0].method)
        self._merged = [adapter for _, adapters in first for adapter in adapters]
        for adapter in self._merged:
            adapter.merge()
            if isinstance(adapter, Layered):
                adapter.unhook()

    def clashes(self) -> list[str]:
        """Return a line for every two adapters that act and were trained for the same word."""
        own = {name: set(_tokens(self._loaded[name])) for name in self._strengths}
        return [
            f"{a} and {b} were both trained for {word!r}: a prompt with it asks for both"
            for a, b in combinations(own, 2)
            for word in sorted(own[a] & own[b])
        ]

    def _act(self, name: str, strength: Strength) -> None:
        """Attach an adapter, if it is not, and set it to a strength; words that come with a LoRA have none."""
        files = self._loaded[name]
        if name not in self._attached:
            self._attached[name] = []
            for file in files:
                self._attached[name].append((file, self._attach(file)))
        for file, adapters in self._attached[name]:
            beside = isinstance(file, WordsFile) and len(files) > 1
            for adapter in adapters:
                adapter.set_strength(float(strength != Strength(0.0)) if beside else strength)

    def _attach(self, file: AdapterFile) -> list[Attached]:
        for adapter in self._resting.get(id(file), []):
            adapter.attach_again()
        return [*self._resting[id(file)]] if id(file) in self._resting else file.attach(self.family)

    def _check_together(self, names: list[str]) -> None:
        files = [(name, file) for name in names for file in self._loaded[name]]
        for (a, one), (b, other) in combinations(files, 2):
            if isinstance(one, WordsFile) and isinstance(other, WordsFile) and one.words.keys() & other.words.keys():
                word = sorted(one.words.keys() & other.words.keys())[0]
                raise UserError(f"{a} and {b} both hold the learned word {word!r}.", "Use one of them at a time.")
            if one.method and other.method:
                raise UserError(
                    f"{a} ({one.method}) and {b} ({other.method}) cannot act together: what such a method adds depends "
                    "on the weights it finds.",
                    "Use one of them with any number of LoRAs, or merge it into the base first: limner merge.",
                )

    def _require(self, name: str) -> None:
        if name not in self._loaded:
            raise UserError(
                f"no adapter is called {name!r}.",
                f"Loaded are {', '.join(self._loaded)}." if self._loaded else "None is loaded.",
            )

    def _detach(self) -> None:
        for adapter in reversed(self._merged):
            adapter.unmerge()
        for adapter in (adapter for parts in self._attached.values() for _, own in parts for adapter in own):
            adapter.detach()
        self._merged.clear()
        self._attached, self._strengths = {}, {}

    @contextmanager
    def _none_acting(self) -> Iterator[None]:
        before = self.active
        self._detach()
        try:
            yield
        finally:
            self.set(before)


def _tokens(files: list[AdapterFile]) -> list[str]:
    return list(dict.fromkeys(token for file in files for token in file.tokens))

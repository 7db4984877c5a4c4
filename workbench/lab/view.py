"""Views: panes that share one state, shown in a notebook, saved as an HTML page, or drawn by matplotlib."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from workbench.files import write_atomically
from workbench.lab.definitions import controls_of, hint_of
from workbench.lab.drawing import encoded
from workbench.lab.lesson import Step, steps_of
from workbench.lab.made import Made
from workbench.lab.packing import pack
from workbench.lab.page import Texts, page
from workbench.lab.panes import AXES, Axis, Pane

ENDINGS = (".png", ".svg", ".pdf")


class View:
    """Linked panes: sliders, options and selection apply to all of them.

    Args:
        title: Title of the view.
        panes: Its pictures.
        axes: Axes of the arrays by name, of `AXES`; each with several values has a slider.
        snippet: Code that creates this view under the name ``view``.
        made: How it was made, as pairs of a name and a text, such as its runs and images.
        start: Initial values: of axes (``t=0.4, layer=6, w=2.5, source="plain"``), of options of the panes
            (``basis="refit"``), `selection` as row numbers, and `tokens` as pairs: a value of the axis "image" and the
            number of a token, row by row from 0. The methods take values in the same form.

    Raises:
        ValueError: For arrays that do not fit the axes, and for values that are not allowed.
    """

    def __init__(
        self,
        title: str,
        panes: Sequence[Pane],
        axes: Mapping[str, Axis],
        *,
        snippet: str = "",
        made: Made = (),
        start: Mapping[str, Any] | None = None,
    ):
        if not panes or not set(axes) <= set(AXES):
            raise ValueError(f"a view has one or more panes and axes among {', '.join(AXES)}; got {', '.join(axes)}")
        if any(axis.continuous != (name == "w") for name, axis in axes.items()):
            raise ValueError("the axis w is continuous, the others are discrete")
        self.title, self.panes, self.snippet, self.made = title, tuple(panes), snippet, made
        self.axes = {name: axes[name] for name in AXES if name in axes}
        self._described = [pane.complete(self.axes) for pane in self.panes]
        self._scripts = {pane.kind: script for pane in self.panes if (script := pane.script())}
        self.options: dict[str, list[str]] = {}
        for pane in self.panes:
            for name, allowed in pane.options(self.axes).items():
                known = self.options.setdefault(name, [])
                known += [value for value in allowed if value not in known]
        self._start = {**self._defaults(), **self._indices(start or {})}

    def state(self, /, **values: Any) -> dict[str, Any]:
        """The state with these values: an index for each discrete axis, the value of w, options, selection, tokens."""
        return {**self._start, **self._indices(values)}

    def values(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a state, the inverse of `state`. ValueError for a state that is not allowed."""
        complete = {**self._start, **state}
        self.check(complete)
        discrete = {name: axis for name, axis in self.axes.items() if not axis.continuous}
        return {**complete, **{name: axis.values[complete[name]] for name, axis in discrete.items()}}

    def check(self, state: Mapping[str, Any]) -> None:
        """ValueError, listing what is allowed, for a state (indices) that is not allowed."""
        for name, value in state.items():
            axis = self.axes.get(name)
            if axis is None or axis.continuous:
                self._indices({name: value})
            elif type(value) is not int or not 0 <= value < len(axis.values):
                raise ValueError(f"state {name} is {value!r}; allowed are indices from 0 to {len(axis.values) - 1}")

    @cached_property
    def _packed(self) -> tuple[dict[str, dict[str, Any]], bytes]:
        return pack(self.panes)

    @property
    def data(self) -> bytes:
        """All arrays, as `meta` says."""
        return self._packed[1]

    @property
    def name(self) -> str:
        """The title as the name of a file."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "view"

    @property
    def meta(self) -> dict[str, Any]:
        """What the browser needs beside the arrays."""
        return {
            "title": self.title,
            "name": self.name,
            "axes": {name: {**axis.meta, "hint": axis.hint or hint_of(name)} for name, axis in self.axes.items()},
            "options": self.options,
            "controls": controls_of(self.options),
            "panes": self._described,
            "arrays": self._packed[0],
            "scripts": self._scripts,
            "code": self._template,
            "offline": False,
        }

    def code(self, **values: Any) -> str:
        """The code that shows the view with these values, and as a comment what writes the picture."""
        shown = self.values(self.state(**values))
        literal = {name: _literal(value) for name, value in shown.items()}
        return re.sub(r"\{(\w+)\}", lambda match: literal.get(match[1], match[0]), self._template)

    def widget(self, **values: Any) -> Any:
        """The widget of this view, always the same one, with these values set."""
        if values:
            self._widget.state = self.state(**values)
        return self._widget

    def save_html(
        self,
        file: str | Path,
        *,
        title: str = "",
        introduction: str = "",
        controls: Mapping[str, str] | None = None,
        steps: Sequence[Step | Mapping[str, Any]] = (),
        command: str = "",
        **values: Any,
    ) -> Path:
        """Write an HTML page that works offline and without a kernel, with these initial values; return its path.

        The page says what its sliders, tokens and colours mean and how it was made. The `introduction`, the sentences
        of `controls` (by the name of a slider or option, or "token" and "colour") and the texts of `steps` are
        Markdown, with formulas between dollars. A step has a `text` and a `state`, the values that it sets; a button
        of the page sets them, from the initial ones in turn. `command` is shown in place of the code of the view.

        ValueError for a control or value that this view does not have, and for Markdown that cannot be shown.

        Examples:
            >>> view = wb.maps(wb.zoo("guided"), images=2, layers=[4, 8], times=[0.5])
            >>> steps = [{"text": "With $w = 10$ the class is exaggerated.", "state": {"w": 10}}]
            >>> view.save_html("lesson.html", title="What guidance does", steps=steps, w=0).name
            'lesson.html'
        """
        path = checked_path(file, (".html",))
        text = self.html(
            title=title, introduction=introduction, controls=controls, steps=steps, command=command, **values
        )
        write_atomically(path, text.encode())
        return path

    def html(
        self,
        *,
        title: str = "",
        introduction: str = "",
        controls: Mapping[str, str] | None = None,
        steps: Sequence[Step | Mapping[str, Any]] = (),
        command: str = "",
        **values: Any,
    ) -> str:
        """The page that `save_html` writes."""
        state = self.state(**values)
        reached, code = self._steps(steps_of(steps), state), command or self.snippet
        texts = Texts(title, introduction, controls or {}, reached, self.made, code)
        return page(self.meta, self.data, state, texts)

    def _steps(self, steps: Sequence[Step], state: Mapping[str, Any]) -> list[tuple[Step, dict[str, Any]]]:
        """Each step and the whole state that it leads to. ValueError, naming the step, for a value not allowed."""
        reached = []
        for number, step in enumerate(steps, start=1):
            try:
                state = {**state, **self._indices(step.state)}
            except ValueError as error:
                raise ValueError(f"step {number}: {error}") from error
            reached.append((step, dict(state)))
        return reached

    def figure(self, *, pane: int | None = None, **values: Any) -> Figure:
        """The picture with these values as a matplotlib Figure.

        `pane` is the number of the pane, from 0; ValueError if it is missing and there are several.

        Examples:
            >>> view = wb.maps(wb.zoo("guided"), images=2, layers=[4, 8], times=[0.5])
            >>> figure = view.figure(layer=8, w=10.0)
            >>> figure.savefig("maps.png", dpi=100)
        """
        numbers = self._chosen(pane)
        if len(numbers) > 1:
            raise ValueError(f"a figure has one picture; choose a pane of {self._titles}")
        return self._drawn(numbers, self.state(**values))[0]

    def save(self, file: str | Path, *, pane: int | None = None, **values: Any) -> Path:
        """Write the picture with these values as PNG, SVG or PDF, by matplotlib; return its path.

        `pane` is the number of the pane, from 0. Without it all panes are written, each on a page of a PDF.
        """
        path = checked_path(file, ENDINGS)
        write_atomically(path, self.picture(path.suffix[1:], pane, self.state(**values)))
        return path

    def picture(self, ending: str, pane: int | None, state: Mapping[str, Any]) -> bytes:
        """Content of a file with the picture of a state (indices); ValueError as `save`."""
        self.check(state)
        numbers = self._chosen(pane)
        if len(numbers) > 1 and ending != "pdf":
            raise ValueError(f"a {ending.upper()} file has one picture; choose a pane of {self._titles}")
        return encoded(self._drawn(numbers, {**self._start, **state}), ending)

    def _chosen(self, pane: int | None) -> list[int]:
        numbers = [pane] if pane is not None else list(range(len(self.panes)))
        if not all(0 <= number < len(self.panes) for number in numbers):
            raise ValueError(f"pane is {pane}; allowed are 0 to {len(self.panes) - 1}")
        return numbers

    def _drawn(self, numbers: Sequence[int], state: Mapping[str, Any]) -> list[Figure]:
        return [self.panes[number].draw(state, self.axes) for number in numbers]

    @property
    def _titles(self) -> str:
        return ", ".join(f"{number}: {pane.title}" for number, pane in enumerate(self.panes))

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self._widget._repr_mimebundle_(**options)

    @cached_property
    def _widget(self) -> Any:
        from workbench.lab.widget import ViewWidget

        return ViewWidget(self)

    @property
    def _template(self) -> str:
        names = [name for name, axis in self.axes.items() if len(axis.values) > 1]
        names += [name for name, allowed in self.options.items() if len(allowed) > 1]
        if any(pane.selects for pane in self.panes):
            names.append("selection")
        if self._tokens:
            names.append("tokens")
        arguments = ", ".join(f"{name}={{{name}}}" for name in names)
        file = json.dumps(f"{self.name}.{'pdf' if len(self.panes) > 1 else 'png'}")
        written = ", ".join(filter(None, (file, arguments)))
        shown = f"view.widget({arguments})\n# To write the picture to a file: view.save({written})\n"
        return f"{self.snippet.rstrip()}\n{shown}".lstrip()

    def _defaults(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: 0 for name in self.axes}
        for name, axis in self.axes.items():
            if name in ("t", "layer"):
                state[name] = len(axis.values) // 2
            elif name == "step":
                state[name] = len(axis.values) - 1
            elif name == "w":
                state[name] = min(max(1.0, float(axis.limits[0])), float(axis.limits[1]))
        return {**state, **{name: allowed[0] for name, allowed in self.options.items()}, "selection": [], "tokens": []}

    @property
    def _tokens(self) -> tuple[int, int] | None:
        """Number of images and of tokens per image of the pane that shows what is like `tokens`."""
        return next((pane.tokens for pane in self.panes if pane.tokens), None)

    def _pairs(self, value: Any) -> list[list[int]]:
        """`tokens` as the state has them; ValueError for a token that is not there."""
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(f"tokens is {value!r}; allowed is a list of pairs of an image and a token")
        if not value:
            return []
        if self._tokens is None:
            raise ValueError(
                f"tokens is {value!r}, but {self.title!r} has no similarities of tokens; views of token maps have them "
                "where `page_mb` has room"
            )
        images = self.axes["image"].values if "image" in self.axes else range(self._tokens[0])
        for pair in value:
            ours = isinstance(pair, Sequence) and len(pair) == 2 and all(type(number) is int for number in pair)
            if not (ours and pair[0] in images and 0 <= pair[1] < self._tokens[1]):
                known = ", ".join(map(str, images))
                raise ValueError(
                    f"tokens has {pair!r}; allowed are pairs of an image, {known}, and a token, 0 to "
                    f"{self._tokens[1] - 1}, counted row by row"
                )
        pairs = [list(pair) for pair in value]
        if any(pairs.count(pair) > 1 for pair in pairs):
            raise ValueError(f"tokens is {value!r}; allowed are distinct tokens")
        return pairs

    def _indices(self, values: Mapping[str, Any]) -> dict[str, Any]:
        indices: dict[str, Any] = {}
        for name, value in values.items():
            if name in self.axes:
                indices[name] = _value_or_index(name, value, self.axes[name])
            elif name in self.options:
                if value not in self.options[name]:
                    raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, self.options[name]))}")
                indices[name] = value
            elif name == "selection":
                if not isinstance(value, Sequence) or not all(type(row) is int and row >= 0 for row in value):
                    raise ValueError(f"selection is {value!r}; allowed is a list of row numbers")
                indices[name] = list(value)
            elif name == "tokens":
                indices[name] = self._pairs(value)
            else:
                known = [*self.axes, *self.options, "selection", *(["tokens"] if self._tokens else [])]
                raise ValueError(f"this view has no {name!r}; allowed are {', '.join(known)}")
        return indices


def _value_or_index(name: str, value: Any, axis: Axis) -> Any:
    if not axis.continuous:
        return axis.index(name, value)
    low, high = axis.limits
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; allowed are numbers from {low:g} to {high:g}")
    return value


def _literal(value: Any) -> str:
    """A Python literal, as the page writes it too (codeOf in js/saving.js)."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.15g}" if isinstance(value, float) else repr(value)


def checked_path(file: str | Path, endings: tuple[str, ...]) -> Path:
    """The path of a file; ValueError for an ending that is not one of these, or a folder that does not exist."""
    path = Path(file)
    if path.suffix not in endings:
        raise ValueError(f"cannot write {path.name!r}; allowed endings are {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"cannot write {path.name!r}: there is no folder {path.parent}")
    return path

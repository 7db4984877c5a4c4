"""Notebook widget of a view: synchronises the state and draws a PDF on request."""

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from workbench.files import reason
from workbench.lab.view import View

_STATIC = Path(__file__).parent / "static"


class ViewWidget(anywidget.AnyWidget):
    """A view in Jupyter. `state` has an index for each discrete axis; ValueError for a state that is not allowed."""

    _esm = _STATIC / "views.js"
    _css = _STATIC / "views.css"

    meta = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)

    def __init__(self, view: View):
        self._view = view
        super().__init__(meta=view.meta, data=view.data, state=view.state())
        self.on_msg(self._on_message)

    @traitlets.validate("state")
    def _allowed(self, proposal: Any) -> dict[str, Any]:
        self._view.check(proposal["value"])
        return {**self._view.state(), **proposal["value"]}

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Apply the state that the page sent, and show an error in its status line."""
        try:
            self._view.check(sync_data.get("state", {}))
            super().set_state(sync_data)
        except ValueError as error:
            self._show_error(error)

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if not isinstance(content, dict) or content.get("type") != "save":
            return
        try:
            file = self._view.picture("pdf", content["pane"], content["state"])
        except Exception as error:  # shown in the page's status line
            self._show_error(error)
        else:
            self.send({"type": "file", "name": f"{self._view.name}.pdf"}, [file])

    def _show_error(self, error: Exception) -> None:
        self.error = ""  # so that the same error is sent again
        self.error = reason(error)

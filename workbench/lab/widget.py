"""The widget of a view in a notebook: its state goes both ways, and a PDF is drawn when the page asks for one."""

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from workbench.files import reason
from workbench.lab.view import View

_STATIC = Path(__file__).parent / "static"


class ViewWidget(anywidget.AnyWidget):
    """A view in Jupyter. `state` has an index for each discrete axis; a state that there is not raises ValueError."""

    _esm = _STATIC / "views.js"
    _css = _STATIC / "views.css"

    meta = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)

    def __init__(self, view: View):
        self._view = view
        super().__init__(meta=view.meta, data=view.data, state=view.state())
        self.on_msg(self._answer)

    @traitlets.validate("state")
    def _allowed(self, proposal: Any) -> dict[str, Any]:
        self._view.check(proposal["value"])
        return {**self._view.state(), **proposal["value"]}

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take what the page sent; a refusal goes to the page's line, since nobody reads the kernel's log."""
        try:
            self._view.check(sync_data.get("state", {}))
            super().set_state(sync_data)
        except ValueError as error:
            self._tell(error)

    def _answer(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if not isinstance(content, dict) or content.get("type") != "save":
            return
        try:
            file = self._view.picture("pdf", content["pane"], content["state"])
        except Exception as error:  # whatever went wrong, the reader waits in front of the page
            self._tell(error)
        else:
            self.send({"type": "file", "name": f"{self._view.name}.pdf"}, [file])

    def _tell(self, error: Exception) -> None:
        self.error = ""
        self.error = reason(error)

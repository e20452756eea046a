"""The frame of every page: one file under a policy that lets only its own style and script run."""

import base64
import hashlib
import html
import json

from igpo_jax.pages.text import printable


def document(title: str, body: str, style: str, script: str, data: object = None) -> str:
    """A whole HTML file that loads nothing from anywhere.

    Args:
      title: plain text.
      body: markup; whatever in it comes from a model or a user has gone through ``escape``.
      style: the page's CSS.
      script: the page's JavaScript; it may show strings of ``data`` only as text (``textContent``).
      data: JSON-ready values that the script reads with ``JSON.parse(document.getElementById("data").textContent)``.

    Returns:
      The file's text. Its content security policy allows the given style and script and images inside the file
      ("data:"), and no connection, so a script that slipped in through a text could neither run nor report home.
    """
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    block = "" if data is None else f'<script type="application/json" id="data">{embedded(data)}</script>\n'
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{style}</style>
{body}
{block}<script>{script}</script>
</html>
"""


def escape(value: object) -> str:
    """Text for markup and attributes: control characters written out, markup characters escaped."""
    return html.escape(printable(str(value)))


def embedded(data: object) -> str:
    """JSON that no HTML parser can leave early: "<", ">" and "&" are written as escapes; NaN is refused."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

"""A trajectory as one HTML file: the completion with a slider over the denoising steps. It loads nothing from anywhere.

Whatever the model or the user wrote is escaped, and the page's own policy lets no script run but the one written here.
"""

from igpo_jax.commands.trajectory import Trajectory
from igpo_jax.diffusion import denoise
from igpo_jax.pages.document import document, escape

_STYLE = """
:root { color-scheme: light dark; --dim: #8888; --new: #2a9d5c55; --hint: #c98a00; }
body { font: 16px/1.7 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
pre, #canvas { white-space: pre-wrap; overflow-wrap: anywhere; font: 15px/1.8 ui-monospace, monospace; }
pre { border-left: 3px solid var(--dim); padding-left: 1rem; }
#canvas { border: 1px solid var(--dim); border-radius: 6px; padding: 1rem; min-height: 4rem; }
.controls { display: flex; gap: 1rem; align-items: center; }
.controls[hidden] { display: none; }
.controls input { flex: 1; }
.token { border-radius: 3px; }
.hint { color: var(--hint); font-weight: 600; }
.special { opacity: .45; font-size: 80%; }
.new { background: var(--new); }
.masked { color: transparent; background: var(--dim); box-shadow: inset 0 0 0 1px Canvas; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; font-size: 85%; }
dd { margin: 0; }
"""

_SCRIPT = """
const slider = document.getElementById("step"), count = document.getElementById("count");
const play = document.getElementById("play"), tokens = [...document.querySelectorAll(".token")];
let timer = null;
function show() {
  const at = Number(slider.value);
  for (const token of tokens) {
    const from = Number(token.dataset.from);
    token.classList.toggle("masked", from > at);
    token.classList.toggle("new", from === at && at > 0);
  }
  count.textContent = at + " / " + slider.max;
}
function stop() { clearInterval(timer); timer = null; play.textContent = "play"; }
slider.addEventListener("input", () => { stop(); show(); });
play.addEventListener("click", () => {
  if (timer) { stop(); return; }
  if (slider.value === slider.max) slider.value = 0;
  play.textContent = "stop";
  show();
  timer = setInterval(() => {
    slider.value = Number(slider.value) + 1;
    show();
    if (slider.value === slider.max) stop();
  }, 150);
});
document.querySelector(".controls").hidden = false;
show();
"""


def render(trajectory: Trajectory, about: dict[str, object]) -> str:
    """The page.

    Args:
      trajectory: what it shows; without scripts, its end.
      about: facts for the foot of the page, name to value.
    """
    last = max(len(trajectory.steps), int(trajectory.shown_from.max(initial=0)))
    tokens = "".join(_token(trajectory, position) for position in range(len(trajectory.tokens)))
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in about.items())
    body = f"""<h1>Denoising, step by step</h1>
<pre>{escape(trajectory.prompt)}</pre>
<div class="controls" hidden>
<button id="play" type="button">play</button>
<input id="step" type="range" min="0" max="{last}" value="{last}" aria-label="denoising steps done">
<output id="count">{last}</output>
</div>
<p id="canvas">{tokens}</p>
<p><small><span class="hint">hints</span> are given and never change; grey boxes are still masks; point at a token for
its step and confidence.</small></p>
<dl>{facts}</dl>"""
    return document("Denoising, step by step", body, _STYLE, _SCRIPT)


def _token(trajectory: Trajectory, position: int) -> str:
    text, step = trajectory.texts[position], int(trajectory.reveal_step[position])
    kinds = "token" + (" hint" if trajectory.hint[position] else "") + ("" if text else " special")
    confidence = trajectory.confidence_of(position)
    if confidence is not None:
        source = f"step {step}, confidence {confidence:.3f}"
    else:
        source = "hint" if step == denoise.HINT else "filled behind the end"
    title = f"position {position}, id {trajectory.tokens[position]}, {source}"
    shown = text or trajectory.markers[position]
    return f'<span class="{kinds}" data-from="{trajectory.shown_from[position]}" title="{title}">{escape(shown)}</span>'

"""The live page itself, in Gradio: what stands where, and which event asks the session what."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from transformers_agci.app.maps import ON_LOAD, difference_of, map_of, side_by_side
from transformers_agci.app.scene import Scene, page_atlas
from transformers_agci.app.session import BASELINE, Session, Setting
from transformers_agci.data.grid import POSITIONS
from transformers_agci.errors import InputError, short
from transformers_agci.method.lam import validate_lambda

TITLE = "Does the answer depend on where the image stands?"
LARGEST_LAMBDA = 2.0
FIRST, FIRST_SEED = "grinning face", 3  # a scene whose answers differ from place to place
PLACES = [name.replace("_", " ") for name in POSITIONS]
Controls = Mapping[Any, Any]  # Gradio component -> its value
PROGRESS = gr.Progress()  # Gradio finds it as the default of a parameter
KEPT = 600  # seconds that an uploaded image is kept
FONTS = ("system-ui", "sans-serif")  # the reader's own: no font is fetched
ONE_QUEUE: dict[str, Any] = {  # for everything that asks the model
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "trigger_mode": "always_last",
    "show_progress": "minimal",
    "api_visibility": "private",
}
NOTE = (
    "One image stands in each of nine places among eight others; everything else is equal. Each cell shows P(Yes), "
    "given Yes or No, and the margin (Yes logit minus No logit) for the question whether the caption's image is there. "
    "One scene is an example, not a measurement: `agci probe` and `agci metrics` measure, with intervals."
)


def theme() -> Any:
    """Gradio's plain theme with the reader's own fonts."""
    return gr.themes.Base(font=FONTS, font_mono=("ui-monospace", "monospace"))


def build(session: Session, model: str, methods: tuple[str, ...], report: str | None = None) -> gr.Blocks:
    """The page; `report` is the address of a report that a second tab shows."""
    with gr.Blocks(title="AGCI", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(f"# {TITLE}\n{NOTE}\n\nModel: `{model}`")
        with gr.Tab("Nine places"):
            _Live(session, methods).lay_out(page)
        if report is not None:
            with gr.Tab("Report"):
                gr.HTML(
                    f'<iframe src="{report}" title="report" sandbox="allow-scripts" '
                    'style="width:100%;height:85vh;border:0"></iframe>'
                )
    return page


def shown_errors(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` with the user's mistakes as one sentence on the page. Others are logged, and the page shows no detail."""

    @functools.wraps(work)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return work(*args, **kwargs)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return run


class Request(NamedTuple):
    """What the controls say."""

    scene: Scene
    caption: str
    setting: Setting
    cell: int


class _Live:
    """The tab with the maps. Its state is what the controls show: every request redraws its scene from the seed."""

    def __init__(self, session: Session, methods: tuple[str, ...]) -> None:
        self.session, self.methods = session, methods
        self.cancelled: set[str] = set()  # sessions of browsers that have pressed Cancel
        names = page_atlas().names
        self.name = gr.Dropdown(names, value=FIRST, label="image of the atlas", filterable=True, render=False)
        self.upload = gr.File(
            label="or an image of your own", file_types=["image"], type="filepath", height=140, render=False
        )
        self.caption = gr.Textbox(FIRST, label="caption: is there a sub-image that shows ...", render=False)
        self.lam = gr.Slider(0, LARGEST_LAMBDA, value=0.5, step=0.05, label="lambda", render=False)
        self.method = gr.Dropdown(list(methods), value=methods[0], label="method", render=False)
        self.seed = gr.Number(
            FIRST_SEED, label="seed of the eight other images", precision=0, minimum=0, maximum=2**32 - 1, render=False
        )
        self.place = gr.Radio(PLACES, value=PLACES[4], label="place to look into (or click a cell)", render=False)
        self.layer = gr.Slider(
            0, session.layers - 1, value=session.layers // 2, step=1, label="decoder layer", render=False
        )

    @property
    def controls(self) -> set[Any]:
        """What every request is given."""
        return {self.name, self.upload, self.caption, self.lam, self.method, self.seed, self.place, self.layer}

    def lay_out(self, page: gr.Blocks) -> None:
        """Place the controls and connect them."""
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                for control in (self.name, self.upload, self.caption, self.lam, self.method, self.seed):
                    control.render()
            with gr.Column(scale=3):
                maps = gr.HTML(js_on_load=ON_LOAD, label="P(Yes) and margin by place")
                with gr.Row():
                    composite = gr.Image(label="what the model sees", interactive=False, height=300, buttons=[])
                    self.place.render()
        with gr.Row():
            self.layer.render()
            look = gr.Button("Attention of this layer")
            hide = gr.Button("Occlusion")
            stop = gr.Button("Cancel", variant="stop")
        inside = gr.Image(label="attention or occlusion", interactive=False, buttons=[], elem_id="inside")
        self.name.input(_take_name, [self.name], [self.caption, self.upload], queue=False, api_visibility="private")
        moved = [control.change for control in (self.name, self.upload, self.lam, self.method, self.seed)]
        asks = [page.load, *moved, self.caption.submit, self.caption.blur, self.place.input]
        self._on(asks, self.ask, [maps, composite])
        self._on([maps.select], self.choose, [self.place, maps, composite])
        self._on([look.click], self.attention, [inside])
        # What is cancelled is what was asked for last, even where it still waits for its turn.
        begun = hide.click(self.begin, None, None, queue=False, api_visibility="private")
        begun.then(shown_errors(self.occlusion), self.controls, [inside], **ONE_QUEUE)
        stop.click(self.cancel, None, None, queue=False, api_visibility="private")

    def _on(self, triggers: list[Any], work: Callable[..., Any], outputs: list[Any]) -> None:
        """Of several moves of a slider the last one counts."""
        gr.on(triggers, shown_errors(work), self.controls, outputs, **ONE_QUEUE)

    def ask(self, controls: Controls) -> tuple[str, Image.Image]:
        """The maps of baseline and setting, their difference, and the composite of the chosen cell."""
        return self._maps(self._asked(controls))

    def choose(self, controls: Controls, event: gr.SelectData) -> tuple[str, str, Image.Image]:
        """A cell was clicked: it becomes the place to look into."""
        asked = self._asked(controls)._replace(cell=int(event.index))
        return PLACES[asked.cell], *self._maps(asked)

    def attention(self, controls: Controls) -> Image.Image:
        """The attention of one layer over the chosen composite."""
        asked = self._asked(controls)
        return self.session.attention(*asked[:2], asked.cell, str(int(controls[self.layer])), asked.setting)

    def occlusion(self, controls: Controls, request: gr.Request, progress: gr.Progress = PROGRESS) -> Image.Image:
        """The occlusion map of the chosen composite; ends when the user cancels."""
        asked, user = self._asked(controls), str(request.session_hash)

        def advance(share: float) -> None:
            if user in self.cancelled:
                raise InputError("Cancelled.")
            progress(share, desc="hiding one place after another")

        try:
            advance(0.0)
            return self.session.occlusion(asked.scene, asked.caption, asked.cell, asked.setting, advance)
        finally:
            self.cancelled.discard(user)

    def begin(self, request: gr.Request) -> None:
        """This user asks for an occlusion map; an older Cancel is none of it."""
        self.cancelled.discard(str(request.session_hash))

    def cancel(self, request: gr.Request) -> None:
        """End this user's occlusion map after its present forward call."""
        self.cancelled.add(str(request.session_hash))

    def _maps(self, asked: Request) -> tuple[str, Image.Image]:
        scene, caption, setting, cell = asked
        baseline, *changed = self.session.ask(
            scene, caption, [BASELINE] if setting.is_baseline else [BASELINE, setting]
        )
        figures = [map_of(baseline, "baseline", cell)]
        for answers in changed:
            figures.append(map_of(answers, setting.name, cell))
            figures.append(difference_of(baseline, answers, cell))
        return side_by_side(figures), scene.image(cell)

    def _asked(self, controls: Controls) -> Request:
        """The controls, checked: a request need not come from the page."""
        upload, method, place = controls[self.upload], controls[self.method], controls[self.place]
        if method not in self.methods:
            raise InputError(f"There is no method {short(method)}; choose one of {', '.join(self.methods)}.")
        if place not in PLACES:
            raise InputError(f"There is no place {short(place)}; choose one of {', '.join(PLACES)}.")
        setting = Setting(validate_lambda(controls[self.lam], "lambda"), method)
        scene = self.session.scene(Path(upload) if upload else str(controls[self.name]), int(controls[self.seed] or 0))
        return Request(scene, str(controls[self.caption] or ""), setting, PLACES.index(place))


def _take_name(name: str) -> tuple[str, None]:
    """An atlas image was chosen: its name is the caption, and no uploaded image takes its place."""
    return name, None

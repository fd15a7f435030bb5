"""Profiles: which cells and notebooks belong together, from `smoke` (CI, minutes) to `paper` (a GPU).

A profile is a YAML file in `profiles/`; what a model needs (layers, step sizes, thresholds) is in `hparams.yaml`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from langedit_core.chosen_layers import kept_layers
from langedit_core.devices import VARIABLE
from langedit_core.editors import METHODS, EditSettings, settings_for
from langedit_core.errors import RefusedInput, told, unknown
from langedit_core.languages import CORE, language
from langedit_core.models import canonical
from langedit_core.records import SPLITS, Deal
from langedit_core.results import Cell
from langedit_core.study import check_data
from langedit_core.xtreme_prompts import WORDINGS
from langedit_core.yaml_files import read_mapping

FOLDER = Path(__file__).parent / "profiles"
HPARAMS = Path(__file__).parent / "hparams.yaml"

DEFAULT = "default"  # entry of `hparams.yaml` for models without one


class Grid(BaseModel):
    """Cells that differ in data set, method, seed and `changes` of the settings; the rest are fields of `Cell`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[StrictInt, ...] = (0,)
    langs: tuple[str, ...] = CORE
    rounds: StrictInt = 1
    batch: StrictInt = 10
    parallel: StrictBool = False
    deal: Deal = "rounds"
    split: str = "edit"
    prefixes: StrictInt = 2
    prefix_tokens: StrictInt = 8
    corpus_limit: StrictInt | None = None
    track: StrictInt | None = None
    xtreme: StrictInt = 0
    xtreme_langs: tuple[str, ...] | None = None
    changes: tuple[dict, ...] = ({},)

    @field_validator("data", "methods", "seeds", "langs", "changes")
    @classmethod
    def _some(cls, given: tuple) -> tuple:
        if not given:
            raise ValueError("is empty, so there would be no cell; name at least one")
        return given

    @field_validator("data", "methods", "seeds")
    @classmethod
    def _each_once(cls, given: tuple) -> tuple:
        if twice := [one for i, one in enumerate(given) if one in given[:i]]:
            raise ValueError(f"names {twice[0]!r} twice")
        return given

    @field_validator("langs")
    @classmethod
    def _languages(cls, langs: tuple[str, ...]) -> tuple[str, ...]:
        for code in langs:
            language(code)
        return langs

    @field_validator("xtreme_langs")
    @classmethod
    def _worded(cls, langs: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for code in langs or ():
            if code not in WORDINGS:
                raise unknown("language of XTREME prompts", code, WORDINGS)
        return langs

    @field_validator("split")
    @classmethod
    def _split(cls, name: str) -> str:
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        return name


class Profile(BaseModel):
    """One size of the study.

    Attributes:
        models: The models it is run for, one after the other; a file with one says `model`.
        notebooks: Notebook stem -> parameters passed to it, beside PROFILE.
        grids: Name of a notebook's cell group -> its grids, of which one may be written without the list.
        partial: Reports show the finished cells and name the others, where all together take days.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=60, description="also the name of a folder of reports")
    description: str
    models: tuple[str, ...] = Field(min_length=1)
    device: str = "auto"
    notebooks: dict[str, dict[str, str | int | float | bool | None]] = Field(min_length=1)
    grids: dict[str, tuple[Grid, ...]] = Field(default_factory=dict)
    partial: StrictBool = False

    @model_validator(mode="before")
    @classmethod
    def _one_model_is_a_list_of_one(cls, content: object) -> object:
        if not isinstance(content, dict) or "model" not in content:
            return content
        if "models" in content:
            raise ValueError("a profile has either `model` or `models`, not both")
        return {name: x for name, x in content.items() if name != "model"} | {"models": (content["model"],)}

    @field_validator("grids", mode="before")
    @classmethod
    def _listed(cls, grids: object) -> object:
        if not isinstance(grids, dict):
            return grids
        return {name: grid if isinstance(grid, list | tuple) else (grid,) for name, grid in grids.items()}

    @property
    def model(self) -> str:
        """The only model, or the first of several."""
        return self.models[0]

    def folder(self, model: str) -> str:
        """Name of the folder for reports on `model`: one per profile, or per model where there are several."""
        return self.name if len(self.models) == 1 else f"{self.name}-{model.rsplit('/', 1)[-1].lower()}"

    def records(self, reports: str | Path) -> Path | None:
        """Where a partial profile keeps what it measured, beside its reports; None for others, which compute anew."""
        return Path(reports) / "records" if self.partial else None

    def cells(self, group: str, model: str | None = None) -> list[Cell]:
        """The cells of one group, in a fixed order: grid, data, method, seed.

        Raises:
            ValueError: Unknown group, data set or method.
        """
        if group not in self.grids:
            raise ValueError(
                f"profile {self.name!r} has no cells {group!r}; it has: {', '.join(self.grids)}. Take another profile"
            )
        return [cell for grid in self.grids[group] for cell in _cells(grid, canonical(model or self.model))]

    def all_cells(self, model: str | None = None) -> list[Cell]:
        """The cells of all groups, each once, seed by seed: a run that is stopped leaves comparisons of all methods."""
        cells = dict.fromkeys(cell for group in self.grids for cell in self.cells(group, model))
        return sorted(cells, key=lambda cell: cell.seed)


def reports_folder(given: str, profile: str, model: str = "") -> str:
    """Where a notebook puts its tables and figures: `given`, or else the profile's own folder, seen from `notebooks/`.

    Raises:
        ValueError, FileNotFoundError, RefusedInput: As `load_profile`.
    """
    chosen = load_profile(profile)
    return given or f"../reports/{chosen.folder(model or chosen.model)}"


def _cells(grid: Grid, model: str) -> list[Cell]:
    for name in grid.data:
        check_data(name)
    shared = grid.model_dump(exclude={"data", "methods", "seeds", "changes"})
    return [
        Cell(model=model, data=data, method=method, seed=seed, settings=settings, **shared)
        for data in grid.data
        for method in grid.methods
        for settings in [hyperparameters(model, method, **changes) for changes in grid.changes]
        for seed in grid.seeds
    ]


def load_profile(name: str | Path) -> Profile:
    """A profile by name, or a YAML file of your own; its device is that of `LANGEDIT_DEVICE`, where that is set.

    Raises:
        ValueError: Unknown profile.
        FileNotFoundError: There is no such YAML file.
        RefusedInput: No YAML, or fields that are unknown, missing or of a wrong kind; names file and fields.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        if path == Path(name):
            raise FileNotFoundError(f"there is no file {path}")
        raise unknown("profile", str(name), sorted(p.stem for p in FOLDER.glob("*.yaml")))
    content, _ = read_mapping(path)
    if isinstance(content, dict) and os.environ.get(VARIABLE):
        content = content | {"device": os.environ[VARIABLE]}
    try:
        profile = Profile.model_validate(content)
    except ValidationError as error:
        raise RefusedInput(f"{path}: {told(error)}; `langedit validate` names the lines") from error
    check_own_name(profile, path)
    return profile


def check_own_name(profile: Profile, path: Path) -> None:
    """Refuse a file of one's own that calls its profile as a shipped one, whose reports it would write over.

    Raises:
        RefusedInput: Says which.
    """
    shipped = FOLDER / f"{profile.name}.yaml"
    if shipped.is_file() and path.resolve() != shipped.resolve():
        raise RefusedInput(
            f"{path}: {profile.name!r} is the name of a shipped profile, and of its reports; take another name"
        )


def is_tuned(model: str) -> bool:
    """Whether `hparams.yaml` has an entry for this model."""
    return model in _tuned()


@functools.cache
def _hparams() -> dict:
    return yaml.safe_load(HPARAMS.read_text("utf-8"))


def _tuned() -> dict:
    return {model: entry for model, entry in _hparams().items() if model != DEFAULT}


def hyperparameters(model: str, method: str, **changes) -> EditSettings:
    """Settings of `method` for `model`: those of `hparams.yaml`, with `changes` on top as `merged` puts them there.

    A model that is not there gets the file's entry `default`, and is edited in the layers that causal tracing
    recommended for it (`chosen_layers.py`; ROME in the middle one of them) or that are given.

    Raises:
        ValueError: Unknown method, a change that it does not read, or no entry for this model, no layers kept for it
            and none in `changes`.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    tuned = _tuned()
    entry = tuned.get(model) or _hparams().get(DEFAULT, {})
    chosen = entry.get("all", {}) | entry.get(method, {})
    if model not in tuned and "layers" not in changes:
        layers = kept_layers(model)
        if layers is None:
            raise ValueError(
                f"{unknown('model in hparams.yaml', model, tuned)}. For a model of your own, let notebook 01 or "
                "`langedit trace --keep-layers` recommend layers, which are kept for it, or give them: --layers 5,6,7, "
                "in Python pass layers=(5, 6, 7)"
            )
        # ROME edits one layer: the middle one, as Gemma's entry has it too.
        chosen["layers"] = layers[len(layers) // 2 :][:1] if METHODS[method].get("one_by_one") else layers
    return settings_for(method, on=chosen, **changes)

"""Sequential multilingual knowledge editing: LangEdit, AlphaEdit and MEMIT on any supported Hugging Face model.

`load_model` → `prepare_editor` → `editor.edit(facts)`; the study's runs, tables and figures stand on the same calls.
"""

from langedit_core.adapters import save_model
from langedit_core.contexts import Contexts, sample_contexts
from langedit_core.covariance import KeyCovariance, cached_covariance, collect_covariance
from langedit_core.drift import Drift
from langedit_core.editors import METHODS, BatchReport, Editor, EditSettings, Update, settings_for
from langedit_core.errors import RefusedInput
from langedit_core.metrics import METRICS, ask, questions, score_probes
from langedit_core.models import ARCHITECTURES, EditableModel, inspect, load_model, wrap_model
from langedit_core.nullspace import NullSpace, Threshold, exact_null_space
from langedit_core.patches import Patch
from langedit_core.quickstart import prepare_editor
from langedit_core.records import Fact, FactSet, Probe
from langedit_core.solve import solve_update
from langedit_core.study import Cell, load_data, run_cells
from langedit_core.tokens import SubjectMerged
from langedit_core.values import ValueSettings, optimise_values
from langedit_core.xtreme import XTREME_METRICS, XtremeReport, load_task
from langedit_core.xtreme import evaluate as evaluate_xtreme

__all__ = [
    "ARCHITECTURES", "METHODS", "METRICS", "XTREME_METRICS", "BatchReport", "Cell", "Contexts", "Drift",
    "EditSettings", "EditableModel", "Editor", "Fact", "FactSet", "KeyCovariance", "NullSpace", "Patch", "Probe",
    "RefusedInput", "SubjectMerged", "Threshold", "Update", "ValueSettings", "XtremeReport", "ask",
    "cached_covariance", "collect_covariance", "evaluate_xtreme", "exact_null_space", "inspect", "load_data",
    "load_model", "load_task", "optimise_values", "prepare_editor", "questions", "run_cells", "sample_contexts",
    "save_model", "score_probes", "settings_for", "solve_update", "wrap_model",
]  # fmt: skip

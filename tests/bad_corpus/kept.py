"""What earlier runs left: results, records and caches. Nothing damaged or forged is used; most of it is made again."""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import conftest
import torch
import toy_study

from bad_corpus import Case, World
from langedit_core import capacity_study, chosen_layers, grid, study, subject_keys
from langedit_core.covariance import cached_covariance
from langedit_core.results import has_record, is_done, keep_record, record_path, results_folder
from langedit_core.storage import load_tensors, read_sealed, save_tensors, write_json, write_sealed

CELL = toy_study.cell(rounds=1)
OTHER = toy_study.cell(rounds=1, seed=1)
BOMB = lzma.compress(b"[" + b" " * 130_000_000, preset=0)  # 20 kilobytes


@functools.cache
def _model():
    return toy_study.model()


def _run(cell, root: Path) -> None:
    study.run_cells([cell], _model(), root, quiet=True)


@functools.cache
def _finished() -> tuple[tempfile.TemporaryDirectory, dict[str, str]]:
    """Results and records of two cells, the caches they filled, and the digests of the first one's results."""
    kept = tempfile.TemporaryDirectory(prefix="kept-")
    root = Path(kept.name)
    before = os.environ.get("HF_HOME")
    os.environ["HF_HOME"] = str(root / "cache")
    study.LOADERS[toy_study.DATA] = toy_study.load
    try:
        for cell in (CELL, OTHER):
            _run(cell, root / "results")
            keep_record(cell, root / "results", root / "records")
    finally:
        os.environ["HF_HOME"] = before
        del study.LOADERS[toy_study.DATA]
    return kept, toy_study.sealed(root / "results", CELL)


def _copied(world: World) -> Path:
    """Those results in the case's own folder, as `results`, `records` and `cache`."""
    shutil.copytree(_finished()[0].name, world.folder, dirs_exist_ok=True)
    world.patched.setitem(study.LOADERS, toy_study.DATA, toy_study.load)
    return world.folder / "results"


# --- results ----------------------------------------------------------------------------------------------------------


def _again(name: str, damage: Callable[[Path], object], outside: bool = False):
    """The cell is run again after a file was damaged, and has to end with the bytes of an undisturbed run."""

    def act(world: World) -> object:
        root = _copied(world)
        path = results_folder(CELL, root) / name
        damage(path)
        assert not is_done(CELL, root)
        far = {file: file.read_bytes() for file in (world.folder / "outside").glob("*")} if outside else {}
        _run(CELL, root)
        assert all(file.read_bytes() == content for file, content in far.items()), "written through a link"
        return is_done(CELL, root) and toy_study.sealed(root, CELL) == _finished()[1]

    return act


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


def _says(content: bytes | str | object) -> Callable[[Path], object]:
    if isinstance(content, bytes):
        return lambda path: path.write_bytes(content)
    return lambda path: path.write_text(content if isinstance(content, str) else json.dumps(content))


def _becomes_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def _becomes_a_link(path: Path) -> None:
    """To a file outside the results, which holds something else."""
    outside = path.parents[2] / "outside"
    outside.mkdir()
    (outside / path.name).write_bytes(path.read_bytes()[:-1] + b"!")
    path.unlink()
    path.symlink_to(outside / path.name)


def _forged(change: Callable[[dict], object]):
    """Factors with another content, whose checksum fits, and which the list of the cell's files knows."""

    def damage(path: Path) -> None:
        tensors, metadata = load_tensors(path)
        change(tensors)
        save_tensors(path, tensors, metadata)
        (path.parent / "done.json").unlink()

    return damage


def _of(name: str, value: Callable):
    return _forged(lambda tensors: tensors.update({name: value(tensors[name])}))


RESULTS = {
    "the list of files is cut": ("done.json", _truncate, "computed again where needed"),
    "the list of files is a list": ("done.json", _says([]), "computed again where needed"),
    "the list of files names none": ("done.json", _says({"files": {}}), ""),
    "the list of files is text": ("done.json", _says({"files": "all"}), "computed again where needed"),
    "the list of files is nothing": ("done.json", _says("null"), "computed again where needed"),
    "the list of files is nested without end": ("done.json", _says("[" * 100_000), "computed again where needed"),
    "measurements are cut": ("batch-000.json", _truncate, "batch 0 is computed again"),
    "measurements are HTML": ("batch-000.json", _says("<html>"), "batch 0 is computed again"),
    "measurements lead out of the folder": ("batch-000.json", _becomes_a_link, "batch 0 is computed again"),
    "factors are cut": ("batch-001.safetensors", _truncate, "batch 1 is computed again"),
    "factors have a flipped bit": ("batch-001.safetensors", _flip, "batch 1 is computed again"),
    "factors are empty": ("batch-001.safetensors", _says(b""), "batch 1 is computed again"),
    "factors are a pickle": ("batch-001.safetensors", _says(pickle.dumps({"1.left": 1})), "batch 1 is computed again"),
    "factors lead out of the folder": ("batch-001.safetensors", _becomes_a_link, "batch 1 is computed again"),
    "factors with NaN": ("batch-000.safetensors", _of("1.left", lambda x: x * float("nan")), "NaN or infinity"),
    "keys with infinity": ("batch-000.safetensors", _of("1.keys", lambda x: x / 0), "NaN or infinity"),
    "factors in half precision": ("batch-000.safetensors", _of("1.left", lambda x: x.half()), "batch 0 is computed"),
    "factors turned": ("batch-000.safetensors", _of("1.left", lambda x: x.T.contiguous()), "batch 0 is computed again"),
    "keys of another number": (
        "batch-000.safetensors", _of("1.keys", lambda x: x[:, 1:].contiguous()), "batch 0 is computed again"),
    "factors of another layer": (
        "batch-000.safetensors", _forged(lambda t: t.update({"3.left": t.pop("1.left")})), "batch 0 is computed again"),
    "factors named as a path": (
        "batch-000.safetensors", _forged(lambda t: t.update({"../evil": t.pop("1.left")})), "batch 0 is computed"),
    "a factor missing": ("batch-000.safetensors", _forged(lambda t: t.pop("2.right")), "batch 0 is computed again"),
    "the end is cut": ("final.json", _truncate, ""),
    "timings are cut": ("batch-000.time.json", _truncate, "batch 0 is computed again"),
    "timings are gone": ("batch-000.time.json", Path.unlink, ""),
    "timings with NaN": ("batch-001.time.json", _says('{"values": NaN}'), "NaN is no JSON"),
    "the environment is cut": ("environment.json", _truncate, "is not whole JSON"),
    "the environment is gone": ("environment.json", Path.unlink, ""),
    "prefixes of another form": (
        "contexts.json", lambda path: write_sealed(path, {"prefixes": {"en": 3}}), "prefixes are sampled again"),
    "prefixes that are a list": ("contexts.json", lambda path: write_sealed(path, []), "prefixes are sampled again"),
}  # fmt: skip
CASES = [
    Case(kind="results", name=name, act=_again(file, damage, damage is _becomes_a_link), says=says, treated=bool)
    for name, (file, damage, says) in RESULTS.items()
]

REFUSED_RESULTS = {
    "a folder in the place of measurements": (
        "batch-000.json",
        _becomes_a_folder,
        "a folder is in the place of this file: remove it",
    ),
    "a folder in the place of factors": (
        "batch-000.safetensors",
        _becomes_a_folder,
        "a folder is in the place of this file: remove it",
    ),
    "a description that is a list": ("inputs.json", _says([]), "begun with other inputs .*delete that folder"),
    "a description of nothing": ("inputs.json", _says({}), "begun with other inputs .*delete that folder"),
    "a description that is cut": ("inputs.json", _truncate, "inputs.json is not whole JSON .*delete it"),
    "a description nested without end": ("inputs.json", _says("[" * 100_000), "inputs.json is not whole JSON"),
}
CASES += [
    Case(kind="results", name=name, act=_again(file, damage), says=says)
    for name, (file, damage, says) in REFUSED_RESULTS.items()
]


def _renamed(world: World) -> object:
    """Whole results of another cell under this one's name."""
    root = _copied(world)
    shutil.rmtree(results_folder(CELL, root))
    results_folder(OTHER, root).rename(results_folder(CELL, root))
    assert not is_done(CELL, root)
    _run(CELL, root)


def _beside(pattern: str, damage: Callable[[Path], object]):
    """A file that cells share is damaged; the cell needs it, since its end is missing."""

    def act(world: World) -> object:
        root = _copied(world)
        (shared,) = [path for path in root.glob(pattern) if path.name in _shared_of(CELL)]
        damage(shared)
        (results_folder(CELL, root) / "final.json").unlink()
        _run(CELL, root)
        return toy_study.sealed(root, CELL) == _finished()[1]

    return act


@functools.cache
def _shared_of(cell) -> set[str]:
    """Names of the files beside the cells that this one reads."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "results")
        shutil.copytree(results_folder(cell, Path(_finished()[0].name, "results")), results_folder(cell, root))
        (results_folder(cell, root) / "final.json").unlink()
        _run(cell, root)
        return {path.name for path in root.iterdir() if path.is_file()}


def _drift(change: Callable[[dict, dict], object]):
    def damage(path: Path) -> None:
        tensors, metadata = load_tensors(path)
        change(tensors, metadata)
        save_tensors(path, tensors, metadata)

    return damage


ASKED = r"made again: .*before-"
READ = "the unedited model reads the neutral texts again"
SHARED = {
    "answers that are cut": ("before-*.json.xz", _truncate, ASKED),
    "answers that are no list": ("before-*.json.xz", lambda path: write_sealed(path, 3), ASKED),
    "answers with a field too many": (
        "before-*.json.xz", lambda path: write_sealed(path, [x | {"run": 1} for x in read_sealed(path)]), ASKED),
    "an answer too few": ("before-*.json.xz", lambda path: write_sealed(path, read_sealed(path)[1:]), ASKED),
    "a drift state with a flipped bit": ("drift-*.safetensors", _flip, READ),
    "a drift state that is a pickle": ("drift-*.safetensors", _says(pickle.dumps(3)), READ),
    "a drift state of another shape": (
        "drift-*.safetensors", _drift(lambda t, m: t.update(scores=t["scores"][:-1].contiguous())), READ),
    "a drift state with NaN": (
        "drift-*.safetensors", _drift(lambda t, m: t["scores"].fill_(float("nan"))), READ),
    "a drift state of unknown words": ("drift-*.safetensors", _drift(lambda t, m: t["words"].fill_(10**6)), READ),
    "a drift state without settings": ("drift-*.safetensors", _drift(lambda t, m: m.update(settings="[]")), READ),
    "a drift state of another model": (
        "drift-*.safetensors", _drift(lambda t, m: m.update(fingerprint="0" * 64)), READ),
}  # fmt: skip
CASES += [
    Case(kind="results", name="of another cell", act=_renamed, says="begun with other inputs .*delete that folder")
]
CASES += [
    Case(kind="results", name=name, act=_beside(pattern, damage), says=says, treated=bool)
    for name, (pattern, damage, says) in SHARED.items()
]

# --- records ----------------------------------------------------------------------------------------------------------


def _record(damage: Callable[[Path], object]):
    """A damaged record counts as none, and says why."""

    def act(world: World) -> object:
        _copied(world)
        path = record_path(CELL, world.folder / "records")
        assert has_record(CELL, path.parent)
        damage(path)
        return has_record(CELL, path.parent)

    return act


def _content(change: Callable[[dict], object]):
    def damage(path: Path) -> None:
        content = read_sealed(path)
        write_sealed(path, change(content) or content)

    return damage


def _altered(path: Path) -> None:
    text = lzma.decompress(path.read_bytes()).decode()
    assert text.count('"engine": 2') == 1
    path.write_bytes(lzma.compress(text.replace('"engine": 2', '"engine": 3').encode()))


def _with_nan(path: Path) -> None:
    """NaN where a number was, in a text whose checksum was taken after that."""
    content = read_sealed(path)
    content["final"]["rows"][0]["value"] = float("nan")
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": content}
    path.write_bytes(lzma.compress(json.dumps(sealed, ensure_ascii=False, sort_keys=True).encode()))


RECORDS = {
    "cut": (_truncate, "not used: CorruptFile"),
    "with a flipped bit": (_flip, "not used: CorruptFile"),
    "empty": (_says(b""), "not used: CorruptFile"),
    "not compressed": (lambda path: path.write_bytes(lzma.decompress(path.read_bytes())), "is not whole JSON"),
    "a bomb": (_says(BOMB), "more than 128,000,000 bytes when decompressed"),
    "a bomb of brackets": (_says(lzma.compress(b"[" * 1_000_000)), "is not whole JSON"),
    "altered": (_altered, "does not match its checksum"),
    "with NaN": (_with_nan, "NaN is no JSON"),
    "without a checksum": (lambda path: write_json(path, read_sealed(path)), "does not match its checksum"),
    "a folder": (_becomes_a_folder, "is not whole JSON .*directory"),
    "a pickle": (_says(lzma.compress(pickle.dumps({"inputs": 1}))), "is not whole JSON"),
    "that is a list": (_content(lambda content: [1]), "not used"),
    "that is a text": (_content(lambda content: "record"), "not used"),
    "without inputs": (_content(lambda content: content.pop("inputs") and None), "not used: KeyError"),
    "of another cell": (lambda path: shutil.copy(record_path(OTHER, path.parent), path), "belongs to another cell"),
    "without batches": (_content(lambda content: content.pop("batches") and None), "not used: KeyError"),
    "whose batches are numbers": (_content(lambda content: content.update(batches=[1, 2])), "not used"),
    "whose rows are nothing": (_content(lambda content: content["final"].update(rows=None)), "not used"),
    "whose rows lack the fact": (
        _content(lambda content: [row.pop("fact") for row in content["final"]["rows"]] and None), "not used"),
    "whose values are text": (
        _content(lambda content: content["final"].update(xtreme=[{"value": "much"}])), "not used"),
}  # fmt: skip
CASES += [
    Case(kind="records", name=name, act=_record(damage), says=says, treated=lambda used: used is False)
    for name, (damage, says) in RECORDS.items()
]


# --- caches -----------------------------------------------------------------------------------------------------------


def _covariance(damage: Callable[[Path], object]):
    """A covariance that is no good is computed again, to the bit."""

    def act(world: World) -> object:
        texts, folder = conftest.SENTENCES[:2], world.folder / "covariance"
        whole = cached_covariance(_model(), (1,), texts, folder=folder)[1]
        (path,) = folder.iterdir()
        damage(path)
        again = cached_covariance(_model(), (1,), texts, folder=folder)[1]
        return torch.equal(again.gram, whole.gram) and again.count == whole.count

    return act


def _sealed_tensors(change: Callable[[dict, dict], object]):
    def damage(path: Path) -> None:
        tensors, metadata = load_tensors(path)
        change(tensors, metadata)
        save_tensors(path, tensors, metadata)

    return damage


def _header(text: str):
    import safetensors.torch

    return lambda path: safetensors.torch.save_file({"gram": torch.ones(48, 48)}, path, {"langedit": text})


AGAIN = "covariance of layer 1 is computed again"
COVARIANCES = {
    "cut": (_truncate, AGAIN),
    "with a flipped bit": (_flip, AGAIN),
    "a pickle": (_says(pickle.dumps(torch.ones(2).tolist())), AGAIN),
    "of another width": (_sealed_tensors(lambda t, m: t.update(gram=torch.ones(2, 2).double())), AGAIN),
    "in single precision": (_sealed_tensors(lambda t, m: t.update(gram=t["gram"].float())), AGAIN),
    "of whole numbers": (_sealed_tensors(lambda t, m: t.update(gram=t["gram"].long())), AGAIN),
    "with NaN": (_sealed_tensors(lambda t, m: t["gram"].fill_(float("nan"))), "NaN or infinity"),
    "with infinity": (_sealed_tensors(lambda t, m: t["gram"].fill_(float("inf"))), "NaN or infinity"),
    "of no keys": (_sealed_tensors(lambda t, m: m.update(count="0")), AGAIN),
    "of fewer than no keys": (_sealed_tensors(lambda t, m: m.update(count="-5")), AGAIN),
    "of many keys, in words": (_sealed_tensors(lambda t, m: m.update(count="many")), AGAIN),
    "without a count": (_sealed_tensors(lambda t, m: m.clear()), AGAIN),
    "without numbers": (_sealed_tensors(lambda t, m: t.clear()), AGAIN),
    "whose header is a list": (_header("[]"), AGAIN),
    "whose header is no JSON": (_header("{"), AGAIN),
    "whose header is nested without end": (_header("[" * 100_000), AGAIN),
    "whose header has no checksum": (_header("{}"), AGAIN),
}
CASES += [
    Case(kind="caches", name=f"covariance {name}", act=_covariance(damage), says=says, treated=bool)
    for name, (damage, says) in COVARIANCES.items()
]
CASES += [
    Case(
        kind="caches", name="a folder in the place of a covariance", act=_covariance(_becomes_a_folder),
        says="a folder is in the place of this file: remove it",
    )
]  # fmt: skip


def _keys(damage: Callable[[Path], object]):
    def act(world: World) -> object:
        groups = [[(5, 6, 7), (5, 8)], [(9, 10)]]
        whole = subject_keys.cached_keys(_model(), groups, 1, world.folder)
        (path,) = (world.folder / "keys").iterdir()
        damage(path)
        return torch.equal(subject_keys.cached_keys(_model(), groups, 1, world.folder), whole)

    return act


KEYS = {
    "cut": (_truncate, "is not a whole safetensors file"),
    "under another name": (_sealed_tensors(lambda t, m: t.update(other=t.pop("keys"))), "KeyError"),
    "of another number": (
        _sealed_tensors(lambda t, m: t.update(keys=t["keys"][:, 1:].contiguous())),
        "not hold 3 keys",
    ),
    "in half precision": (_sealed_tensors(lambda t, m: t.update(keys=t["keys"].half())), "not hold 3 keys"),
    "with NaN": (_sealed_tensors(lambda t, m: t["keys"].fill_(float("nan"))), "not hold 3 keys"),
}
CASES += [
    Case(kind="caches", name=f"keys {name}", act=_keys(damage), says=says, treated=bool)
    for name, (damage, says) in KEYS.items()
]


def _capacity(damage: Callable[[Path], object]):
    def act(world: World) -> object:
        made = capacity_study.remembered(world.folder, "x", {}, lambda: [1])
        (path,) = (world.folder / "capacity").iterdir()
        damage(path)
        return capacity_study.remembered(world.folder, "x", {}, lambda: [1]) == made

    return act


CAPACITY = {"cut": (_truncate, "is not whole JSON"), "a bomb": (_says(BOMB), "more than 128,000,000 bytes")}
CASES += [
    Case(kind="caches", name=f"capacity {name}", act=_capacity(damage), says=says, treated=bool)
    for name, (damage, says) in CAPACITY.items()
]


def _layers(damage: Callable[[Path], object]):
    def act(world: World) -> object:
        path = chosen_layers.keep_layers("mine", [3, 4], "tracing")
        damage(path)
        return chosen_layers.kept_layers("mine")

    return act


NO_LAYERS = "holds no layers for mine; delete it and run notebook 01 again"
LAYERS = {
    "cut": (_truncate, "is not whole JSON .*delete it"),
    "altered": (lambda path: path.write_text(path.read_text().replace("4", "5")), "does not match its checksum"),
    "of another model": (lambda path: write_sealed(path, dict(model="yours", layers=[1], source="x")), NO_LAYERS),
    "as text": (lambda path: write_sealed(path, dict(model="mine", layers="34", source="x")), NO_LAYERS),
    "as fractions": (lambda path: write_sealed(path, dict(model="mine", layers=[3.5], source="x")), NO_LAYERS),
    "of none": (lambda path: write_sealed(path, dict(model="mine", layers=[], source="x")), NO_LAYERS),
    "that are a list alone": (lambda path: write_sealed(path, [3]), NO_LAYERS),
    "with NaN": (lambda path: path.write_text('{"sha256": NaN, "content": NaN}'), "NaN is no JSON"),
}  # fmt: skip
CASES += [
    Case(kind="caches", name=f"layers {name}", act=_layers(damage), says=says)
    for name, (damage, says) in LAYERS.items()
]


def _status(content: object):
    """What a job noted about itself is shown where it can be read, and passed over where it cannot."""

    def act(world: World) -> object:
        _says(content)(world.write(f"results/{CELL.slug}/job.json", "{}"))
        return grid.table(grid.states([CELL], world.folder / "results"))

    return act


JOBS = {"a list": [], "a number": "3", "cut": '{"state": "run', "HTML": "<html>"}
CASES += [
    Case(kind="caches", name=f"a job's note is {name}", act=_status(content), says="waiting", treated=bool)
    for name, content in JOBS.items()
]

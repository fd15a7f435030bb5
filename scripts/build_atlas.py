"""Builds langedit_core/data/atlas.json: eight relations from CLDR 47 in six languages, with false targets.

Every choice is a hash, so the file is the same on every machine:
target_i = truth_{i + n/2 mod n} with facts sorted by sha256(seed|relation|subject), then repaired by swaps.

    npm pack cldr-core@47.0.0 && tar xzf cldr-core-47.0.0.tgz -C /some/folder
    python scripts/build_atlas.py --cldr /some/folder        # needs babel 2.18.0, nothing else

Against the measured design (1,632 facts, 1,155 edits; 42 ambiguous cities):
- all 1,632 facts and all eight per-relation counts are reached;
- 1,258 edits, 374 held out: the design does not name the string it hashed; here it is the subject's code
  ("SE", "Berlin", "sv"), and its mod 4 = 0 part happens to be smaller than a quarter;
- neighbours come from the tune eighth only, so fewer facts have a neighbour with the same object;
- 41 ambiguous cities: CLDR's root names ("Asunción", "Marengo, Indiana") come before the zone id's last part;
- cldr-localenames-full is not needed: Babel carries the same names, and its short ones ("UK") are not used;
- currencies are named in English as in running text ("Swedish krona", CLDR's plural form "one");
- `ALSO_TRUE` keeps a second continent or subregion (Russia: Asia) from becoming a "false" object.
"""

from __future__ import annotations

import argparse
import json
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import babel
from babel.core import get_global
from babel.localedata import load

from langedit_core.records import digest, split_of

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "langedit_core" / "data" / "atlas.json"
CITIES = Path(__file__).with_name("atlas_cities.json")
TEMPLATES = Path(__file__).with_name("atlas_templates.json")
LANGS = ("en", "de", "nl", "es", "fr", "zh")
SEED = 0
CLDR_VERSION, BABEL_VERSION = "47", "2.18.0"
# Territories that geography also counts elsewhere: such an object would not be counterfactual.
ALSO_TRUE = {
    "continent": {
        "AM": ["150"], "AZ": ["150"], "CY": ["150"], "EG": ["142"], "ES": ["002"], "FR": ["005", "009"],
        "GE": ["150"], "ID": ["009"], "KZ": ["150"], "NL": ["003"], "PA": ["005"], "PT": ["002"],
        "RU": ["142"], "TL": ["009"], "TR": ["150"], "TT": ["005"], "US": ["009"], "YE": ["002"],
    },
    "subregion": {
        "AM": ["151"], "AZ": ["151"], "CY": ["039"], "EG": ["145"], "GE": ["151"], "ID": ["054"],
        "IR": ["145"], "KZ": ["151"], "MX": ["021"], "PA": ["005"], "RU": ["143"], "TL": ["054"],
        "TR": ["039"], "TT": ["005"], "AF": ["143"], "BZ": ["029"], "GY": ["029"], "SR": ["029"],
    },
}  # fmt: skip


@dataclass
class Triple:
    """One true statement between entities, and what would also be true or count as near."""

    relation: str
    subject: str
    truth: str
    also: set[str] = field(default_factory=set)  # further true objects, never a target
    region: str | None = None  # what "near" means for this relation
    continent: str | None = None

    @property
    def key(self) -> str:
        return self.subject.split("/", 1)[1]

    @property
    def id(self) -> str:
        return f"{self.relation}/{self.key}"


# ---------------------------------------------------------------- sources


@cache
def raw(lang: str) -> dict:
    """CLDR's own entries of one language, nothing inherited: a missing name is missing, not English."""
    return load(lang, merge_inherited=False)


def read_cldr(folder: Path | None) -> dict[str, dict]:
    """Supplemental tables of the npm package cldr-core, found anywhere below `folder`."""
    if babel.__version__ != BABEL_VERSION or get_global("cldr")["version"] != CLDR_VERSION:
        raise ValueError(f"babel {babel.__version__} is installed, the atlas needs babel {BABEL_VERSION}")
    found = sorted(folder.rglob("supplemental/territoryContainment.json")) if folder else []
    if not found:
        raise FileNotFoundError(f"no cldr-core below {folder}; unpack `npm pack cldr-core@47.0.0`, pass --cldr")
    tables = {}
    for name in ("territoryContainment", "territoryInfo", "languageData"):
        content = json.loads((found[0].parent / f"{name}.json").read_text("utf-8"))["supplemental"]
        if (version := content["version"]["_cldrVersion"]) != CLDR_VERSION:
            raise ValueError(f"{name}.json is of CLDR {version}, expected {CLDR_VERSION}")
        tables[name] = content[name]
    return tables


def population(cldr: dict[str, dict]) -> dict[str, float]:
    """Inhabitants of every territory."""
    return {code: float(entry["_population"]) for code, entry in cldr["territoryInfo"].items()}


def zones() -> dict[str, str]:
    """Canonical time zone → territory."""
    return {z: code for code, ids in get_global("territory_zones").items() for z in ids if len(code) == 2}


def city_names(zone: str) -> dict[str, str | None]:
    """Exemplar city of a zone per language; None where Chinese has no name.

    Locale files key renamed zones by their old id (Asia/Calcutta), so old ids are tried as well. Latin-script
    files leave a city out when it equals the default, which is CLDR's root name or the id's last part.
    """
    ids = [zone, *(old for old, new in get_global("zone_aliases").items() if new == zone)]

    def look(lang: str) -> str | None:
        table = raw(lang)["time_zones"]
        return next((table[i]["city"] for i in ids if "city" in table.get(i, {})), None)

    default = look("root") or zone.rsplit("/", 1)[1].replace("_", " ")
    return {lang: look(lang) or (None if lang == "zh" else default) for lang in LANGS}


# ---------------------------------------------------------------- true statements


def fold(text: str) -> str:
    """Case-, accent- and punctuation-insensitive form."""
    flat = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return " ".join("".join(c if c.isalnum() else "" if c in "'’" else " " for c in flat).split())


class World:
    """Entities with their names, true statements between them, and what was left out and why."""

    def __init__(self, folder: Path | None):
        cldr = read_cldr(folder)
        geonames = json.loads(CITIES.read_text("utf-8"))
        self.names: dict[str, dict[str, str]] = {}
        self.triples: list[Triple] = []
        self.excluded: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        containment = cldr["territoryContainment"]
        parts = {code: entry["_contains"] for code, entry in containment.items() if code.isdigit()}
        self.subregion = {member: code for code, inside in parts.items() for member in inside if len(member) == 2}
        continents = {s: c for c in ("002", "142", "150", "009", "003") for s in containment[c]["_contains"]}
        self.continent = continents | {"005": "005"}
        people = population(cldr)
        members = sorted(containment["UN"]["_contains"])
        self.members = [t for t in members if people[t] >= 10_000]
        self.excluded["*"]["UN member below 10,000 inhabitants"] = sorted({*members} - {*self.members})
        self._territories()
        self._cities(geonames)
        self._languages(cldr["languageData"])

    def add(self, relation: str, subject: str, truth: str, home: str | None, **more: object) -> None:
        """Records one statement whose subject lies in the territory `home`."""
        region = self.subregion.get(home or "")
        continent = self.continent.get(region or "")
        near = {"subregion": continent, "continent": None}.get(relation, region)
        self.triples.append(Triple(relation, subject, truth, region=near, continent=continent, **more))

    def name(self, entity: str, names: dict[str, str | None]) -> bool:
        """Registers an entity if all six languages name it."""
        if all(names.values()):
            self.names[entity] = names
            return True
        return False

    def _table(self, kind: str, table: str, code: str) -> bool:
        return self.name(f"{kind}/{code}", {lang: raw(lang)[table].get(code) for lang in LANGS})

    def _territories(self) -> None:
        for t in self.members:
            subject, left_out = f"territory/{t}", self.excluded
            assert self._table("territory", "territories", t)
            region = self.subregion[t]
            for relation, code in (("continent", self.continent[region]), ("subregion", region)):
                assert self._table("region", "territories", code)
                also = {f"region/{c}" for c in ALSO_TRUE[relation].get(t, ())}
                self.add(relation, subject, f"region/{code}", t, also=also)
            money = get_global("territory_currencies")[t]
            tenders = [code for code, _, end, tender in money if tender and end is None]
            if len(tenders) > 1:
                left_out["currency"]["several legal tenders"].append(t)
                left_out["currency_iso"]["several legal tenders"].append(t)
            else:
                code = tenders[0]
                names = {lang: raw(lang)["currency_names"].get(code) for lang in LANGS}
                names["en"] = raw("en")["currency_names_plural"][code]["one"]
                assert self.name(f"currency/{code}", names)
                self.names[f"code/{code}"] = dict.fromkeys(LANGS, code)
                self.add("currency", subject, f"currency/{code}", t)
                self.add("currency_iso", subject, f"code/{code}", t)
            spoken = get_global("territory_languages")[t]
            full = ("official", "de_facto_official")
            official = [k for k, v in spoken.items() if v["official_status"] in full]
            if len(official) != 1:
                left_out["official_language"]["not exactly one official language"].append(t)
            elif not self._table("language", "languages", official[0]):
                left_out["official_language"]["language without a name in all six"].append(t)
            else:
                widely = [k for k, v in spoken.items() if v["official_status"] or v["population_percent"] >= 5]
                also = {f"language/{k}" for k in widely}
                self.add("official_language", subject, f"language/{official[0]}", t, also=also)

    def _cities(self, geonames: dict) -> None:
        same = "city named like its country"
        for zone, t in sorted(zones().items()):
            if t not in self.members:
                continue
            entity, territory, names = f"city/{zone.rsplit('/', 1)[1]}", f"territory/{t}", city_names(zone)
            capital = geonames["capitals"].get(t) == zone
            if any(names[lang] and fold(names[lang]) == fold(self.names[territory][lang]) for lang in LANGS):
                for relation in ("city_territory", *(("capital",) if capital else ())):
                    self.excluded[relation][same].append(zone)
                continue
            if self.names.get(entity, names) != names:
                raise ValueError(f"two zones end in {entity!r}; make the entity's key longer")
            complete = self.name(entity, names)
            if capital and complete:
                self.add("capital", territory, entity, t)
            if not complete:
                self.excluded["city_territory"]["no name in all six languages"].append(zone)
            elif zone in geonames["ambiguous"]:
                self.excluded["city_territory"]["a city of this name in another country"].append(zone)
            elif zone not in geonames["cities"]:
                self.excluded["city_territory"]["not a city of 15,000 people in GeoNames"].append(zone)
            else:
                self.add("city_territory", entity, territory, t)
        have = {x.subject for x in self.triples if x.relation == "capital"}
        tried = {f"territory/{zones()[z]}" for z in self.excluded["capital"][same]}
        rest = [t for t in self.members if f"territory/{t}" not in have | tried]
        self.excluded["capital"]["capital is not the city of a CLDR time zone"] = rest

    def _languages(self, data: dict[str, dict]) -> None:
        left_out = self.excluded["language_script"]
        likely = get_global("likely_subtags")
        for code in sorted(k for k in data if "-" not in k):
            if code not in raw("en")["languages"]:
                continue
            primary = data[code].get("_scripts", [])
            scripts = {*primary, *data.get(f"{code}-alt-secondary", {}).get("_scripts", [])}
            if len(scripts) != 1 or not primary:
                left_out["not exactly one script"].append(code)
            elif scripts == {"Hans"}:
                left_out["script is a variant of Han, named only 'Simplified'"].append(code)
            elif not (self._table("language", "languages", code) and self._table("script", "scripts", primary[0])):
                left_out["no name in all six languages"].append(code)
            else:
                home = likely.get(code, "").rsplit("_", 1)[-1]
                self.add("language_script", f"language/{code}", f"script/{primary[0]}", home)


# ---------------------------------------------------------------- false targets, neighbours, what follows


def leaks(subject: str, answer: str, lang: str) -> bool:
    """Whether the subject's name gives the answer away: a shared word beginning or Chinese bigram."""
    if lang == "zh":
        return any(answer[i : i + 2] in subject for i in range(len(answer) - 1))
    for a in fold(subject).split():
        for b in fold(answer).split():
            n = min(4, len(a), len(b))
            if n >= 3 and a[:n] == b[:n]:
                return True
    return False


def allowed(triple: Triple, target: str, names: dict[str, dict[str, str]]) -> bool:
    """Whether `target` is false, not nested with the truth, and not given away by the subject."""
    if target == triple.truth or target in triple.also or target == triple.subject:
        return False
    if triple.relation == "currency_iso" and target.split("/")[1][:2] == triple.key:
        return False
    for lang in LANGS:
        subject, truth, new = (names[e][lang] for e in (triple.subject, triple.truth, target))
        if fold(new) in fold(truth) or fold(truth) in fold(new) or leaks(subject, new, lang):
            return False
    return True


def derange(triples: list[Triple], names: dict[str, dict[str, str]]) -> dict[str, str]:
    """Fact id → false object; keeps how often each object occurs.

    Raises:
        ValueError: If swapping pairs cannot make every target false.
    """
    ordered = sorted(triples, key=lambda x: digest(str(SEED), x.relation, x.subject))
    n = len(ordered)
    targets = [ordered[(i + n // 2) % n].truth for i in range(n)]
    for i in range(n):
        if allowed(ordered[i], targets[i], names):
            continue
        for j in ((i + k) % n for k in range(1, n)):
            # A swap may also mend j; it must never break a position that was fine.
            if allowed(ordered[i], targets[j], names) and allowed(ordered[j], targets[i], names):
                targets[i], targets[j] = targets[j], targets[i]
                break
        else:
            raise ValueError(f"no false target for {ordered[i].id}; change SEED")
    return {x.id: target for x, target in zip(ordered, targets, strict=True)}


def choose_scripts(triples: list[Triple], names: dict[str, dict[str, str]]) -> dict[str, str]:
    """Hash-chosen targets for language → script: three quarters Latin, so it cannot be deranged."""
    common = sorted(s for s, n in Counter(x.truth for x in triples).items() if n >= 3)

    def choose(x: Triple) -> str:
        fine = (script for script in common if allowed(x, script, names))
        return min(fine, key=lambda script: digest(str(SEED), x.relation, x.subject, script))

    return {x.id: choose(x) for x in triples}


def neighbours(triple: Triple, target: str, pool: list[Triple]) -> dict[str, str]:
    """Kind → id of one fact that the edit must leave alone; a kind without candidates is absent."""
    others = [x for x in pool if x.subject != triple.subject and x.truth != target]
    away = [x for x in others if x.truth != triple.truth]
    kinds = {
        "same": [x for x in others if x.truth == triple.truth],
        "near": [x for x in away if triple.region and x.region == triple.region],
        "far": [x for x in away if x.continent != triple.continent],
    }
    return {
        kind: min((x.id for x in found), key=lambda i: digest(str(SEED), "neighbour", kind, triple.id, i))
        for kind, found in kinds.items()
        if found
    }


def follows(triple: Triple, target: str, continent: dict[str, str]) -> list[list[str]]:
    """What must hold once `target` does: [relation, subject, answer] in entities."""
    new, subject = target.split("/", 1)[1], triple.subject
    asked = new if triple.relation == "capital" else triple.key
    if split_of(asked) == "corpus":  # C₀ protects what is said about it, so the question would be unfair
        return []
    if triple.relation == "currency":
        return [["currency_iso", subject, f"code/{new}"]]
    if triple.relation == "currency_iso":
        return [["currency", subject, f"currency/{new}"]]
    if triple.relation == "capital":
        return [["city_territory", target, subject]]
    if triple.relation == "subregion" and continent[new] != triple.continent:
        return [["continent", subject, f"region/{continent[new]}"]]
    return []


# ---------------------------------------------------------------- the file


def build(folder: Path | None) -> str:
    """The atlas as JSON text, one entity and one fact per line."""
    world = World(folder)
    templates = json.loads(TEMPLATES.read_text("utf-8"))
    by_relation: dict[str, list[Triple]] = defaultdict(list)
    for triple in world.triples:
        by_relation[triple.relation].append(triple)
    facts = []
    for relation, triples in sorted(by_relation.items()):
        parts: dict[str, list[Triple]] = defaultdict(list)
        for x in triples:
            parts["edit" if split_of(x.key) == "edit" else "held out"].append(x)
        # Edits and held-out facts are deranged apart: the edits' objects are exactly their true objects.
        choose = choose_scripts if relation == "language_script" else derange
        targets = {k: v for part in parts.values() for k, v in choose(part, world.names).items()}
        pool = [x for x in triples if split_of(x.key) == "tune"]
        for x in triples:
            target = targets[x.id]
            row = {"id": x.id, "subject": x.subject, "truth": x.truth, "target": target}
            row["neighbours"] = neighbours(x, target, pool)
            row["portability"] = follows(x, target, world.continent)
            facts.append(row)
    facts.sort(key=lambda row: row["id"])
    used = {row[k] for row in facts for k in ("subject", "truth", "target")}
    used |= {entity for row in facts for entry in row["portability"] for entity in entry[1:]}
    entities = {e: world.names[e] for e in sorted(used)}
    tally = Counter((row["id"].split("/")[0], split_of(row["id"].split("/", 1)[1])) for row in facts)
    counts = {r: {s: tally[r, s] for s in ("corpus", "edit", "tune")} for r in sorted(by_relation)}
    header = {
        "seed": SEED,
        "languages": list(LANGS),
        "sources": [
            {"name": "babel", "version": BABEL_VERSION, "data": "CLDR 47 names", "licence": "Unicode-3.0"},
            {"name": "cldr-core", "version": "47.0.0", "data": "CLDR 47 tables", "licence": "Unicode-3.0"},
            {k: v for k, v in json.loads(CITIES.read_text("utf-8")).items() if isinstance(v, str)}
            | {"name": "GeoNames", "data": "which zone cities are capitals or unmistakable cities"},
        ],
        "split": "int(sha256(key)[:8], 16) mod 8: 0 corpus, 4 tune, else edit; key: id after relation",
        "counts": counts,
        "total": {s: sum(c[s] for c in counts.values()) for s in ("corpus", "edit", "tune")},
        "excluded": {r: {why: sorted(which) for why, which in e.items()} for r, e in world.excluded.items()},
        "templates": "no native speaker has reviewed them",
    }
    return render(header, templates, entities, facts)


def line(value: object) -> str:
    """One JSON value on one line."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def render(header: dict, templates: dict, entities: dict, facts: list[dict]) -> str:
    """Sections in a fixed order; entities and facts one per line, so that a change shows as a short diff."""
    header = header | {"sha256": digest(line([templates, entities, facts]))}

    def block(items: list[str]) -> str:
        return "\n" + ",\n".join(items) + "\n"

    def table(mapping: dict) -> str:
        return "{" + block([f"{line(k)}:{line(mapping[k])}" for k in sorted(mapping)]) + "}"

    parts = [
        f'"entities":{table(entities)}',
        f'"facts":[{block([line(row) for row in facts])}]',
        f'"header":{table(header)}',
        f'"templates":{table(templates)}',
    ]
    return "{" + block(parts) + "}\n"


def main() -> None:
    """Command line: builds the file, or with --check compares it with the one in the package."""
    parser = argparse.ArgumentParser(description="Build langedit_core/data/atlas.json from CLDR.")
    parser.add_argument("--cldr", type=Path, help="folder below which npm's cldr-core 47.0.0 is unpacked")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the packaged file differs")
    args = parser.parse_args()
    text = build(args.cldr)
    if args.check:
        if OUTPUT.read_text("utf-8") != text:
            raise SystemExit(f"{OUTPUT.name} differs from what the sources give; run without --check")
        return
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(text, "utf-8")
    header = json.loads(text)["header"]
    print(f"{len(text.encode()):,} bytes; {line(header['total'])}")


if __name__ == "__main__":
    main()

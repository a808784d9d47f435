"""Ordinary text in eight kinds, as people have it: written by us, taken from the demo text, or from what is installed."""

import random
import sysconfig
from pathlib import Path

_SENTENCES = {
    "german": (
        "Am Morgen lag noch Nebel über dem Fluss.|Die Bäckerin hatte den Teig schon am Abend angesetzt.|Wer früh kam, "
        "bekam das Brot noch warm.|Im Frühjahr steigt das Wasser bis an die unterste Stufe.|Der Lehrer fragte, warum der Mond "
        "seine Form ändert.|Niemand wusste eine Antwort, die allen gefiel.|Das Dorf hat eine Kirche, zwei Gasthöfe und keinen "
        "Bahnhof.|Mit dem Rad braucht man bis zur Stadt eine halbe Stunde.|Er reparierte die Uhr, obwohl sie seit Jahren "
        "stillstand.|Abends sitzen sie vor dem Haus und reden über das Wetter.|Die Kinder sammeln Steine, die wie Tiere "
        "aussehen.|Einmal im Jahr kommt ein Zirkus."
    ),
    "french": (
        "Le matin, le marché s'installe sur la place.|La boulangère connaît le nom de tous ses clients.|Il pleuvait si fort que "
        "la route avait disparu.|Ma grand-mère gardait ses lettres dans une boîte bleue.|Le train part à sept heures, s'il "
        "part.|On apprend à nager avant d'apprendre à lire.|Le chat dort sur le piano que personne ne joue.|Chaque automne, "
        "les voisins pressent leurs pommes ensemble.|Elle a traversé l'île à pied en trois jours.|Le phare s'éteint quand le "
        "soleil se lève.|Nous avons planté un figuier contre le mur.|Personne ne se souvient du premier maire."
    ),
    "japanese": (
        "朝の市場には新しい魚が並ぶ。|祖母は毎日庭の花に水をやった。|電車は時間どおりに来なかった。|川の向こうに小さな神社がある。|"
        "彼は古い時計を直すのが得意だ。|雨の日は図書館で本を読む。|山の上から海がよく見える。|子供たちは石を集めて遊んでいた。|"
        "夕方になると鐘の音が聞こえる。|この町には駅が一つしかない。|秋には柿の実が赤くなる。|手紙は三日後に届いた。"
    ),
}


def _essays(language: str, n: int) -> list[str]:
    """Documents of this language: each some sentences in an order of its own, with numbers that no other has."""
    sentences, chooser = _SENTENCES[language].split("|"), random.Random(language)
    space = "" if language == "japanese" else " "
    essays = []
    for i in range(n):
        chosen = chooser.sample(sentences, 8)
        essays.append("\n\n".join(f"{i * 7 + j}. {space.join(chosen[j : j + 4])}" for j in (0, 4)) + "\n")
    return essays


_PAGE = """<!DOCTYPE html><html><head><title>{title}</title><style>body {{}}</style></head><body><nav><a href="/">Home</a></nav>
<main><h1>{title}</h1>{paragraphs}</main><footer>All rights reserved</footer></body></html>"""


def write_ordinary_text(folder: Path, speeches: list[Path]) -> dict[str, Path]:
    """Write eight kinds of text below a folder; returns where each is."""
    kinds: dict[str, Path] = {}

    def write(kind: str, documents: dict[str, str]) -> None:
        kinds[kind] = folder / kind
        kinds[kind].mkdir(parents=True)
        for name, text in documents.items():
            (kinds[kind] / name).write_text(text, encoding="utf-8")

    prose = [path.read_text(encoding="utf-8")[1_000:3_000] for path in speeches[:40]]
    write("prose", {f"{i:02d}.txt": text for i, text in enumerate(prose)})
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    small = [path for path in sorted(stdlib.glob("*.py")) if path.stat().st_size < 8_000][:40]
    modules = [path.read_text(encoding="utf-8") for path in small]
    write("code", {f"{i:02d}.py": text for i, text in enumerate(modules) if text.strip()})
    documentation = [text.split('"""')[1] for text in modules if text.count('"""') > 1]
    write("documentation", {f"{i:02d}.md": f"# Page {i}\n{text}" for i, text in enumerate(documentation)})
    for language in _SENTENCES:
        write(language, {f"{i:02d}.txt": text for i, text in enumerate(_essays(language, 40))})
    pages = {}
    for i, text in enumerate(prose):
        paragraphs = "".join(f"<p>{part}</p>" for part in text.split("\n") if part.strip())
        pages[f"{i:02d}.html"] = _PAGE.format(title=f"Page {i}", paragraphs=paragraphs)
    write("html", pages)
    write(
        "one_large_file",
        {"book.txt": "\n\n".join(path.read_text(encoding="utf-8") for path in speeches[40:44])},
    )
    return kinds

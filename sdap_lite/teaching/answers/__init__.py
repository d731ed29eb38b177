"""What a right answer to each exercise is, and what the typical wrong ones have got wrong: a module a chapter.

One function an exercise: from an answer to None, or to a sentence. It works out the right answer
with the library on small data of its own, and each typical mistake by making it.
:func:`sdap_lite.exercises.check` calls them.
"""

from . import chapter_01, chapter_02, chapter_03, chapter_04, chapter_05, chapter_06, chapter_07, chapter_08, chapter_09, chapter_10, chapter_11, chapter_12

__all__ = [
    "chapter_01",
    "chapter_02",
    "chapter_03",
    "chapter_04",
    "chapter_05",
    "chapter_06",
    "chapter_07",
    "chapter_08",
    "chapter_09",
    "chapter_10",
    "chapter_11",
    "chapter_12",
]

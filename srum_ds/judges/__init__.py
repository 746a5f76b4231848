"""Judges of pictures: whoever can be asked about an image file, over HTTP, in this process, or from a record."""

from srum_ds.judges.loading import load_judge
from srum_ds.judges.protocol import Ask, JudgeSettings, PictureJudge, Question, Reply
from srum_ds.judges.store import Record, ReplyStore, ask_missing, read_store

__all__ = [
    "Ask",
    "JudgeSettings",
    "PictureJudge",
    "Question",
    "Record",
    "Reply",
    "ReplyStore",
    "ask_missing",
    "load_judge",
    "read_store",
]

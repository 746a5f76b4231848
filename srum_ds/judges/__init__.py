"""Judges of pictures: whoever can be asked about an image file, over HTTP, in this process, or from a record."""

from srum_ds.judges.protocol import Ask, JudgeSettings, PictureJudge, Question, Reply

__all__ = ["Ask", "JudgeSettings", "PictureJudge", "Question", "Reply"]

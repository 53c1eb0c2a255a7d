"""Frozen teachers: a vision tower with taps and, where there is one, its text tower.

A teacher's vision tower is a ``VisionEncoder``, whatever format its weights came in, so that taps and the
student's initialisation have one code path.
"""

from cgspn.teachers.base import Teacher
from cgspn.teachers.captions import CaptionTable
from cgspn.teachers.checkpoint import CheckpointTeacher
from cgspn.teachers.open_clip_models import OpenClipTeacher
from cgspn.teachers.timm_models import TimmTeacher
from cgspn.teachers.transformers_models import TransformersTeacher

__all__ = [
    "CaptionTable",
    "CheckpointTeacher",
    "OpenClipTeacher",
    "Teacher",
    "TimmTeacher",
    "TransformersTeacher",
]

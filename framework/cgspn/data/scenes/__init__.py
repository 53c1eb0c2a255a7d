"""Scenes: pictures that the project draws itself, with ADE20K-150 label maps and captions."""

from cgspn.data.scenes.classes import CLASSES
from cgspn.data.scenes.scene import Scene, draw_scene

__all__ = ["CLASSES", "Scene", "draw_scene"]

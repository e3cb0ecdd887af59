"""What each family of models brings to the training loop, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepose.training.families.course import Course
from edgepose.training.families.qrpose import QrPoseCourse
from edgepose.training.families.querypose import QueryPoseCourse
from edgepose.training.families.sharpose import SharPoseCourse
from edgepose.training.models import family_of
from edgepose.training.sections import Recipe

FAMILIES: Mapping[str, type[Course[Any, Any]]] = {
    "qrpose": QrPoseCourse,
    "querypose": QueryPoseCourse,
    "sharpose": SharPoseCourse,
}


def course_of(recipe: Recipe, rank: int = 0) -> Course[Any, Any]:
    """How the recipe's model is trained in the process of that rank."""
    return FAMILIES[family_of(recipe.model)](recipe, rank)

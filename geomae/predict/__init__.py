"""Answers for anybody's photos, one or millions: `python -m geomae.predict photo.jpg folder/ --model PATH`."""

from geomae.predict.formats import FORMATS, write_answers
from geomae.predict.geojson import to_geojson
from geomae.predict.kml import to_kml
from geomae.predict.parts import AnswerParts
from geomae.predict.photo_list import list_photos

__all__ = ["FORMATS", "AnswerParts", "list_photos", "to_geojson", "to_kml", "write_answers"]

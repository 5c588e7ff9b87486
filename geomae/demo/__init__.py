"""The demo page, `python app.py --model PATH`: a photo, a world map, and how sure the model is. Needs gradio."""

from geomae.demo.answers import Geolocator, PhotoAnswer
from geomae.demo.arguments import DemoArguments
from geomae.demo.game import GamePhotos
from geomae.demo.hidden_patches import Reconstructor
from geomae.demo.ports import find_port

__all__ = ["DemoArguments", "GamePhotos", "Geolocator", "PhotoAnswer", "Reconstructor", "find_port"]

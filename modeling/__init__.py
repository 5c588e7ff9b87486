"""The Hub: every model of GeoMAE, flat and self-contained, as it is copied beside every checkpoint.

Importing this package tells transformers' Auto classes about the models.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from .configuration_geobaseline import GeoBaselineConfig
from .configuration_geomae import GeoMAEConfig
from .encoder_weights import LoadReport, export_encoder, load_embedder, load_encoder_weights, load_geolocator
from .geodesy import EARTH_RADIUS_KM, great_circle_km, to_degrees, to_unit_vectors
from .geolocation_head import HEADS, GeolocationHead, GeolocationOutput, SphereHead, TanhHead
from .modeling_geobaseline import GeoBaselineForGeolocation
from .modeling_geomae import (
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
    GeoMAEForPreTrainingOutput,
    GeoMAEModel,
    GeoMAEModelOutput,
    GeoMAEReconstruction,
)

__all__ = [
    "EARTH_RADIUS_KM",
    "HEADS",
    "GeoBaselineConfig",
    "GeoBaselineForGeolocation",
    "GeoMAEConfig",
    "GeoMAEForGeolocation",
    "GeoMAEForPreTraining",
    "GeoMAEForPreTrainingOutput",
    "GeoMAEModel",
    "GeoMAEModelOutput",
    "GeoMAEReconstruction",
    "GeolocationHead",
    "GeolocationOutput",
    "LoadReport",
    "SphereHead",
    "TanhHead",
    "export_encoder",
    "great_circle_km",
    "load_embedder",
    "load_encoder_weights",
    "load_geolocator",
    "to_degrees",
    "to_unit_vectors",
]

AutoConfig.register("geomae", GeoMAEConfig, exist_ok=True)
AutoConfig.register("geobaseline", GeoBaselineConfig, exist_ok=True)
AutoModel.register(GeoMAEConfig, GeoMAEModel, exist_ok=True)
AutoModelForPreTraining.register(GeoMAEConfig, GeoMAEForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(GeoMAEConfig, GeoMAEForGeolocation, exist_ok=True)
AutoModelForImageClassification.register(GeoBaselineConfig, GeoBaselineForGeolocation, exist_ok=True)

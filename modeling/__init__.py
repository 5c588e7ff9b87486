"""The Hub: every model of GeoMAE, flat and self-contained, as it is copied beside every checkpoint.

Importing this package tells transformers' Auto classes about the models.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_geobaseline import GeoBaselineConfig
from .configuration_geolocation_head import DECODINGS, HEAD_TYPES, GeolocationHeadConfig
from .configuration_geomae import GeoMAEConfig
from .encoder_weights import (
    LoadReport,
    export_encoder,
    load_autoencoder,
    load_embedder,
    load_encoder_weights,
    load_geolocator,
)
from .geocell_tensors import GeocellTensors
from .geodesy import EARTH_RADIUS_KM, great_circle_km, to_degrees, to_unit_vectors
from .geolocation_head import GeolocationHead, GeolocationOutput, SphereHead, TanhHead
from .heads import HEADS, build_head
from .image_processing_geomae import GeoMAEImageProcessor
from .image_to_coordinates import TASK, ImageToCoordinatesPipeline
from .modeling_geobaseline import GeoBaselineForGeolocation
from .modeling_geomae import (
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
    GeoMAEForPreTrainingOutput,
    GeoMAEModel,
    GeoMAEModelOutput,
    GeoMAEReconstruction,
)
from .posterior import PosteriorSpread, vmf_log_density
from .posterior_heads import GeocellsHead, HybridHead, PosteriorHead
from .vmf_mixture_head import VMFMixtureHead

__all__ = [
    "DECODINGS",
    "EARTH_RADIUS_KM",
    "HEADS",
    "HEAD_TYPES",
    "GeoBaselineConfig",
    "GeoBaselineForGeolocation",
    "GeoMAEConfig",
    "GeoMAEForGeolocation",
    "GeoMAEForPreTraining",
    "GeoMAEForPreTrainingOutput",
    "GeoMAEImageProcessor",
    "GeoMAEModel",
    "GeoMAEModelOutput",
    "GeoMAEReconstruction",
    "GeocellTensors",
    "GeocellsHead",
    "GeolocationHead",
    "GeolocationHeadConfig",
    "GeolocationOutput",
    "HybridHead",
    "ImageToCoordinatesPipeline",
    "LoadReport",
    "PosteriorHead",
    "PosteriorSpread",
    "SphereHead",
    "TanhHead",
    "VMFMixtureHead",
    "build_head",
    "export_encoder",
    "great_circle_km",
    "load_autoencoder",
    "load_embedder",
    "load_encoder_weights",
    "load_geolocator",
    "to_degrees",
    "to_unit_vectors",
    "vmf_log_density",
]

AutoConfig.register("geomae", GeoMAEConfig, exist_ok=True)
AutoConfig.register("geobaseline", GeoBaselineConfig, exist_ok=True)
AutoModel.register(GeoMAEConfig, GeoMAEModel, exist_ok=True)
AutoModelForPreTraining.register(GeoMAEConfig, GeoMAEForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(GeoMAEConfig, GeoMAEForGeolocation, exist_ok=True)
AutoModelForImageClassification.register(GeoBaselineConfig, GeoBaselineForGeolocation, exist_ok=True)
for _config in (GeoMAEConfig, GeoBaselineConfig):  # under both names of a backend: the one missing would be warned of
    AutoImageProcessor.register(_config, GeoMAEImageProcessor, GeoMAEImageProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    TASK, ImageToCoordinatesPipeline, pt_model=AutoModelForImageClassification, type="image"
)

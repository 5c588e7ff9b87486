"""Geocells: where on Earth a classifier's classes are, and which of them a point belongs to.

A light import, without torch: training, evaluation and reports all read geocells. `s2geometry` is needed to build some.
"""

from geomae.geocells.blueprint import Blueprint
from geomae.geocells.build import LEAST_SPREAD_KM, BuiltGeocells, build_geocells
from geomae.geocells.ceiling import CEILING_KM, judge_ceiling
from geomae.geocells.kmeans import cluster_on_sphere, draft_by_kmeans
from geomae.geocells.partitions import Geocells, Partition, nearest_centroids
from geomae.geocells.s2 import draft_by_s2
from geomae.geocells.storage import read_geocells, write_geocells
from geomae.geocells.voronoi import voronoi_areas_km2

__all__ = [
    "CEILING_KM",
    "LEAST_SPREAD_KM",
    "Blueprint",
    "BuiltGeocells",
    "Geocells",
    "Partition",
    "build_geocells",
    "cluster_on_sphere",
    "draft_by_kmeans",
    "draft_by_s2",
    "judge_ceiling",
    "nearest_centroids",
    "read_geocells",
    "voronoi_areas_km2",
    "write_geocells",
]

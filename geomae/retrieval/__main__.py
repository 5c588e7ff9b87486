"""Answer with the places of similar photos: embed photos into an index, then search it for those of a test set.

    python -m geomae.retrieval index --checkpoint outputs/demo/geolocator --photos outputs/demo/data \
        --output_dir outputs/demo/index
    python -m geomae.retrieval search --index outputs/demo/index --checkpoint outputs/demo/geolocator \
        --test_set outputs/demo/data --validation outputs/demo/data --output_dir outputs/demo/retrieval

Both take a YAML file before their options, run under `accelerate launch -m`, and list their options with --help.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from geomae.checkpoints import load_embedder
from geomae.data import PhotoCollator, load_photos
from geomae.errors import ConfigError, GeoMAEError
from geomae.evaluation import (
    TestSet,
    describe_run,
    describe_test_set,
    shown_path,
)
from geomae.evaluation.photos_to_judge import load_photos_to_judge, with_labels
from geomae.evaluation.predict import is_main_process
from geomae.evaluation.verdict import judge_and_write, read_baseline_coordinates
from geomae.provenance import find_versions
from geomae.retrieval.answering import choose_parameters, gather_evidence, predict_places
from geomae.retrieval.arguments import IndexArguments, SearchArguments
from geomae.retrieval.choosing import Choice, refuse_test_photos
from geomae.retrieval.embedding import Embeddings, embed_photos, embedder_digest, refuse_model_without_cells
from geomae.retrieval.index_folder import (
    PhotoPlaces,
    RetrievalIndex,
    read_index,
    read_record,
    refuse_other_embedder,
    write_index,
)
from geomae.retrieval.neighbours import refuse_too_many_neighbours
from geomae.retrieval.vector_index import build_vector_index, choose_kind, import_faiss
from geomae.training.config_file import parse_config


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"index": make_index, "search": search}
    if not words or words[0] not in commands:
        if words and words[0] in ("-h", "--help"):
            print(__doc__)
            return
        raise ConfigError(f"the first word must be index or search; got {words[0] if words else 'nothing'}")
    commands[words[0]](words)


def make_index(words: Sequence[str]) -> None:
    """Embed photos, put them into an index, write it."""
    arguments: IndexArguments
    (arguments,) = parse_config((IndexArguments,), words[1:])
    import_faiss()  # before hours of embedding
    model = load_embedder(str(arguments.checkpoint))
    photos, labels, num_absent = _load_labelled(
        str(arguments.photos), arguments.split, csv_file=arguments.csv_file, swap_lat_lon=arguments.swap_lat_lon
    )
    embeddings = _embed(model, photos, arguments)
    if not is_main_process():
        return
    kind = choose_kind(len(embeddings.ids)) if arguments.kind == "auto" else arguments.kind
    record = {
        "checkpoint": shown_path(str(arguments.checkpoint)),
        "embedder_sha256": embedder_digest(model),
        "photos": shown_path(str(arguments.photos)),
        "split": labels.split,
        "num_photos": len(embeddings.ids),
        "num_damaged": len(photos) - len(embeddings.ids),
        "num_absent": num_absent,
        "kind": kind,
        "dimensions": embeddings.vectors.shape[1],
        "bf16": arguments.bf16,
        **describe_run(["-m", "geomae.retrieval", *words]),
    }
    record["versions"] |= find_versions(["faiss-cpu"])
    places = _places_of(embeddings, labels)
    index = RetrievalIndex(build_vector_index(embeddings.vectors, kind), places, record)
    written = write_index(str(arguments.output_dir), index)
    print(
        f"{record['num_photos']:,} photos of {record['dimensions']} dimensions in an index of the kind {kind}; "
        f"{record['num_damaged']:,} damaged and {num_absent:,} absent photos are left out"
    )
    print("\n".join(f"wrote {shown_path(path)}" for path in written))


def search(words: Sequence[str]) -> None:
    """Choose parameters on validation photos, answer for the test set, judge, write, print."""
    arguments: SearchArguments
    (arguments,) = parse_config((SearchArguments,), words[1:])
    record, model = read_record(str(arguments.index)), load_embedder(str(arguments.checkpoint))
    refuse_other_embedder(record, embedder_digest(model), str(arguments.checkpoint), bf16=arguments.bf16)
    refuse_too_many_neighbours(record["num_photos"], max(arguments.k))
    centroids = None
    if arguments.refine_top_k:
        refuse_model_without_cells(model, str(arguments.checkpoint))
        centroids = model.head.cells.finest.double().cpu().numpy()
    look_up: dict[str, Any] = {"num_neighbours": max(arguments.k), "centroids": centroids}
    num_cells = arguments.refine_top_k

    training_deg = read_baseline_coordinates(arguments)
    photos, test_set, num_absent = load_photos_to_judge(arguments)
    to_choose_on, labels = None, None
    if arguments.validation:
        to_choose_on, labels, _ = _load_labelled(arguments.validation, arguments.validation_split)
        refuse_test_photos(labels, test_set)
    index = read_index(str(arguments.index)) if is_main_process() else None  # before hours of embedding
    embedded_to_choose_on = None if labels is None else _embed(model, to_choose_on, arguments, num_cells)
    embedded = _embed(model, photos, arguments, num_cells)
    if index is None:
        return
    validation = None
    if labels is not None and embedded_to_choose_on is not None:
        validation = gather_evidence(index, embedded_to_choose_on, labels, **look_up)
    num_unanswered = len(labels.ids) - len(validation.ids) if labels and validation else 0
    chosen = choose_parameters(arguments, validation, num_unanswered)
    evidence = gather_evidence(index, embedded, test_set, **look_up)
    described = {
        "num_absent": num_absent,
        "retrieval": _describe(index, arguments, chosen, labels),
        "test_set": describe_test_set(test_set, pa.chunked_array([index.places.ids])),
        **describe_run(["-m", "geomae.retrieval", *words]),
    }
    label = f"retrieval with {shown_path(str(arguments.checkpoint))}"
    judge_and_write(arguments, predict_places(evidence, chosen), test_set, training_deg, described, label=label)


def _load_labelled(source: str, split: str, **options: Any) -> tuple[Any, TestSet, int]:
    return with_labels(load_photos(source, split, **options), Path(source).name, split=split)


def _embed(model: Any, photos: Any, arguments: IndexArguments | SearchArguments, num_cells: int = 0) -> Embeddings:
    return embed_photos(
        model,
        photos,
        PhotoCollator(model.config.image_size, augment=False, labelled=False),
        batch_size=arguments.per_device_eval_batch_size,
        num_workers=arguments.dataloader_num_workers,
        bf16=arguments.bf16,
        max_damaged_share=arguments.max_damaged_share,
        num_cells=num_cells,
    )


def _places_of(embeddings: Embeddings, labels: TestSet) -> PhotoPlaces:
    """Places and authors in the order of the vectors."""
    row_of = {name: row for row, name in enumerate(labels.ids)}
    rows = [row_of[name] for name in embeddings.ids]
    authors = None if labels.authors is None else [labels.authors[row] for row in rows]
    return PhotoPlaces(embeddings.ids, labels.coordinates_deg[rows], authors)


def _describe(
    index: RetrievalIndex, arguments: SearchArguments, chosen: dict[str, Choice], labels: TestSet | None
) -> dict[str, Any]:
    """What `metrics.json` says of the index, and of how the parameters were chosen."""
    kept = ("checkpoint", "embedder_sha256", "photos", "split", "num_photos", "kind", "commit")
    described: dict[str, Any] = {
        "index": {"name": shown_path(str(arguments.index)), **{name: index.record[name] for name in kept}},
        "chosen": {name: choice.values for name, choice in chosen.items()},
        "refine_top_k": arguments.refine_top_k,
    }
    if labels is not None:
        described["validation"] = {
            "name": shown_path(str(arguments.validation)),
            "split": labels.split,
            "num_photos": len(labels.ids),
            "ids_sha256": labels.ids_sha256,
            "choose_by": arguments.choose_by,
            "tried": {name: choice.tried for name, choice in chosen.items()},
        }
    return described


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")

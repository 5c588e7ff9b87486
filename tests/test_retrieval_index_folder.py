"""An index on disk: what is written is read, whole or not at all, and only by the weights that made it."""

import numpy as np
import pytest

from geomae.errors import ConfigError, SourceError
from geomae.retrieval import PhotoPlaces, RetrievalIndex, build_vector_index, find_neighbours, read_index, write_index
from geomae.retrieval.index_folder import refuse_other_embedder


def make_index(kind="flat", num_photos=200, authors=True):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((num_photos, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    places = PhotoPlaces(
        [f"photo {number}" for number in range(num_photos)],
        np.stack([rng.uniform(-90, 90, num_photos), rng.uniform(-180, 180, num_photos)], axis=1),
        [f"author {number % 7}" for number in range(num_photos)] if authors else None,
    )
    record = {"checkpoint": "outputs/a", "embedder_sha256": "a" * 64, "bf16": True, "photos": "data", "split": "train"}
    record |= {"num_photos": num_photos, "kind": kind, "commit": "c" * 40}
    return RetrievalIndex(build_vector_index(vectors, kind), places, record), vectors


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_an_index_answers_the_same_after_it_was_written_and_read(tmp_path, kind):
    index, vectors = make_index(kind)
    assert [path.name for path in write_index(tmp_path / "index", index)] == [
        "photos.faiss",
        "places.parquet",
        "index.json",
    ]
    again = read_index(tmp_path / "index")
    ids = [f"photo {number}" for number in range(20)]
    before, after = (find_neighbours(each, ids, vectors[:20], 5) for each in (index, again))
    assert before.similarity.tolist() == after.similarity.tolist()
    assert before.places_deg.tolist() == after.places_deg.tolist()
    assert (again.places.ids, again.places.authors) == (index.places.ids, index.places.authors)
    assert again.record == index.record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]


def test_an_index_without_authors_has_none(tmp_path):
    write_index(tmp_path / "index", make_index(authors=False)[0])
    assert read_index(tmp_path / "index").places.authors is None


def test_an_index_is_never_written_into_another(tmp_path):
    write_index(tmp_path / "index", make_index()[0])
    with pytest.raises(ConfigError, match="index is not empty: delete it, or choose another folder"):
        write_index(tmp_path / "index", make_index()[0])


def test_what_fails_on_the_way_leaves_nothing_behind(tmp_path):
    index, _ = make_index()
    broken = RetrievalIndex(index.vectors, index.places, {"num_photos": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_index(tmp_path / "index", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_index_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(SourceError, match=r"it has no photos\.faiss, .*python -m geomae\.retrieval index"):
        read_index(tmp_path)


def test_files_of_two_indices_are_refused(tmp_path):
    write_index(tmp_path / "one", make_index(num_photos=200)[0])
    write_index(tmp_path / "two", make_index(num_photos=100)[0])
    (tmp_path / "one" / "places.parquet").write_bytes((tmp_path / "two" / "places.parquet").read_bytes())
    with pytest.raises(SourceError, match="200 vectors and 100 places"):
        read_index(tmp_path / "one")


@pytest.mark.parametrize("name", ["photos.faiss", "places.parquet", "index.json"])
def test_a_damaged_file_of_an_index_is_refused_by_its_name(tmp_path, name):
    write_index(tmp_path / "index", make_index()[0])
    file = tmp_path / "index" / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SourceError, match=rf"{name} of the index is damaged: .*make it anew"):
        read_index(tmp_path / "index")


@pytest.mark.parametrize("text", ["{}", "[]"])
def test_a_record_that_does_not_say_what_made_the_index_is_refused(tmp_path, text):
    write_index(tmp_path / "index", make_index()[0])
    (tmp_path / "index" / "index.json").write_text(text)
    with pytest.raises(SourceError, match=r"index\.json of the index is damaged: it does not say checkpoint"):
        read_index(tmp_path / "index")


def test_an_index_of_other_weights_or_another_precision_is_refused():
    record = make_index()[0].record
    refuse_other_embedder(record, "a" * 64, "outputs/a", bf16=True)
    with pytest.raises(ConfigError, match=r"made with outputs/a \(digest aaaaaaaaaaaa\), and outputs/b has other"):
        refuse_other_embedder(record, "b" * 64, "outputs/b", bf16=True)
    with pytest.raises(ConfigError, match=r"made with bf16=True, and the search has bf16=False.*--bf16 true"):
        refuse_other_embedder(record, "a" * 64, "outputs/a", bf16=False)

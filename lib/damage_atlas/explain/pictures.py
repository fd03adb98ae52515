"""Draw and explain one part of pictures: what a thread, or a Ray task, does for the explain stage."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from damage_atlas.explain.gradcam import deletion_scores, explain_batch
from damage_atlas.images import ImageError, Limits, PhotoReader, Source, encode_jpeg, preprocess
from damage_atlas.network import load_network
from damage_atlas.store import Run
from damage_atlas.store.runs import read_output, write_output
from damage_atlas.store.versions import run_model

Pixels = NDArray[np.uint8]

_BATCH = 32  # every batch is padded to it: shapes decide the last bits
_HEAT = 0.45  # weight of the heat map over the grey picture
_QUALITY = 88


@dataclass(frozen=True)
class PictureJob:
    """One image to draw, and how to read it."""

    image_id: str
    source: Source


class ExplainPart:
    """Writes picture and heat map of each job to the store; loads the model once, when first called."""

    def __init__(self, run_uri: str, attempt: int) -> None:
        self.run_uri, self.attempt = run_uri, attempt
        self._lock = threading.Lock()
        self._loaded = False

    def __getstate__(self) -> dict[str, Any]:
        return {"run_uri": self.run_uri, "attempt": self.attempt}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _load(self) -> None:
        with self._lock:
            if self._loaded:
                return
            self.run = Run.load(self.run_uri, self.attempt)
            settings = self.run.spec.settings
            self.spec = settings.explain
            card = run_model(self.run)
            self.network = None
            if not card.is_given:
                self.network = load_network(read_output(self.run.store, card.weights), card.network)
            self.limits = Limits.of(settings.catalog)
            self._loaded = True

    def __call__(self, jobs: tuple[PictureJob, ...]) -> list[dict[str, Any]]:
        """A row for each job: keys below the run folder, the written outputs, the deletion score."""
        self._load()
        torch.set_num_threads(1)
        results: list[dict[str, Any]] = []
        read: list[tuple[PictureJob, Pixels]] = []
        with PhotoReader(self.run.spec.images, self.limits) as reader:
            for job in jobs:
                try:
                    read.append((job, reader.read(job.source)))
                except ImageError as error:
                    results.append({"image_id": job.image_id, "failed": error.reason})
        if self.network is None:
            return results + [self._write(job, picture, None, None) for job, picture in read]
        size = self.network.input_size
        padded = np.zeros((_BATCH, size, size, 3), np.uint8)
        for i, (_, picture) in enumerate(read):
            padded[i] = preprocess(picture, size)
        images = self.network.prepare(padded)
        maps = explain_batch(self.network, images, self.spec.method)
        scores = deletion_scores(self.network, images, maps)
        for i, (job, picture) in enumerate(read):
            results.append(self._write(job, picture, maps[i].numpy(), float(scores[i])))
        return results

    def _write(
        self, job: PictureJob, picture: Pixels, heat_HW: NDArray[np.float32] | None, score: float | None
    ) -> dict[str, Any]:
        small = preprocess(picture, self.spec.picture_size)
        folder = self.run.stage("explain").folder
        drawn = {f"pictures/{job.image_id}.jpg": small}
        if heat_HW is not None:
            drawn[f"pictures/{job.image_id}.heat.jpg"] = _overlay(small, heat_HW)
        outputs = [
            write_output(self.run.store, f"{folder}/{name}", encode_jpeg(pixels, _QUALITY))
            for name, pixels in drawn.items()
        ]
        return {
            "image_id": job.image_id,
            "failed": None,
            "picture_key": outputs[0].key.removeprefix(f"{self.run.key}/"),
            "heatmap_key": outputs[-1].key.removeprefix(f"{self.run.key}/"),
            "outputs": outputs,
            "faithfulness": score,
        }


def _overlay(picture: Pixels, heat_HW: NDArray[np.float32]) -> Pixels:
    """The heat map, scaled to its own maximum, over the picture in grey."""
    scaled = heat_HW / max(float(heat_HW.max()), 1e-12)
    size = picture.shape[1], picture.shape[0]
    smooth = np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    colours = matplotlib.colormaps["turbo"](np.clip(smooth, 0, 1))[..., :3] * 255
    grey = picture.mean(axis=2, keepdims=True)
    return np.asarray(np.clip((1 - _HEAT) * grey + _HEAT * colours, 0, 255), dtype=np.uint8)

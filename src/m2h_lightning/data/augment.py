"""Augmentation of training samples: an albumentations pipeline whose geometric steps know depth, normals, edges and K.

Imported late: albumentations takes half a second. ``AugmentConfig`` is in ``data/augment_config.py``.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks a server for news, and hangs an offline node

import albumentations as A

from m2h_lightning.data import transforms as T
from m2h_lightning.data.augment_config import AugmentConfig
from m2h_lightning.data.raw import DepthCode, RawSample
from m2h_lightning.data.sample import Sample
from m2h_lightning.errors import ConfigError, DataError, did_you_mean
from m2h_lightning.geometry import crop_intrinsics, flip_intrinsics, resize_intrinsics
from m2h_lightning.labels import IGNORE

KEYS = (*T.MAPS, "depth_code", "K")
_TRIES = 10


class SampleTransform(A.DualTransform):
    """A geometric step on all maps of a stored sample.

    Subclasses draw their parameters in ``get_params_dependent_on_data`` and say in ``change`` what becomes of each map,
    and in ``change_K`` what becomes of the intrinsics.
    """

    @property
    def targets(self) -> dict[str, Callable[..., Any]]:
        """Return what is applied to which key of the sample."""

        def of(key: str) -> Callable[..., np.ndarray]:
            return lambda array, **params: self.change(key, array, **params)

        return {**{key: of(key) for key in T.MAPS}, "depth_code": self.change_code, "K": self.change_K}

    def change(self, key: str, array: np.ndarray, **params: Any) -> np.ndarray:
        """Return the map after this step."""
        raise NotImplementedError

    def change_code(self, code: DepthCode, **params: Any) -> DepthCode:
        """Return the depth code after this step; the same one unless depth is scaled."""
        return code

    def change_K(self, K: np.ndarray, **params: Any) -> np.ndarray:
        """Return the intrinsics after this step."""
        raise NotImplementedError


class ScaleCrop(SampleTransform):
    """Scale at random and cut out a crop, padded where the image is smaller: one resize of the pixels that are used.

    Args:
        size: Height and width of the crop.
        scale: Range of the scale, drawn log-uniformly.
        cat_max_ratio: Draw the place again (at most ten times) while one class has a larger share of the labelled
            pixels; 1 takes the first place.
        legacy_scale_depth: Divide depth by the scale and keep the focal length, as the InvPT family does.
    """

    def __init__(
        self, size: tuple[int, int], scale: tuple[float, float], cat_max_ratio: float, legacy_scale_depth: bool
    ) -> None:
        super().__init__(p=1.0)
        self.size = size
        self.scale = scale
        self.cat_max_ratio = cat_max_ratio
        self.legacy_scale_depth = legacy_scale_depth

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the scale and the window in stored pixels."""
        H, W = params["shape"][:2]
        scale = float(np.exp(self.random_generator.uniform(*np.log(self.scale))))
        # Cropping before resizing touches only the pixels that are used.
        window = (max(1, round(self.size[0] / scale)), max(1, round(self.size[1] / scale)))
        for _ in range(_TRIES):
            top, left = self._offset(H, window[0]), self._offset(W, window[1])
            if self.cat_max_ratio >= 1 or "semseg" not in data:
                break
            labels = T.crop_map("semseg", data["semseg"], top, left, *window)[::4, ::4]
            counts = np.bincount(labels.ravel(), minlength=256)[:IGNORE]
            if (counts > 0).sum() > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                break
        coded = "depth_code" in data
        return {"top": top, "left": left, "window": window, "factor": scale, "coded": coded}

    def _offset(self, length: int, window: int) -> int:
        """Place a window inside ``length`` where it fits; around it (negative offset: padding) where it does not."""
        slack = length - window
        return int(self.random_generator.integers(min(slack, 0), max(slack, 0) + 1))

    def change(self, key: str, array: np.ndarray, **params: Any) -> np.ndarray:
        """Cut out and resize."""
        part = T.resize_map(key, T.crop_map(key, array, params["top"], params["left"], *params["window"]), *self.size)
        if key == "depth" and self.legacy_scale_depth and not params["coded"]:
            return part / np.float32(params["factor"])
        return part

    def change_code(self, code: DepthCode, **params: Any) -> DepthCode:
        """Divide depth by the scale, where peers do."""
        return code.divided(params["factor"]) if self.legacy_scale_depth else code

    def change_K(self, K: np.ndarray, **params: Any) -> np.ndarray:
        """Move the principal point and scale the focal length."""
        window, size = params["window"], self.size
        moved = resize_intrinsics(
            crop_intrinsics(K, params["top"], params["left"]), size[0] / window[0], size[1] / window[1]
        )
        if self.legacy_scale_depth:  # a larger picture is taken for a nearer scene: the focal length stays
            moved[0, 0], moved[1, 1] = K[0, 0], K[1, 1]
        return moved


class Mirror(SampleTransform):
    """Mirror left and right."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Remember the width."""
        return {"width": params["shape"][1]}

    def change(self, key: str, array: np.ndarray, **params: Any) -> np.ndarray:
        """Mirror a map."""
        return T.flip_map(key, array)

    def change_K(self, K: np.ndarray, **params: Any) -> np.ndarray:
        """Mirror the principal point."""
        return flip_intrinsics(K, params["width"])


class Roll(SampleTransform):
    """Roll the camera about its optical axis by up to ``limit`` degrees; normals turn with it."""

    def __init__(self, limit: float) -> None:
        super().__init__(p=1.0)
        self.limit = limit

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the angle."""
        if not np.isfinite(data["K"]).all():
            raise DataError("data.augment.rotate needs the camera's K, which this data set does not tell; set it to 0")
        return {"degrees": float(self.random_generator.uniform(-self.limit, self.limit)), "camera": data["K"]}

    def change(self, key: str, array: np.ndarray, **params: Any) -> np.ndarray:
        """Turn a map."""
        return T.roll_map(key, array, params["camera"], params["degrees"])

    def change_K(self, K: np.ndarray, **params: Any) -> np.ndarray:
        """Return K: a roll about the optical axis leaves it."""
        return K


class ColourJitter(A.ImageOnlyTransform):
    """Change brightness, contrast, saturation and hue by one linear map of colours: a single pass over the image.

    In this order, each where its range is not zero: x·b; c·x + (1 − c)·mean luma; luma + s·(x − luma); a turn of the
    chroma plane of YIQ about the luma axis (as in ADA, Karras et al., NeurIPS 2020). Nothing is clipped in between.
    albumentations' ColorJitter, with its way through HSV, takes twelve times as long and a quarter of a sample's time.

    Args:
        brightness: Largest relative change.
        contrast: Largest relative change.
        saturation: Largest relative change.
        hue: Largest turn, as a share of the colour circle.
    """

    LUMA = np.array((0.299, 0.587, 0.114))
    _YIQ = np.array(((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)))

    def __init__(self, brightness: float, contrast: float, saturation: float, hue: float) -> None:
        super().__init__(p=1.0)
        self.limits = np.array((brightness, contrast, saturation, hue))

    def get_params(self) -> dict[str, Any]:
        """Draw the four changes."""
        b, c, s, turn = self.random_generator.uniform(-1, 1, 4) * self.limits
        return {"brightness": 1 + b, "contrast": 1 + c, "saturation": 1 + s, "hue": turn}

    def apply(
        self, img: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float, **params: Any
    ) -> np.ndarray:
        """Return the changed image, uint8 H×W×3."""
        mean = brightness * float(self.LUMA @ cv2.mean(img)[:3])
        # Saturation and hue leave grey as it is, so the mean that contrast turns about can be added at the end.
        change = self.matrix(saturation, hue) * (brightness * contrast)
        return cv2.transform(img, np.column_stack([change, np.full(3, (1 - contrast) * mean)]))

    @classmethod
    def matrix(cls, saturation: float, hue: float) -> np.ndarray:
        """Return the 3×3 map of colours that changes saturation and hue and leaves luma and grey alone."""
        cos, sin = saturation * np.cos(2 * np.pi * hue), saturation * np.sin(2 * np.pi * hue)
        turn = np.array(((1, 0, 0), (0, cos, -sin), (0, sin, cos)))
        return np.linalg.inv(cls._YIQ) @ turn @ cls._YIQ


def _try(name: str, step: A.ImageOnlyTransform) -> None:
    """Refuse a step that does not make an image of an image.

    Raises:
        ConfigError: It fails, or changes size, channels or type.
    """
    image = np.full((64, 64, 3), 100, np.uint8)
    try:
        out = step(image=image, force_apply=True)["image"]
    except Exception as error:  # a third party's code: any kind of error says that it cannot be used like this
        raise ConfigError(
            f"data.augment.photometric.{name} fails on an image: {' '.join(str(error).split())}"
        ) from None
    if out.shape != image.shape or out.dtype != image.dtype:
        raise ConfigError(f"data.augment.photometric.{name} makes {out.dtype} {out.shape} of a uint8 RGB image")


def photometric(entries: list[dict[str, Any]]) -> list[A.ImageOnlyTransform]:
    """Return the albumentations transforms that ``data.augment.photometric`` names.

    Args:
        entries: Each ``{name: GaussianBlur, …arguments}``.

    Raises:
        ConfigError: An unknown name, one that moves pixels, or a wrong argument.
    """
    known = {
        name
        for name, kind in vars(A).items()
        if isinstance(kind, type) and issubclass(kind, A.ImageOnlyTransform) and kind is not A.ImageOnlyTransform
    }
    steps = []
    for entry in entries:
        if "name" not in entry:
            raise ConfigError("data.augment.photometric: each entry needs a name, such as {name: GaussianBlur, p: 0.1}")
        arguments = dict(entry)
        name = arguments.pop("name", None)
        if name not in known:
            why = "it moves pixels, and depth, normals and K would not follow" if hasattr(A, str(name)) else "unknown"
            raise ConfigError(
                f"data.augment.photometric: '{name}' cannot be used ({why}); name an image-only transform of "
                f"albumentations, such as GaussianBlur{did_you_mean(str(name), known)}"
            )
        if name in ("Normalize", "ToFloat", "FromFloat"):
            raise ConfigError(f"data.augment.photometric: '{name}' is not wanted; images are normalised on the device")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it warns of is refused below
                step = getattr(A, name)(**arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"data.augment.photometric.{name}: {' '.join(str(error).split())}") from None
        if step.invalid_args:
            raise ConfigError(f"data.augment.photometric.{name}: there is no argument {', '.join(step.invalid_args)}")
        _try(name, step)
        steps.append(step)
    return steps


def pipeline(size: tuple[int, int], config: AugmentConfig) -> A.Compose:
    """Return the whole chain.

    Args:
        size: Height and width of the crop.
        config: What to draw.

    Raises:
        ConfigError: A photometric step is wrong.
    """
    steps: list[Any] = [Roll(config.rotate)] if config.rotate else []
    steps.append(ScaleCrop(size, (config.scale[0], config.scale[1]), config.cat_max_ratio, config.legacy_scale_depth))
    if config.flip:
        steps.append(Mirror(p=config.flip))
    if config.brightness or config.contrast or config.saturation or config.hue:
        steps.append(ColourJitter(config.brightness, config.contrast, config.saturation, config.hue))
    return A.Compose([*steps, *photometric(config.photometric)], is_check_shapes=False)


class TrainTransform:
    """Random scale and crop, flip, roll and photometry. Everything random comes from the generator passed in.

    Args:
        size: Height and width of the crop.
        augment: What to draw.

    Raises:
        ConfigError: A photometric step is wrong.
    """

    def __init__(self, size: tuple[int, int], augment: AugmentConfig) -> None:
        self.size = size
        self.augment = augment
        self._pipeline: A.Compose | None = pipeline(size, augment)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the built pipeline behind: it is made again in the worker."""
        return {**self.__dict__, "_pipeline": None}

    def __call__(self, raw: RawSample, rng: np.random.Generator) -> Sample:
        """Return a compact training sample of the crop's size.

        Raises:
            DataError: A map holds NaN, or the camera that a rotation needs is not known.
        """
        if self._pipeline is None:
            self._pipeline = pipeline(self.size, self.augment)
        # One stream for all steps. (Compose.set_random_seed gives each step the same seed: its draws would be alike.)
        state = random.Random(int(rng.integers(2**63)))
        self._pipeline.set_random_state(rng, state)
        changed = self._pipeline(**{key: raw[key] for key in KEYS if key in raw})  # type: ignore[literal-required]
        out: RawSample = {**raw, **changed}
        out.pop("pose", None)  # flips and rolls move the camera, and nothing in training asks where it stood
        return T.to_sample(out, raw["image"].shape[:2])

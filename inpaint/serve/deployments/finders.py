"""The finders' deployment: it finds products in photos and makes control pictures, on a share of a GPU, in front of the
painters, and is scaled by the photos that wait for it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from inpaint.errors import InpaintError
from inpaint.heap import TENSORS, give_back, started
from inpaint.serve.batcher import Batcher
from inpaint.serve.deployments.model import own_device
from inpaint.serve.deployments.serve_internals import LOST
from inpaint.serve.service import Overloaded
from inpaint.vision.control import load_control
from inpaint.vision.finder import Findings, FindQuery
from inpaint.vision.finders import load_finder

if TYPE_CHECKING:
    from inpaint.serve.apps.photoshoot import PhotoshootArgs

T = TypeVar("T")
_BLANK = np.zeros((64, 64, 3), np.uint8)
_ANYTHING = FindQuery.parse(["product"])


class FinderReplica:
    """A replica. Photos that are looked at for the same products share its calls."""

    def __init__(self, args: "PhotoshootArgs") -> None:
        device = own_device(args.threads, args.device)
        finder = load_finder(args.finder, device)
        pictures = None if args.controlnet is None else load_control(args.pictures, device)
        self._timeout_s = args.health_timeout_s

        def find(asked: Sequence[tuple[np.ndarray, FindQuery]], tick: Callable[[], None]) -> list[Findings]:
            return finder.find([image for image, _ in asked], asked[0][1])

        self._finding = Batcher(find, kind=lambda asked: asked[1], max_batch=args.find_batch)
        self._pictures: Batcher[np.ndarray, np.ndarray] | None = None
        if pictures is not None:
            self._pictures = Batcher(lambda images, tick: pictures(images), max_batch=args.find_batch)
        give_back(TENSORS)
        started()

    async def find(self, image: np.ndarray, query: FindQuery) -> Findings:
        """See `service.Vision`."""
        return await self._finding.submit((image, query))

    async def control(self, image: np.ndarray) -> np.ndarray | None:
        """See `service.Vision`."""
        return None if self._pictures is None else await self._pictures.submit(image)

    async def check_health(self) -> None:
        """Called by Serve every few seconds: it looks at something."""
        await self._finding.check((_BLANK, _ANYTHING), self._timeout_s)


class RemoteVision:
    """Implements `service.Vision` by the finders behind a handle."""

    def __init__(self, finders: DeploymentHandle) -> None:
        self._finders = finders

    async def find(self, image: np.ndarray, query: FindQuery) -> Findings:
        """See `service.Vision`."""
        found: Findings = await self._asked("find", image, query)
        return found

    async def control(self, image: np.ndarray) -> np.ndarray | None:
        """See `service.Vision`."""
        picture: np.ndarray | None = await self._asked("control", image)
        return picture

    async def _asked(self, method: str, *arguments: object) -> Any:
        try:
            return await getattr(self._finders, method).remote(*arguments)
        except RayTaskError as error:
            # What the finder raised, as it is: Ray wraps it in a class of its own making.
            if isinstance(error.cause, InpaintError):
                raise error.cause from None
            raise
        except (*LOST, DeploymentUnavailableError) as error:
            raise Overloaded(f"a finder was lost ({str(error).partition(chr(10))[0]}): try again", 2.0) from error


Finders = serve.deployment(
    FinderReplica,
    name="finders",
    max_ongoing_requests=100,
    health_check_timeout_s=120,
    graceful_shutdown_timeout_s=60,
    graceful_shutdown_wait_loop_s=0.5,
    ray_actor_options={"num_cpus": 0.5},
)
"""The deployment; `serve_config.yaml` overrides what it sets."""

"""Painting with a finder in front: `inpaint.serve.apps.photoshoot:build`. All of `inpaint.serve.apps.paint`, and
`POST /find` and `POST /enhance`."""

from pydantic import Field
from ray import serve

from inpaint.serve.apps.paint import PaintArgs
from inpaint.serve.deployments.finders import Finders
from inpaint.serve.deployments.ingress import Ingress
from inpaint.serve.deployments.painters import Painters
from inpaint.vision.control import ControlKind, ControlSettings
from inpaint.vision.finders import FinderSettings


class PhotoshootArgs(PaintArgs):
    """`args` of the application: those of painting, and what looks at photos. The defaults are the toy world's."""

    controlnet: str | None = "toy-edges"
    """What holds products' shapes while they are repainted: a ControlNet's folder or hub id, or `toy-edges`; null: they
    are painted without."""
    finder: FinderSettings = FinderSettings(finder="toy")
    """What finds products."""
    pictures: ControlSettings = ControlSettings(control=ControlKind.EDGES)
    """What the ControlNet is shown."""
    find_batch: int = Field(default=8, ge=1)
    """Most photos that a finder looks at together."""


def build(args: PhotoshootArgs) -> serve.Application:
    """An ingress in front of finders and painters; replicas, resources and scaling are set per deployment in the
    configuration."""
    args = args.anywhere
    return Ingress.bind(args, Painters.bind(args), Finders.bind(args))

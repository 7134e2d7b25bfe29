"""The application that `serve_config.yaml` names: `inpaint.serve.app:build`."""

from ray import serve

from inpaint.models.files import absolute_name
from inpaint.serve.deployments.ingress import Ingress
from inpaint.serve.deployments.painters import Painters
from inpaint.serve.settings import ServeArgs


def build(args: ServeArgs) -> serve.Application:
    """An ingress in front of painters; replicas, resources and scaling are set per deployment in the configuration."""
    args = args.model_copy(update={"base": absolute_name(args.base)})
    return Ingress.bind(args, Painters.bind(args))

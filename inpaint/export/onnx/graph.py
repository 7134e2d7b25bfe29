"""LoRA and learned tokens as optional inputs of ONNX graphs: one base, and hundreds of small adapters beside it.

ONNX Runtime's adapters override inputs that have a default. So each layer's two matrices are inputs whose defaults have
rank 0, which changes nothing; their rank is symbolic, so that any will do. They are fp16 whatever the graph computes
in, as adapters are on disk. `lora_scale` (alpha / rank) comes with the adapter, `lora_weight` with the request.

A base's parts all take the same inputs, and leave out what is not theirs: ONNX Runtime refuses an adapter with a name
that a session does not have, and so one file serves all of them. Anchor: Olive's `ExtractAdapters` pass.

Shapes: r rank, N learned tokens' vectors, D width.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from inpaint.errors import InpaintError

SCALE, WEIGHT = "lora_scale", "lora_weight"
TOKENS = ("tokens", "tokens_2")
"""By text encoder: the rows of learned tokens, which have the ids behind the vocabulary's."""
_HALVES = ("lora_A", "lora_B")


def input_name(layer: str, half: int) -> str:
    """Of a layer (on disk): `unet.mid_block...to_q.lora_A` (inputs x r), `lora_B` (r x outputs)."""
    return f"{layer}.{_HALVES[half]}"


def add_adapter_inputs(
    model: onnx.ModelProto, layers: Mapping[str, tuple[int, int]], weights: Mapping[str, str], widths: Iterable[int]
) -> None:
    """Give a graph, in place, the inputs of an adapter.

    Args:
        layers: all of the base's that can carry a LoRA, by name on disk -> (outputs, inputs).
        weights: of those that are in this graph, the name of the weight.
        widths: D of each text encoder.

    Raises:
        InpaintError: a layer's weight is not used as a linear layer's or a 1 x 1 convolution's is.
    """
    graph = model.graph
    compute = next(t.data_type for t in graph.initializer if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16))
    for name in (SCALE, WEIGHT):
        _optional(graph, name, np.ones(1, np.float32), (1,))
    for layer, (outputs, inputs) in layers.items():
        # Its own: an adapter may lack layers, and ONNX Runtime lets tensors share memory whose shapes are of one name.
        rank = f"{layer}.rank"
        _optional(graph, input_name(layer, 0), np.zeros((inputs, 0), np.float16), (inputs, rank))
        _optional(graph, input_name(layer, 1), np.zeros((0, outputs), np.float16), (rank, outputs))
    for name, width in zip(TOKENS, widths, strict=False):
        _optional(graph, name, np.zeros((0, width), np.float16), (name, width))
    if not weights:
        return
    before = [
        helper.make_node("Mul", [SCALE, WEIGHT], ["lora_factor_fp32"]),
        helper.make_node("Cast", ["lora_factor_fp32"], ["lora_factor"], to=compute),
    ]
    nodes = _Nodes(graph)
    for layer, weight in weights.items():
        if weight in nodes.users:  # SDXL does without its first encoder's last layer
            nodes.add_low_rank(layer, weight, compute)
    nodes.rewrite(before)


def add_token_rows(model: onnx.ModelProto, embedding: str, number: int) -> None:
    """Let a text encoder's graph, in place, look up ids behind its vocabulary in the rows of learned tokens. Args:
    embedding: name of its table; number: which encoder it is."""
    graph, rows = model.graph, TOKENS[number]
    (table,) = (tensor for tensor in graph.initializer if tensor.name == embedding)
    vocabulary, width = table.dims
    (lookup,) = (node for node in graph.node if node.op_type == "Gather" and node.input[0] == embedding)
    ids, (out,) = lookup.input[1], lookup.output
    for name, value in (("first_new", vocabulary), ("last_old", vocabulary - 1), ("no_row", -1)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"{rows}.{name}"))
    zero = numpy_helper.from_array(np.zeros((1, width), np.float16), f"{rows}.zero")
    graph.initializer.append(zero)
    # The last row, of zeros, is that of all old ids: a table without rows could not be looked up in.
    made = [
        helper.make_node("Min", [ids, f"{rows}.last_old"], [f"{rows}.old_ids"]),
        helper.make_node("Gather", [embedding, f"{rows}.old_ids"], [f"{rows}.old"]),
        helper.make_node("Sub", [ids, f"{rows}.first_new"], [f"{rows}.place"]),
        helper.make_node("Max", [f"{rows}.place", f"{rows}.no_row"], [f"{rows}.new_ids"]),
        helper.make_node("Concat", [rows, f"{rows}.zero"], [f"{rows}.table"], axis=0),
        helper.make_node("Gather", [f"{rows}.table", f"{rows}.new_ids"], [f"{rows}.new_fp16"]),
        helper.make_node("Cast", [f"{rows}.new_fp16"], [f"{rows}.new"], to=table.data_type),
        helper.make_node("Greater", [ids, f"{rows}.last_old"], [f"{rows}.is_new"]),
        helper.make_node("Unsqueeze", [f"{rows}.is_new", f"{rows}.axes"], [f"{rows}.is_new_column"]),
        helper.make_node("Where", [f"{rows}.is_new_column", f"{rows}.new", f"{rows}.old"], [out]),
    ]
    graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), f"{rows}.axes"))
    nodes = list(graph.node)
    place = nodes.index(lookup)
    nodes[place : place + 1] = made
    del graph.node[:]
    graph.node.extend(nodes)


def _optional(graph: onnx.GraphProto, name: str, default: np.ndarray, shape: tuple[int | str, ...]) -> None:
    """An input with a default: an input and an initializer of one name."""
    kind = helper.np_dtype_to_tensor_dtype(default.dtype)
    graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    graph.initializer.append(numpy_helper.from_array(default, name))


class _Nodes:
    """A graph's nodes, and what is put behind some of them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.behind: dict[str, list[NodeProto]] = {}
        """Output of a node -> what follows it at once."""
        self.users: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def add_low_rank(self, layer: str, weight: str, compute: int) -> None:
        """Add B A x to what a layer makes of x."""
        node = self._layer(layer, weight)
        (out,), x = node.output, node.input[0]
        node.output[0] = f"{out}.base"
        halves = [f"{input_name(layer, half)}.cast" for half in (0, 1)]
        names = {part: f"{layer}.{part}" for part in ("last", "down", "scaled", "up", "added")}
        made = [helper.make_node("Cast", [input_name(layer, half)], [halves[half]], to=compute) for half in (0, 1)]
        is_convolution = node.op_type == "Conv"
        if is_convolution:
            made.append(helper.make_node("Transpose", [x], [names["last"]], perm=[0, 2, 3, 1]))
        made += [
            helper.make_node("MatMul", [names["last"] if is_convolution else x, halves[0]], [names["down"]]),
            helper.make_node("Mul", [names["down"], "lora_factor"], [names["scaled"]]),
            helper.make_node("MatMul", [names["scaled"], halves[1]], [names["up"]]),
        ]
        added = names["up"]
        if is_convolution:
            made.append(helper.make_node("Transpose", [added], [names["added"]], perm=[0, 3, 1, 2]))
            added = names["added"]
        made.append(helper.make_node("Add", [f"{out}.base", added], [out]))
        self.behind[f"{out}.base"] = made

    def rewrite(self, before: list[NodeProto]) -> None:
        """Put the nodes back in order."""
        nodes = list(before)
        for node in self.graph.node:
            nodes.append(node)
            nodes += self.behind.get(node.output[0], []) if node.output else []
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _layer(self, layer: str, weight: str) -> NodeProto:
        """The node that multiplies by a weight, perhaps transposed before."""
        used = self.users[weight]
        if [node.op_type for node in used] == ["Transpose"]:
            used = self.users[used[0].output[0]]
        if len(used) != 1 or used[0].op_type not in ("MatMul", "Gemm", "Conv"):
            raise InpaintError(
                f"layer {layer}: used by {[node.op_type for node in used]}, which carries no LoRA in ONNX"
            )
        return used[0]

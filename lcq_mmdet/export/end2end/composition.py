"""Several graphs as one."""
from typing import Dict, List, Mapping, NamedTuple, Sequence, Tuple

import onnx
from onnx import helper, numpy_helper


class Part(NamedTuple):
    """A part of a graph.

    Attributes:
        name: What is put in front of the names of its values.
        model: The part as a model of its own.
        links: What inputs and outputs are called instead.
        named: Whether other values keep their names; else they have numbers,
            which make a smaller file.
    """
    name: str
    model: onnx.ModelProto
    links: Mapping[str, str]
    named: bool = False


def join(parts: Sequence[Part], inputs: Sequence[onnx.ValueInfoProto],
         outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """Make one model; each part reads what those before it give, by name.

    The version of operators is that of the part with the highest.

    Args:
        parts: The parts; two of one name have what both hold only once.
        inputs: Inputs of the model.
        outputs: Its outputs.
    """
    version = max(_opset(part.model) for part in parts)
    graph = helper.make_graph([], 'detector', inputs, outputs)
    seen = set()
    for part in parts:
        # Before names are changed, as this makes values with names of its own.
        part = part._replace(
            model=onnx.version_converter.convert_version(part.model, version))
        added = _renamed(part)
        graph.node.extend(added.node)
        for constant in added.initializer:
            if constant.name not in seen:
                seen.add(constant.name)
                graph.initializer.append(constant)
    _share_constants(graph)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid('', version)],
        ir_version=max(part.model.ir_version for part in parts))


def _opset(model: onnx.ModelProto) -> int:
    return max(entry.version for entry in model.opset_import
               if entry.domain in ('', 'ai.onnx'))


def _renamed(part: Part) -> onnx.GraphProto:
    names: Dict[str, str] = {'': '', **part.links}

    def change(values: Sequence[str]) -> List[str]:
        for name in values:
            names.setdefault(
                name, f'{part.name}/{name if part.named else len(names)}')
        return [names[name] for name in values]

    graph = onnx.GraphProto()
    graph.CopyFrom(part.model.graph)
    for node in graph.node:
        node.input[:] = change(node.input)
        node.output[:] = change(node.output)
        node.name = f'{part.name}/{node.name}' if part.named else ''
    for constant in graph.initializer:
        constant.name, = change([constant.name])
    return graph


def _share_constants(graph: onnx.GraphProto) -> None:
    """Keep constants of nodes once each."""
    known: Dict[Tuple[int, bytes, Tuple[int, ...]], str] = {}
    names: Dict[str, str] = {}
    nodes = []
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        values = [a for a in node.attribute if a.name == 'value']
        if node.op_type != 'Constant' or not values:
            nodes.append(node)
            continue
        array = numpy_helper.to_array(values[0].t)
        key = values[0].t.data_type, array.tobytes(), array.shape
        if key not in known:
            known[key] = node.output[0]
            graph.initializer.append(
                numpy_helper.from_array(array, node.output[0]))
        names[node.output[0]] = known[key]
    del graph.node[:]
    graph.node.extend(nodes)
